"""`CHRONICLE_HOME/run.json`: what `chronicle up` is running right now, for people and for the other commands."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TypedDict, cast

from chronicle.errors import ChronicleError


class Part(TypedDict, total=False):
    """One running part: its process, and where it answers; the projector has an address for its metrics alone."""

    pid: int
    url: str
    metrics: str


def path(home: Path) -> Path:
    """Where the file of this CHRONICLE_HOME is."""
    return home / "run.json"


def read(home: Path) -> dict[str, Part]:
    """The parts by name (supervisor, postgres, broker, api, projector); empty where nothing runs.

    Raises ChronicleError where the file is somebody else's.
    """
    try:
        said = json.loads(path(home).read_text())
    except PermissionError as error:
        raise ChronicleError(f"{path(home)} cannot be read: {error.strerror}") from None
    except (OSError, ValueError):
        return {}
    whole = isinstance(said, dict) and all(isinstance(part, dict) for part in said.values())
    return cast(dict[str, Part], said) if whole else {}


def write(home: Path, parts: dict[str, Part]) -> None:
    """Replaces the file in one step, readable by its owner alone: the URLs carry passwords."""
    fresh = path(home).with_suffix(".tmp")
    fresh.touch(mode=0o600)
    fresh.write_text(json.dumps(parts, indent=2) + "\n")
    os.replace(fresh, path(home))


def remove(home: Path) -> None:
    """Forgets what ran."""
    path(home).unlink(missing_ok=True)
