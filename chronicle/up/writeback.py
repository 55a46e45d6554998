"""Has Linux write what PostgreSQL adds to its tables soon and in small parts, not what half a minute brought at once.

PostgreSQL makes a file longer by a page of zeros, and leaves it to the kernel when that goes to the disk. Linux keeps
such pages for 30 s (`vm.dirty_expire_centisecs`) and then writes them all, and a commit that comes meanwhile waits for
the disk behind them. Of what its checkpointer and background writer write, PostgreSQL has small parts written at once
(`checkpoint_flush_after`, `bgwriter_flush_after`), by the call that is used here; for what makes a table longer it has
no such setting. Nothing depends on it: what is durable, fsync decides as before.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

from chronicle import logs

LOOK_SECONDS = 0.5
"""At 10 MB of tables a second, what gathers in it is on the disk in a few milliseconds; a look takes one."""

MADE_BY_INITDB = {"1", "4", "5"}
"""Object ids of template1, template0 and postgres: nobody writes into them."""

SYNC_FILE_RANGE_WRITE = 2

log = logs.get(__name__)


class Writeback(Thread):
    """Looks at the files of a running PostgreSQL for as long as this process lives. For Linux alone."""

    def __init__(self, data: Path) -> None:
        """`data`: its data directory."""
        super().__init__(name="writeback", daemon=True)
        self._databases = data / "base"
        self._sizes: dict[str, int] = {}
        self._libc = ctypes.CDLL(None, use_errno=True)

    def run(self) -> None:
        """Looks every LOOK_SECONDS; where the system does not allow it, says so and leaves all to the kernel."""
        try:
            while True:
                self.look()
                time.sleep(LOOK_SECONDS)
        except OSError as error:
            log.warning("when tables are written is left to the kernel", error=str(error))

    def look(self) -> None:
        """Has the kernel begin to write what the files have grown by since the last look. Raises OSError."""
        sizes: dict[str, int] = {}
        for file in self._files():
            with suppress(FileNotFoundError):  # dropped meanwhile
                before, size = self._sizes.get(file.path, 0), file.stat().st_size
                if size > before:
                    self._begin(file.path, before, size - before)
                sizes[file.path] = size
        self._sizes = sizes

    def _files(self) -> Iterator[os.DirEntry[str]]:
        for database in os.scandir(self._databases):
            if database.name.isdecimal() and database.name not in MADE_BY_INITDB:
                with suppress(FileNotFoundError):
                    yield from os.scandir(database.path)

    def _begin(self, path: str, offset: int, length: int) -> None:
        fd = os.open(path, os.O_RDONLY)
        try:
            where = (ctypes.c_int64(offset), ctypes.c_int64(length))
            if self._libc.sync_file_range(fd, *where, SYNC_FILE_RANGE_WRITE):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), path)
        finally:
            os.close(fd)
