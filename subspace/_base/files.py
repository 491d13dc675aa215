"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], content: bytes, durable: bool = True) -> None:
    """Put a file in the place of what is there, a link's target included, so that `path` is never half written.

    What is written has no name until it is whole, where the file system can do that: a killed process leaves nothing.
    Any number of processes, on any machines, may write it at once. durable: also after a crash of the machine. Raises
    OSError if it cannot be written; what was there is then as it was.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".subspace-{secrets.token_hex(8)}.tmp")
    try:
        if target.exists() and not target.is_file():
            raise OSError(errno.EINVAL, "something that is no file")
        descriptor = _nameless(target.parent)
        with os.fdopen(_named(temporary) if descriptor is None else descriptor, "wb") as file:
            if target.exists() and os.chmod in os.supports_fd:
                os.chmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            if descriptor is not None:
                _name(file.fileno(), temporary)
        os.replace(temporary, target)
        if durable:
            with contextlib.suppress(OSError), _folder(target.parent) as folder:
                os.fsync(folder)  # the name, where the system can
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, f"path must be writable, got {error.strerror}", str(path)) from error
        raise


def _nameless(folder: Path) -> int | None:
    """A descriptor of a new file without a name, with the rights that the umask leaves; None if there is no such."""
    if not (hasattr(os, "O_TMPFILE") and Path("/proc/self/fd").exists()):
        return None
    try:
        return os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o666)
    except OSError:  # not on this file system, or not in this folder, of which the other way will tell
        return None


def _named(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)


def _name(descriptor: int, path: Path) -> None:
    """Give a nameless file a name."""
    with _folder(path.parent) as folder:  # without which CPython's link would not look through /proc
        os.link(f"/proc/self/fd/{descriptor}", path.name, dst_dir_fd=folder)


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
