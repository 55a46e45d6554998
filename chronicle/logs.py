"""Structured logs: JSON lines off a terminal, readable ones on it. A constant message plus fields, never a payload."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog
from structlog.typing import Processor, WrappedLogger

MAX_FIELD = 500
MAX_TRACEBACK = 10_000
MOST_NAMED = 20
"""Requests of a batch that a line names."""


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
    handler = logging.StreamHandler(sys.stderr)
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


def get(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger
