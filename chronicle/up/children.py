"""Child processes: started so that they do not outlive us, stopped with a deadline, recognised where they did."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen

from chronicle.errors import StartError
from chronicle.logs import STANDARD_ERROR
from chronicle.up.privileges import Account, before_exec

KILL_SECONDS = 0.5
LOG_LIMIT = 10 * 2**20

Pause = Callable[[float], None]
"""Waits at most so many seconds; may return early, and may raise to abandon what is going on."""

Step = tuple[signal.Signals, float]
"""A signal, and until when to wait for its effect: seconds after the stop began."""


class Log:
    """The file that a child writes to, and where in it the present process began."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.began = 0

    def begin(self) -> Path:
        """Notes the start of a process; a file that has grown large becomes `.old` first."""
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        if self._size() > LOG_LIMIT:
            os.replace(self.path, self.path.with_suffix(".log.old"))
        self.began = self._size()
        return self.path

    def tail(self, lines: int = 4) -> str:
        """The last lines that the present process wrote, as one line."""
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            file.seek(max(self.began, self._size() - 20_000))
            return " | ".join(file.read().decode(errors="replace").strip().splitlines()[-lines:])
        return ""

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0


def spawn(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str],
    death_signal: signal.Signals,
    folder: Path | None = None,
    log: Path | None = None,
    given: str | None = None,
    account: Account | None = None,
    own_namespace: bool = False,
    pass_fds: Sequence[int] = (),
) -> Popen[bytes]:
    """Starts a child in a session of its own, which gets `death_signal` when we die (on Linux).

    It works in `folder`, or where we do, writes to `log`, or to our standard error, and reads `given`. Raises
    StartError where it cannot be started.
    """
    with contextlib.ExitStack() as files:
        output = files.enter_context(log.open("ab")) if log else STANDARD_ERROR
        try:
            process = Popen(  # noqa: S603
                command,
                stdin=DEVNULL if given is None else PIPE,
                stdout=output,
                stderr=output,
                env=environment,
                cwd=folder,
                pass_fds=pass_fds,
                start_new_session=True,
                preexec_fn=before_exec(death_signal, account, own_namespace=own_namespace),  # noqa: PLW1509
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise StartError(f"{command[0]} cannot be started: {error}") from error
    if process.stdin:
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write((given or "").encode())
    return process


def finish(process: Popen[bytes], pause: Pause) -> int:
    """Waits for the end of a child that works its task off, and gives its exit code; ends it where `pause` raises."""
    try:
        while process.poll() is None:
            pause(0.05)
    except BaseException:
        stop(process, [(signal.SIGTERM, 2.0)])
        raise
    return process.returncode


def stop(process: Popen[bytes], steps: Sequence[Step], began: float | None = None) -> None:
    """Ends a child: each signal in turn with its patience, at last SIGKILL. The stop began now, or at `began`."""
    began = time.monotonic() if began is None else began
    for number, seconds in (*steps, (signal.SIGKILL, KILL_SECONDS + _last(steps))):
        process.send_signal(number)
        # A child that was stopped (kill -STOP) would not even see the signal.
        process.send_signal(signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(began + seconds - time.monotonic(), 0))
            return


def is_running(pid: int, *words: str) -> bool:
    """Whether `pid` is a living process whose command line contains each of `words`.

    A process id alone proves nothing: after a reboot, or in a container, it may be another program's.
    """
    line = _command_line(pid)
    return bool(line) and all(word in line for word in words)


def exists(pid: int) -> bool:
    """Whether the system knows the process, be it alive or a zombie that nobody collects (as in some containers)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def end_orphan(pid: int, words: Sequence[str], steps: Sequence[Step], pause: Pause) -> None:
    """Ends a process that an earlier run left behind, if `pid` still is one whose command line has `words`."""
    began = time.monotonic()
    for number, seconds in (*steps, (signal.SIGKILL, KILL_SECONDS + _last(steps))):
        if not is_running(pid, *words):
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            os.kill(pid, signal.SIGCONT)
        while is_running(pid, *words) and time.monotonic() < began + seconds:
            pause(0.05)


def _last(steps: Sequence[Step]) -> float:
    return steps[-1][1] if steps else 0.0


def _command_line(pid: int) -> str:
    """The arguments of a process, each followed by a space; empty for one that is gone or a zombie."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    listing = subprocess.run(  # noqa: S603
        ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    line = listing.stdout.strip()
    return "" if line.endswith("<defunct>") or not line else line + " "
