"""Set up this checkout and use it: `python dev.py study [options]` or `python dev.py test [pytest options]`.

Needs Python >= 3.10 and nothing else. Makes .venv here with the tested versions (constraints.txt), again only when
pyproject.toml, constraints.txt or the compiled kernels' source has changed.
"""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
EVERYTHING = ["pytest", "-q", "-n", "2", "-m", "", "--hypothesis-profile=laws"]
CHECKS = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["lint-imports"])


def set_up() -> None:
    """Make .venv and install this checkout with the extra `dev`, unless that is done already."""
    sources = sorted((ROOT / "subspace" / "products" / "native" / "cpp").iterdir())
    wanted = [path.read_bytes() for path in (ROOT / "pyproject.toml", ROOT / "constraints.txt", *sources)]
    stamp, digest = ENVIRONMENT / "installed", hashlib.sha256(b"".join(wanted) + sys.version.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    print("setting up .venv (some minutes, once) ...", flush=True)
    venv.create(ENVIRONMENT, clear=True, with_pip=True)
    install = [PYTHON, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    subprocess.run([*install, "--editable", f"{ROOT}[dev]"], check=True)
    stamp.write_text(digest)


def main(command: str = "", *options: str) -> int:
    """Run one of the two commands; the exit status is 0 if every part of it succeeds."""
    if command not in ("study", "test") or sys.version_info < (3, 10):
        print(f"usage: python dev.py study|test [options], with Python >= 3.10; got {command!r}", file=sys.stderr)
        return 2
    set_up()
    if command == "study":
        return subprocess.call([PYTHON, "-m", "subspace.study.cli", "run", *options])
    started = [start(check, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for check in CHECKS]
    failed = start([*EVERYTHING, *options]).wait()
    for check, process in zip(CHECKS, started, strict=True):  # which have long ended
        print(f"{' '.join(check)}:", process.communicate()[0].decode(), sep="\n", end="", flush=True)
        failed = failed or process.returncode
    return int(failed != 0)


def start(command: list[str], **options: int) -> subprocess.Popen[bytes]:
    """A program of .venv in this checkout."""
    return subprocess.Popen([PYTHON.with_name(command[0]), *command[1:]], cwd=ROOT, **options)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
