"""What people read on a terminal: our users' text, as it is and harmless."""

from __future__ import annotations

from rich.console import Console
from rich.table import Column, Table


def console(*, stderr: bool = False) -> Console:
    """A console for text as it is: an id may look like Rich's markup, or like the name of an emoji."""
    return Console(stderr=stderr, markup=False, emoji=False)


def table(*headers: str, title: str | None = None) -> Table:
    """A table that cuts nothing off: what is wider than its column goes on in the next line."""
    return Table(*(Column(header, overflow="fold") for header in headers), title=title)


def clean(text: str, mark: str = "�") -> str:
    """Somebody else's text made harmless for a terminal, on one line: `mark` stands for what is not printable."""
    return text if text.isprintable() else "".join(char if char.isprintable() else mark for char in text)
