"""CHRONICLE_HOME: one `chronicle up` at a time, and nothing left of the one before."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from chronicle import runfile
from chronicle.errors import StartError
from chronicle.up.children import Pause, end_orphan


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Makes the folder, and holds its lock; the lock goes with the process, whatever ends it.

    Raises StartError, saying who holds it, where another one does.
    """
    # As root the servers are another user, who has to pass; each file and folder inside is closed to others.
    mode = 0o700 if os.geteuid() else 0o711
    try:
        home.mkdir(mode=mode, parents=True, exist_ok=True)
        lock = open(home / "lock", "a+")  # noqa: SIM115
    except OSError as error:
        raise StartError(f"CHRONICLE_HOME {home} cannot be used: {error.strerror} ({error.filename})") from None
    with lock:
        _take(lock, home)
        yield


def marks(home: Path) -> tuple[str, str]:
    """Of the command line of our services: whose they are. Python takes any `-X`, and does nothing with this one."""
    return "-X", f"chronicle_home={home}"


def end_leftovers(home: Path, pause: Pause) -> None:
    """Ends services that an earlier run left, where its supervisor was killed. The servers look after their own."""
    for name, part in runfile.read(home).items():
        service = name.partition("-")[0]
        if service in ("api", "projector") and (pid := part.get("pid")):
            end_orphan(pid, (f"{' '.join(marks(home))} -m chronicle {service} ",), [(signal.SIGTERM, 3.0)], pause)
    runfile.remove(home)


def emptied(folder: Path) -> Path:
    """The folder, with nothing in it and closed to others."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    return folder


def _take(lock: TextIO, home: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise StartError(_held(home, lock.read().strip())) from None
    except OSError as error:
        raise StartError(
            f"{lock.name} cannot be locked: {error.strerror}; set CHRONICLE_HOME to a local disk"
        ) from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()


def _held(home: Path, holder: str) -> str:
    running = runfile.read(home)
    url = running.get("api", {}).get("url") if str(running.get("supervisor", {}).get("pid")) == holder else None
    where = f", its API is {url}" if url else ""
    return f"chronicle up already runs on {home} (pid {holder}{where}): stop it first, or set another CHRONICLE_HOME"
