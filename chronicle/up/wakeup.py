"""Signals as events: a wait that ends early when a child ends or somebody asks for the stop."""

from __future__ import annotations

import select
import signal
import socket
from types import FrameType
from typing import Any, Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """A signal asked for the stop."""


class Wakeup:
    """While it is entered, SIGINT, SIGTERM and SIGHUP ask for a stop, for good, instead of ending the process."""

    def __init__(self) -> None:
        self._asked = False
        self._replaced: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._replaced_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._replace(signal.SIGCHLD, self._ignore)
        for number in STOP_SIGNALS:
            # nohup: whoever started us does not want the end of the terminal to end us.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._replace(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._replaced.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._replaced_fd)
        self._reader.close()
        self._writer.close()

    def pause(self, seconds: float, *readable: socket.socket) -> None:
        """Waits at most `seconds`, less where a signal comes or a socket can be read. Raises Stopped once asked to."""
        if not self._asked:
            select.select([self._reader, *readable], [], [], max(seconds, 0))
            self._drain()
        if self._asked:
            raise Stopped

    def _drain(self) -> None:
        try:
            while self._reader.recv(4096):
                pass
        except BlockingIOError:
            return

    def _replace(self, number: signal.Signals, handler: Any) -> None:
        self._replaced[number] = signal.signal(number, handler)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True

    def _ignore(self, _number: int, _frame: FrameType | None) -> None:
        """SIGCHLD has to have a handler for the wakeup to see it."""
