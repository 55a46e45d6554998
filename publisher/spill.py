"""The file that keeps what was not accepted: JSON Lines that `chronicle publish --file` takes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from datetime import datetime
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from chronicle.errors import ChronicleError

SUFFIX = ".rejected.jsonl"


class SpillError(ChronicleError):
    """Events that were not accepted could not be kept."""


def default_path(now: datetime) -> Path:
    """The spill file of a run that began at `now`: in the current directory, or where temporary files go."""
    directory = Path() if os.access(Path(), os.W_OK) else Path(tempfile.gettempdir())
    return directory / f"publish-{now:%Y%m%dT%H%M%S}{SUFFIX}"


class Spill:
    """The spill file of one run, made when the first event needs it; a file that exists is never written to."""

    def __init__(self, wanted: Path) -> None:
        """Takes the name that is wanted; where it is taken already, a number is added to it.

        Raises ChronicleError where no file can be made there: better now than with events in hand.
        """
        if not os.access(wanted.parent, os.W_OK | os.X_OK):
            raise ChronicleError(f"cannot keep rejected events in {wanted.parent}: no writable directory")
        self.path: Path | None = None
        self._wanted = wanted
        self._file: BinaryIO | None = None

    def keep(self, texts: Iterable[bytes]) -> None:
        """Writes one line for each text. Raises SpillError where that fails."""
        try:
            file = self._file or self._create()
            file.writelines(text + b"\n" for text in texts)
        except OSError as error:
            raise SpillError(f"cannot keep rejected events in {self._wanted}: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Closes the file, on disk to the last byte. Raises SpillError where that fails."""
        if self._file is None:
            return
        try:
            with self._file as file:
                file.flush()
                os.fsync(file.fileno())
        except OSError as failure:
            raise SpillError(f"cannot keep rejected events in {self._wanted}: {failure.strerror}") from error

    def _create(self) -> BinaryIO:
        for number in count(1):
            path = self._wanted if number == 1 else numbered(self._wanted, number)
            try:
                path.touch(0o600, exist_ok=False)  # payloads are nobody else's
                self._file = path.open("r+b")
            except FileExistsError:
                continue
            self.path = path
            return self._file
        raise SpillError


def numbered(path: Path, number: int) -> Path:
    """The path with a number before its suffix: `a.rejected.jsonl` becomes `a-2.rejected.jsonl`."""
    suffix = SUFFIX if path.name.endswith(SUFFIX) else path.suffix
    return path.with_name(f"{path.name.removesuffix(suffix)}-{number}{suffix}")
