"""Results on disk, in a directory for each run that is named by the hash of its configuration.

    FOLDER/runs/<hash>/
        result.json   {"schema": 2, "configuration": {...}, "status": "finished" | "failed", "attempts": 1,
                       "error": null | "one sentence", ..., "sha256": "of all the rest"}
        state.pt      what the run can be resumed from, as of its last epoch (`training.state`), until it finishes
        epochs.json   the figures of its epochs so far, those of rounds that choose U included, for progress bars
        lock          held by the one process that trains the run; the system releases it when that process dies

Files are written atomically, so a crash at any moment leaves what was there. Files that are damaged all the same are
renamed to damaged-1-NAME (-2, ...), never deleted. Several processes and several studies may share a folder, on a file
system whose locks hold for all of them.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from subspace._base.files import write_atomically
from subspace.study.entries.entry import canonical
from subspace.study.results.disk import StorageError, storage
from subspace.study.spec.study import Run

SCHEMA = 2
MARK = b"subspace study state 1\n"
Record = dict[str, Any]


class NewerSchemaError(StorageError):
    """A result that a newer version of this package wrote; it is left alone."""


class Store:
    """The results under a folder."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).absolute()

    def require_writable(self) -> None:
        """Make the folder; StorageError where nothing can be written in it."""
        with storage(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass

    def directory(self, run: Run) -> Path:
        """The folder of a run."""
        return self.folder / "runs" / run.hash

    def path(self, run: Run) -> Path:
        """The file of the run's record."""
        return self.directory(run) / "result.json"

    def read(self, run: Run) -> Record | None:
        """The record of a run, None if there is none.

        Raises ValueError saying what is wrong with a damaged file, NewerSchemaError, and StorageError.
        """
        path = self.path(run)
        if (text := _content(path)) is None:
            return None
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} must be JSON, got {error}") from None
        if isinstance(record, dict) and isinstance(record.get("schema"), int) and record["schema"] > SCHEMA:
            environment = record.get("environment")
            wrote = environment.get("subspace", "unknown") if isinstance(environment, dict) else "unknown"
            raise NewerSchemaError(
                f"{path} must be of schema {SCHEMA} or older, got {record['schema']}, which version {wrote} wrote: "
                "update torch-subspace, or choose another folder"
            )
        if complaint := defect(record, run):
            raise ValueError(f"{path} must be an intact result of its run, got {complaint}")
        intact: Record = record
        return intact

    def write(self, run: Run, record: Record) -> None:
        """Write a run's record atomically and durably; it replaces an earlier one."""
        record = {"schema": SCHEMA, "configuration": run.configuration(), **record}
        text = json.dumps({**record, "sha256": checksum(record)}, indent=1, allow_nan=False) + "\n"
        self._put(self.path(run), text.encode())

    def read_state(self, run: Run) -> bytes | None:
        """What `write_state` was given last, None if nothing; ValueError saying what is wrong with a damaged file."""
        path = self.directory(run) / "state.pt"
        if (content := _content(path)) is None:
            return None
        mark, digest, payload = content[: len(MARK)], content[len(MARK) :][:32], content[len(MARK) + 32 :]
        if mark != MARK or digest != hashlib.sha256(payload).digest():
            raise ValueError(f"{path} must be an intact state of its run, got contents unlike their checksum")
        return payload

    def write_state(self, run: Run, state: bytes, epochs: list[dict[str, Any]]) -> None:
        """Store what the run can be resumed from, and the figures of its epochs so far."""
        self._put(self.directory(run) / "state.pt", MARK + hashlib.sha256(state).digest() + state)
        self._put(self.directory(run) / "epochs.json", json.dumps(epochs).encode(), durable=False)

    def progress(self, run: Run) -> list[dict[str, Any]]:
        """The figures of a run's epochs so far; none where they cannot be read."""
        try:
            epochs = json.loads((self.directory(run) / "epochs.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            return []
        known = isinstance(epochs, list) and all(
            isinstance(e, dict) and isinstance(e.get("epoch"), int) for e in epochs
        )
        return epochs if known else []

    def clear(self, run: Run, state: bool = False) -> None:
        """Remove what crashed writers left and, if asked, the run's state; for the holder of the run's lock."""
        gone = [*self.directory(run).glob(".*.tmp")]
        with storage(self.directory(run)):
            for path in [*gone, self.directory(run) / "state.pt"] if state else gone:
                path.unlink(missing_ok=True)

    def set_aside(self, path: Path) -> Path:
        """Rename a damaged file; returns its new path, which no file had."""
        number = 1
        while (aside := path.with_name(f"damaged-{number}-{path.name}")).exists():
            number += 1
        with storage(path):
            path.rename(aside)
        return aside

    @contextmanager
    def held(self, run: Run) -> Iterator[bool]:
        """Whether this process now holds the run's lock; if so, until the end of the block or of the process."""
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
            if path.is_dir():
                self.set_aside(path)
            write_atomically(path, content, durable)


def _content(path: Path) -> bytes | None:
    """What is in a file, None if there is none; ValueError for a folder in its place."""
    with storage(path):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except IsADirectoryError:
            raise ValueError(f"{path} must be a file, got a folder") from None


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
