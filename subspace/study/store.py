"""Results on disk: one JSON per run, in a directory named by the hash of its configuration.

    FOLDER/runs/<hash>/result.json
        {"schema": 1, "configuration": {...}, "status": "finished" | "failed", "environment": {...},
         "metrics": {...} | null, "error": null | "one sentence", "traceback": null | "...", "warnings": [...],
         "sha256": "of all the rest"}

A file is written beside its place, brought to the disk and then renamed, so a reader sees a whole result or none. A
file that is damaged all the same is renamed to result.damaged-1.json (-2, ...), never deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from subspace.study.config import Run, canonical

SCHEMA = 1
Record = dict[str, Any]


class Store:
    """The results under a folder. OSError where it cannot be made or written."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.folder):
            pass

    def path(self, run: Run) -> Path:
        """Where the run's record is or will be."""
        return self.folder / "runs" / run.hash / "result.json"

    def read(self, run: Run) -> Record | None:
        """The record of a run, None if there is none; ValueError saying what is wrong with a damaged file."""
        path = self.path(run)
        if not path.exists():
            return None
        try:
            record = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} must be JSON, got {error}") from None
        if complaint := defect(record, run):
            raise ValueError(f"{path} must be an intact result of its run, got {complaint}")
        intact: Record = record
        return intact

    def set_aside(self, run: Run) -> Path:
        """Rename a run's damaged file; returns its new place, which no file had."""
        path, number = self.path(run), 1
        while (aside := path.with_name(f"result.damaged-{number}.json")).exists():
            number += 1
        path.rename(aside)
        return aside

    def write(self, run: Run, record: Record) -> None:
        """Put a run's record in its place, at once and for good; one that is there already is replaced."""
        record = {"schema": SCHEMA, "configuration": run.configuration(), **record}
        path = self.path(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, json.dumps({**record, "sha256": checksum(record)}, indent=1, allow_nan=False) + "\n")


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
    if record.get("configuration") != run.configuration():
        return "the result of another configuration"
    return None


def replace(path: Path, text: str) -> None:
    """Write a file so that it is there whole or, after a crash at any moment, as it was before."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # the renaming itself, too
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
