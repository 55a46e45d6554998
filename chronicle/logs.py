"""Structured logs: JSON lines off a terminal, readable ones on it. A constant message plus fields, never a payload."""

from __future__ import annotations

import logging
import os
import queue
import re
import sys
import threading
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import Any

import structlog
from structlog.typing import Processor, WrappedLogger

MAX_FIELD = 500
MAX_TRACEBACK = 10_000
MOST_NAMED = 20
"""Requests of a batch that a line names."""

STANDARD_ERROR = 2
MOST_LINES, PATIENCE_SECONDS = 10_000, 1.0
"""So many lines wait to be written, then further ones are lost; and who ends waits so long for them."""


class Output(logging.Handler):
    """Standard error, written in a thread: where nobody reads (a terminal after Ctrl-S, a full pipe) nothing waits."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: queue.Queue[bytes] = queue.Queue(MOST_LINES)
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a line."""
        try:
            line = f"{self.format(record)}\n".encode(errors="backslashreplace")
        except Exception:
            self.handleError(record)
            return
        with suppress(queue.Full):
            self._lines.put_nowait(line)

    def flush(self) -> None:
        """Waits a moment until all is written."""
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(lambda: not self._lines.unfinished_tasks, PATIENCE_SECONDS)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            with suppress(OSError):  # nobody is there to read it
                while line:
                    line = line[os.write(STANDARD_ERROR, line) :]
            self._lines.task_done()


_QUOTES = re.compile(r"\n(?:DETAIL|CONTEXT|QUERY):(?:.|\n(?!\n|Traceback |During |The above ))*")
"""What PostgreSQL adds to an error quotes the data that it is about."""


def _cut(_: WrappedLogger, __: str, entry: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Escapes control characters of text fields and cuts long ones, so that user text cannot forge a line."""
    for key, value in entry.items():
        if isinstance(value, str):
            entry[key] = _traceback(value) if key == "exception" else _field(value)
    return entry


def _field(text: str) -> str:
    safe = _escaped(_QUOTES.sub("", text))
    return safe if len(safe) <= MAX_FIELD else safe[:MAX_FIELD] + "…"


def _traceback(text: str) -> str:
    """The end of it, where the error is."""
    lines = _QUOTES.sub("", text).splitlines()
    safe = "\n".join(_escaped(line) for line in lines)
    return safe if len(safe) <= MAX_TRACEBACK else "…" + safe[-MAX_TRACEBACK:]


def _escaped(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def configure(service: str) -> None:
    """Sends every log line of this process, ours and the libraries', to standard error as `service`."""

    def named(_: WrappedLogger, __: str, entry: MutableMapping[str, Any]) -> Mapping[str, Any]:
        entry["service"] = service
        return entry

    terminal = bool(sys.stderr and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        named,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _cut,
    ]
    renderer: Processor = structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    handler = Output()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for noisy in ("uvicorn", "httpx2", "httpcore2", "psycopg.pool", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def flush() -> None:
    """Waits a moment until all lines are written: before something else is, and before the process ends at once."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def get(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger
