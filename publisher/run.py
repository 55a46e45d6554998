"""`chronicle publish`: open a source, send its events, say what became of them."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from urllib.request import getproxies

import httpx2
from rich.console import Console

from chronicle import clients, screen
from chronicle.errors import ChronicleError
from publisher import report
from publisher.generator import Generator
from publisher.jsonlines import opened
from publisher.sending import GIVEN_UP, INTERRUPTED, REQUEST_BYTES, TIMEOUT, TRIES, Sender, Sleep
from publisher.sources import Source, batches
from publisher.spill import Spill, default_path
from publisher.tally import Tally

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Options:
    """What to publish, and where."""

    url: str
    """The service; `/publish` is added."""
    event_count: int = 20_000
    """Events to generate, where there is no file."""
    duplicate_ratio: float = 0.3
    """The share of them that repeats an earlier one."""
    batch_size: int = 1000
    """Events in one request at most."""
    file: Path | None = None
    """JSON Lines to publish instead; `-` is standard input."""
    seed: int | None = None
    """Generates the same events in each run with the same seed; None: new ones."""
    concurrency: int = 4
    """Requests at a time."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What each request carries besides its content type: the API key."""
    rejected: Path | None = None
    """Where to keep what is not accepted; None: a new file in the current directory."""


def publish(options: Options, *, sleep: Sleep = asyncio.sleep, console: Console | None = None) -> int:
    """Publishes and reports on standard output, or on `console`; `sleep` does the waiting between tries.

    Gives the exit code: 0 where every event was accepted, 1 where one was not, 128 and the number of the signal that
    ended it early. Raises ChronicleError where it cannot begin, and SpillError where it cannot keep a rejected event.
    """
    console = console or screen.console()
    check(options)
    with source_of(options) as source, Spill(options.rejected or default_path(datetime.now())) as spill:
        tally = asyncio.run(_send(options, source, spill, sleep, console))
    console.print(report.summary(tally))
    if source.problem:
        report.show(console, source.problem)
    if tally.stopped == GIVEN_UP:
        report.show(console, f"stopped early: {patience(options)} requests in a row failed {TRIES} times each")
    if spill.path:
        for line in report.failures(tally, source.unit, spill.path):
            report.show(console, line)
    return 128 + tally.signal if tally.signal else int(tally.failed > 0 or source.problem is not None)


def check(options: Options) -> None:
    """Raises ChronicleError for numbers that mean nothing."""
    for name, least in (("event_count", 0), ("batch_size", 1), ("concurrency", 1)):
        if getattr(options, name) < least:
            raise ChronicleError(f"{name} must be at least {least}")
    if not 0 <= options.duplicate_ratio < 1:
        raise ChronicleError("duplicate_ratio must be at least 0 and below 1")


def patience(options: Options) -> int:
    """How many requests may fail for good, one after the other, before the service is given up."""
    return 2 * options.concurrency


def source_of(options: Options) -> AbstractContextManager[Source]:
    """The file's events where there is a file, else generated ones. Raises ChronicleError where it cannot be read."""
    if options.file:
        return opened(options.file)
    return nullcontext(Generator(options.event_count, options.duplicate_ratio, options.seed))


async def _send(options: Options, source: Source, spill: Spill, sleep: Sleep, console: Console) -> Tally:
    url = await endpoint(options.url)
    limits = httpx2.Limits(max_connections=options.concurrency)
    started = time.monotonic()
    with report.progress(console, source.total) as advance:
        headers = dict(options.headers)
        async with clients.opened(httpx2.AsyncClient, url, timeout=TIMEOUT, limits=limits, headers=headers) as client:
            sender = Sender(client, str(url), spill=spill, patience=patience(options), sleep=sleep, advance=advance)

            def stop(number: int) -> None:
                sender.tally.signal = number
                source.stop()
                sender.stop(INTERRUPTED)

            with signals_to(stop):
                await sender.run(batches(source.events(), options.batch_size, REQUEST_BYTES), options.concurrency)
    sender.tally.seconds = time.monotonic() - started
    return sender.tally


async def endpoint(base: str) -> httpx2.URL:
    """The URL to post to. Raises ChronicleError where `base` is no HTTP URL, or its host has no address.

    Behind a proxy it is the proxy that must know the host.
    """
    url = clients.address(base, "/publish")
    if getproxies():
        return url
    try:
        await asyncio.get_running_loop().getaddrinfo(url.host, None)
    except (OSError, UnicodeError) as error:
        raise ChronicleError(f"{url.host} has no address: {error}") from None
    return url


@contextmanager
def signals_to(stop: Callable[[int], None]) -> Iterator[None]:
    """Calls `stop` with the first Ctrl-C or SIGTERM; a second one ends the process as ever."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    loop = asyncio.get_running_loop()

    def release() -> None:
        for number in SIGNALS:
            loop.remove_signal_handler(number)

    def on_signal(number: int) -> None:
        release()
        stop(number)

    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        release()
