"""Results on disk, in a directory for each run that is named by the hash of its configuration.

    FOLDER/runs/<hash>/
        result.json   {"schema": 2, "configuration": {...}, "status": "finished" | "failed", "attempts": 1,
                       "error": null | "one sentence", ..., "sha256": "of all the rest"}
        state.pt      what the run goes on from after a crash, as of an epoch (`training.state`), until it finishes
        epochs.json   what its epochs came to so far, those of rounds that choose U included, for those who watch
        lock          held by the one process that trains the run; the system lets go of it when that process dies

A file is written beside its place, brought to the disk and then renamed, so a reader sees a whole file or none, and a
crash at any moment leaves what was there. Files that are damaged all the same are renamed to damaged-1-NAME (-2, ...),
never deleted. Several processes and several studies may share a folder, on a file system whose locks are everyone's.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from subspace.study.entries.entry import canonical
from subspace.study.spec.study import Run

SCHEMA = 2
MARK = b"subspace study state 1\n"
Record = dict[str, Any]


class StorageError(OSError):
    """The store cannot be written or read: no space, no permission. It is no fault of a run, and stops a study."""


class NewerSchemaError(StorageError):
    """A result that a newer version of this package wrote; it is to be left alone."""


class Store:
    """The results under a folder. StorageError where it cannot be made or written."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).absolute()
        with storage(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass

    def directory(self, run: Run) -> Path:
        """Where all of a run is kept."""
        return self.folder / "runs" / run.hash

    def path(self, run: Run) -> Path:
        """Where the run's record is or will be."""
        return self.directory(run) / "result.json"

    def read(self, run: Run) -> Record | None:
        """The record of a run, None if there is none.

        ValueError saying what is wrong with a damaged file; NewerSchemaError; StorageError where it cannot be read.
        """
        path = self.path(run)
        with storage(path):
            try:
                text = path.read_bytes()
            except FileNotFoundError:
                return None
        try:
            record = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path} must be JSON, got {error}") from None
        if isinstance(record, dict) and isinstance(record.get("schema"), int) and record["schema"] > SCHEMA:
            wrote = dict(record.get("environment") or {}).get("subspace", "unknown")
            raise NewerSchemaError(
                f"{path} must be of schema {SCHEMA} or older, got {record['schema']}, which version {wrote} wrote: "
                "update torch-subspace, or choose another folder"
            )
        if complaint := defect(record, run):
            raise ValueError(f"{path} must be an intact result of its run, got {complaint}")
        intact: Record = record
        return intact

    def write(self, run: Run, record: Record) -> None:
        """Put a run's record in its place, at once and for good; one that is there already is replaced."""
        record = {"schema": SCHEMA, "configuration": run.configuration(), **record}
        text = json.dumps({**record, "sha256": checksum(record)}, indent=1, allow_nan=False) + "\n"
        self._put(self.path(run), text.encode())

    def read_state(self, run: Run) -> bytes | None:
        """What `write_state` was given last, None if nothing; ValueError saying what is wrong with a damaged file."""
        path = self.directory(run) / "state.pt"
        with storage(path):
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                return None
        mark, digest, payload = content[: len(MARK)], content[len(MARK) :][:32], content[len(MARK) + 32 :]
        if mark != MARK or digest != hashlib.sha256(payload).digest():
            raise ValueError(f"{path} must be an intact state of its run, got contents unlike their checksum")
        return payload

    def write_state(self, run: Run, state: bytes, epochs: list[dict[str, Any]]) -> None:
        """Keep what the run goes on from after a crash, and what its epochs came to so far."""
        self._put(self.directory(run) / "state.pt", MARK + hashlib.sha256(state).digest() + state)
        self._put(self.directory(run) / "epochs.json", json.dumps(epochs).encode(), durable=False)

    def progress(self, run: Run) -> list[dict[str, Any]]:
        """What the epochs of a run that is under way came to so far; empty where nothing is known."""
        try:
            epochs: list[dict[str, Any]] = json.loads((self.directory(run) / "epochs.json").read_bytes())
        except (OSError, ValueError):
            return []
        return epochs

    def clear(self, run: Run, state: bool = False) -> None:
        """Remove what crashed writers left and, if asked, the run's state; by the holder of the run's lock."""
        gone = [*self.directory(run).glob(".*.tmp")]
        with storage(self.directory(run)):
            for path in [*gone, self.directory(run) / "state.pt"] if state else gone:
                path.unlink(missing_ok=True)

    def set_aside(self, path: Path) -> Path:
        """Rename a damaged file; returns its new place, which no file had."""
        number = 1
        while (aside := path.with_name(f"damaged-{number}-{path.name}")).exists():
            number += 1
        with storage(path):
            path.rename(aside)
        return aside

    @contextmanager
    def held(self, run: Run) -> Iterator[bool]:
        """Whether the run is now this process's alone; if so, until the end of the block or of the process."""
        path = self.directory(run) / "lock"
        lock = FileLock(path, thread_local=False)
        with storage(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(Timeout):
                lock.acquire(blocking=False)
        try:
            yield lock.is_locked
        finally:
            lock.release()

    def _put(self, path: Path, content: bytes, durable: bool = True) -> None:
        with storage(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace(path, content, durable)


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn an OSError into a StorageError of one sentence that names the path."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} must be writable, got: {error.strerror or error}") from error


def checksum(record: Record) -> str:
    """The SHA-256 of all but the checksum itself, however the file is laid out."""
    return hashlib.sha256(canonical({k: v for k, v in record.items() if k != "sha256"}).encode()).hexdigest()


def defect(record: object, run: Run) -> str | None:
    """What makes a JSON value no result of this run, in a few words; None for a good one."""
    if not isinstance(record, dict):
        return f"a {type(record).__name__}"
    if record.get("schema") != SCHEMA:
        return f"schema {record.get('schema')!r} in place of {SCHEMA}"
    if record.get("sha256") != checksum(record):
        return "contents that do not match their checksum"
    if canonical(record.get("configuration")) != canonical(run.configuration()):
        return "the result of another configuration"
    return None


def replace(path: Path, content: bytes, durable: bool = True) -> None:
    """Write a file so that it is there whole or, after a crash of this process at any moment, as it was before.

    durable: after a crash of the machine, too.
    """
    temporary = path.with_name(f".{path.name}-{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
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
