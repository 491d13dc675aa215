"""Published archives: where they are on this machine, whether they are whole, and how to get them."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

DAMAGE = (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile)


class Archive(NamedTuple):
    """A file that is published at an address, its checksum, and the folder that is in it."""

    address: str
    md5: str
    folder: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.address.rpartition("/")[2]

    def find(self, data_dir: str | Path | None) -> Path | None:
        """The archive in the folder of data sets or, if there is one, the folder that was unpacked from it."""
        folder = data_folder(data_dir)
        unpacked = folder if folder.name == self.folder else folder / self.folder
        if unpacked.is_dir():
            return unpacked
        return folder / self.name if (folder / self.name).is_file() else None

    def get(self, data_dir: str | Path | None, download: bool) -> Path:
        """As `find`, after a download where there is none; ValueError, saying how to get it, without."""
        if found := self.find(data_dir):
            return found
        folder = data_folder(data_dir)
        if not download:
            raise self.missing(folder)
        self.download(folder)
        return folder / self.name

    def missing(self, folder: Path) -> ValueError:
        """The error for a folder without it."""
        return ValueError(
            f"data_dir must be a folder with {self.name} (or its folder {self.folder}), got {folder} without: save "
            f"{self.address} there, or name another folder by data_dir or the variable SUBSPACE_DATA, or set "
            "download = true"
        )

    def download(self, folder: Path) -> None:
        """Fetch it to the folder, whole or not at all; ValueError where that fails."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as part:
                fetched = Path(part) / self.name
                with urllib.request.urlopen(self.address) as source, fetched.open("wb") as file:
                    shutil.copyfileobj(source, file)
                check_md5(fetched, self.md5, self.address)
                fetched.replace(folder / self.name)
        except OSError as error:
            raise ValueError(f"{self.address} must be downloadable to {folder}, got {error}") from error

    @contextmanager
    def reading(self, path: Path) -> Iterator[None]:
        """ValueError, naming the file or folder, where what is in it cannot be read."""
        try:
            yield
        except (ValueError, LookupError, SyntaxError, RuntimeError, *DAMAGE) as error:
            raise ValueError(f"{path} must be as {self.address} has it, got an error in reading it: {error}") from error


def data_folder(data_dir: str | Path | None) -> Path:
    """The folder of data sets: data_dir, or else that of the variable SUBSPACE_DATA, or ~/.cache/subspace/data."""
    if not isinstance(data_dir, str | Path | None):
        raise ValueError(f"data_dir must be the path of a folder, got {data_dir!r}")
    return Path(data_dir or os.environ.get("SUBSPACE_DATA") or "~/.cache/subspace/data").expanduser()


def check_md5(path: Path, md5: str, address: str) -> None:
    """ValueError, saying where to get it, if the file is another than the published one."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    if digest.hexdigest() != md5:
        raise ValueError(f"{path} must have the MD5 {md5} of what is published at {address}, got {digest.hexdigest()}")
