"""Published archives on disk: where they are, whether they are whole, and how to get them."""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple


class Archive(NamedTuple):
    """A file that is published at an address, its checksum, and the folder that is in it."""

    address: str
    md5: str
    folder: str

    @property
    def name(self) -> str:
        """The file's."""
        return self.address.rpartition("/")[2]


def home(data_dir: str | Path | None) -> Path:
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


def there(folder: Path, *archives: Archive) -> bool:
    """Whether the folder has one of them, packed or not, or is an unpacked one."""
    packed_or_not = ((folder / archive.name).is_file() or (folder / archive.folder).is_dir() for archive in archives)
    return folder.name in {archive.folder for archive in archives} or any(packed_or_not)


def absent(folder: Path, *archives: Archive, download: bool = False) -> ValueError:
    """The error of a data set that is not there, which says how to get it; download: that was set."""
    names = " or ".join(f"{archive.name} (or its folder {archive.folder})" for archive in archives)
    return ValueError(
        f"data_dir must be a folder with {names}, got {folder} without: save {archives[0].address} there, or name "
        "another folder by --data-dir, data_dir or the variable SUBSPACE_DATA, or "
        + ("pip install torchvision or datasets, which download it" if download else "set download = true")
    )


def unpacked(path: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Files of a .tar.gz by their names in it, read in one pass; ValueError if it is damaged, or one is not there."""
    wanted = set(names)
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if name in wanted and (file := archive.extractfile(member)):
                    found[name] = file.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ValueError(f"{path} must be a whole .tar.gz archive, got an error in reading it: {error}") from error
    if missing := wanted - set(found):
        raise ValueError(f"{path} must have the file {min(missing)}, got an archive without it")
    return found


def downloaded(archive: Archive, folder: Path) -> bool:
    """Have torchvision fetch an archive to the folder, whole or not at all; False where it is not installed."""
    try:
        fetch = import_module("torchvision.datasets.utils").download_url
    except ModuleNotFoundError:
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as part:
            fetch(archive.address, part, archive.name, archive.md5)
            (Path(part) / archive.name).replace(folder / archive.name)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{archive.address} must be downloadable to {folder}, got {error}") from error
    return True
