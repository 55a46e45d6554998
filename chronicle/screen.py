"""What people read on a terminal: our users' text, as it is and harmless."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table

from chronicle.errors import ChronicleError
from chronicle.logs import STANDARD_ERROR

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Output(io.FileIO):
    """Standard output, whose faults (a full disk) are errors of ours; that nobody reads any more stays what it is."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Raises ChronicleError where it cannot be written; what is printed later goes nowhere."""
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # or Python complains at its end
            raise ChronicleError(f"standard output cannot be written: {error.strerror}") from None


def guard() -> None:
    """Makes standard output such an Output, where it is open. What is closed goes nowhere, not into our next file."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= STANDARD_ERROR:
        pass
    os.close(handle)
    if given := sys.stdout:
        raw = io.BufferedWriter(Output(given.fileno(), "wb", closefd=False))
        sys.stdout = io.TextIOWrapper(raw, given.encoding, given.errors, line_buffering=True)


def console(*, stderr: bool = False) -> Console:
    """A console for text as it is: an id may look like Rich's markup, or like the name of an emoji."""
    return Console(stderr=stderr, markup=False, emoji=False)


def table(*headers: str, title: str | None = None) -> Table:
    """A table that cuts nothing off: what is wider than its column goes on in the next line."""
    return Table(*(Column(header, overflow="fold") for header in headers), title=title)


def clean(text: str, mark: str = "�") -> str:
    """Somebody else's text made harmless for a terminal, on one line: `mark` stands for what is not printable."""
    return text if text.isprintable() else "".join(char if char.isprintable() else mark for char in text)
