"""Files that are there whole or not at all, and errors of the disk as sentences."""

from __future__ import annotations

import os
import secrets
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
        raise StorageError(f"{path} must be writable, got: {error.strerror or error}") from error


def write_atomically(path: Path, content: bytes, durable: bool = True) -> None:
    """Write a file so that it is there whole or, after a crash of this process at any moment, as it was before.

    Args:
        path: of the file, in a folder that exists. Any number of processes, on any machines, may write it at once.
        content: of the file.
        durable: whether that holds after a crash of the machine, too.

    Raises:
        OSError: the file cannot be written, and is as it was.
    """
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable and os.name == "posix":  # the renaming itself, too
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
