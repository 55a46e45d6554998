"""What `chronicle up` tells people once all runs."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from chronicle.errors import StartError
from chronicle.up import binaries

DEFAULT_URL = "http://127.0.0.1:8080"


def show(url: str, home: Path, database_url: str | None, metrics: str) -> None:
    """Writes it to standard output.

    `database_url` is our own PostgreSQL's; None where DATABASE_URL names another. `metrics`: where the projectors' are.
    """
    lines = {
        "API": url,
        "Docs": f"{url}/docs",
        "Metrics": f"{url}/metrics, and of projectors {metrics}",
        "PostgreSQL": _psql(database_url),
        "Data": str(home),
        "Publish": _publish(url),
        "Stop": f"Ctrl-C, or kill {os.getpid()}",
    }
    _write("\nChronicleWeaver is running\n\n" + "".join(f"  {name:<12}{text}\n" for name, text in lines.items()) + "\n")


def _psql(database_url: str | None) -> str:
    if database_url is None:
        return 'psql "$DATABASE_URL"'
    try:
        program = _short(binaries.psql())
    except StartError:
        program = "psql"
    return f'{program} "{database_url}"'


def _publish(url: str) -> str:
    program = "chronicle" if shutil.which("chronicle") else _short(Path(sys.executable).with_name("chronicle"))
    return f"{program} publish" if url == DEFAULT_URL else f"AGGREGATOR_URL={url} {program} publish"


def _short(program: Path) -> str:
    """The program as somebody types it here."""
    if shutil.which(program.name) == str(program):
        return program.name
    here = Path.cwd()
    return shlex.quote(str(program.relative_to(here) if program.is_relative_to(here) else program))


def _write(text: str) -> None:
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError:
        # Nobody reads (`chronicle up | head -1`): that is no reason to stop, nor to complain at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
