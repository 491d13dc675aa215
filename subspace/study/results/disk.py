"""Errors of the disk as sentences."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class StorageError(OSError):
    """Results cannot be written or read: no space, no permission. It is no fault of a run, and stops a study."""


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn an OSError into a StorageError of one sentence that names the path."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise StorageError(f"{path} must be writable, got: {reason}") from error
