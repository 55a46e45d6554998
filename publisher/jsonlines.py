"""Events from a JSON Lines file or from standard input, read as they are needed."""

from __future__ import annotations

import asyncio
import codecs
import os
import select
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from chronicle.errors import ChronicleError
from publisher.sources import Event

STANDARD_INPUT = Path("-")

READ_SIZE = 2**20
"""Bytes of one read: the most that a pipe can hold, so one read empties it."""

IDLE = 0.3
"""Seconds without input after which what was read is sent, so that `tail -f` can be published."""

BLANK = b" \t\r"

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


class JsonLines:
    """The source that reads one event a line from an open file descriptor."""

    unit = "line"
    total: int | None = None

    def __init__(self, descriptor: int) -> None:
        self.problem: str | None = None
        self._descriptor = descriptor
        self._regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._stopped = False
        self._wake = asyncio.Event()

    async def events(self) -> AsyncIterator[Event | None]:
        """One event for each line that is not blank. After `stop`, a file is read to its end and a pipe emptied."""
        number = 0
        pieces: list[bytes] = []
        async for chunk in self._chunks():
            if chunk is None:
                yield None
                continue
            head, *others = chunk.split(b"\n")
            pieces.append(head)
            if not others:
                continue
            whole = [b"".join(pieces), *others[:-1]]
            for event in events_of(whole, number + 1):
                yield event
            number, pieces = number + len(whole), others[-1:]
        for event in events_of([b"".join(pieces)], number + 1):
            yield event

    def stop(self) -> None:
        """Ends the waiting for a writer on the other side of a pipe."""
        self._stopped = True
        self._wake.set()

    async def _chunks(self) -> AsyncIterator[bytes | None]:
        while True:
            if not await self._readable(IDLE):
                yield None
                if not await self._readable(None):
                    return
            last = self._stopped and not self._regular
            chunk = self._read()
            if chunk:
                yield chunk
            if last or not chunk:
                return

    async def _readable(self, seconds: float | None) -> bool:
        """Whether there is something to read, or the end; waits at most `seconds` (None: for ever) for it."""
        if self._ready() or self._stopped:
            return self._ready()
        self._wake.clear()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._descriptor, self._wake.set)
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._descriptor)
        return self._ready()

    def _ready(self) -> bool:
        return bool(select.select([self._descriptor], [], [], 0)[0])

    def _read(self) -> bytes:
        try:
            return os.read(self._descriptor, READ_SIZE)
        except OSError as error:
            self.problem = f"the input could not be read to its end: {error.strerror}"
            return b""


def events_of(lines: list[bytes], first: int) -> Iterator[Event]:
    """The events of some lines, the first of which has the number `first`; a byte order mark there is left out."""
    for number, line in enumerate(lines, start=first):
        text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if text.strip(BLANK):
            yield Event(number, text, problem_of(text))


def problem_of(text: bytes) -> str | None:
    """Why the text cannot stand in a request as an event, or None. What its fields must be is the service's to say."""
    try:
        text.decode()
        _OBJECT.decode(text)
    except UnicodeDecodeError:
        return "not UTF-8"
    except msgspec.DecodeError:
        return "not a valid JSON object"
    except RecursionError:
        return "nested too deeply"
    return None


@contextmanager
def opened(file: Path) -> Iterator[JsonLines]:
    """The source that reads `file`, or standard input for `-`.

    Raises ChronicleError where that is not possible.
    """
    try:
        descriptor = os.dup(0) if file == STANDARD_INPUT else os.open(file, os.O_RDONLY)
    except OSError as error:
        raise ChronicleError(f"cannot read {file}: {error.strerror}") from None
    try:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise ChronicleError(f"cannot read {file}: it is a directory")
        yield JsonLines(descriptor)
    finally:
        os.close(descriptor)
