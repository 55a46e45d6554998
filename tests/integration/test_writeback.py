"""What PostgreSQL adds to its tables goes to the disk soon."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from servers import eventually, unwritten_pages
from structlog.testing import capture_logs

from chronicle import database
from chronicle.up.writeback import Writeback

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps it for 30 s, and has the call")

ADD_TWO_MEGABYTES = "INSERT INTO grows SELECT repeat('x', 200) FROM generate_series(1, 9000)"


def test_each_look_begins_to_write_what_was_added(server_home: Path, db: psycopg.Connection[Any]) -> None:
    data = server_home / "postgres"
    writeback = Writeback(data)
    db.execute("CREATE TABLE grows (padding text)")
    table = data / str(database.value(db, "SELECT pg_relation_filepath('grows')"))
    for _ in range(2):
        db.execute(ADD_TWO_MEGABYTES)
        if not unwritten_pages(table):
            pytest.skip("this kernel does not say what it has written, or there is no disk below")
        writeback.look()
        eventually(lambda: unwritten_pages(table) == 0, 5)


def test_files_that_are_dropped_meanwhile_disturb_nothing(server_home: Path, db: psycopg.Connection[Any]) -> None:
    writeback = Writeback(server_home / "postgres")
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            writeback.look()

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            for _ in range(5):
                db.execute("CREATE DATABASE short_lived")
                db.execute("DROP DATABASE short_lived")
        finally:
            over.set()
        looking.result()


def test_where_it_cannot_look_it_says_so_and_ends(tmp_path: Path) -> None:
    with capture_logs() as lines:
        Writeback(tmp_path).run()
    assert [line["event"] for line in lines] == ["when tables are written is left to the kernel"]
    assert str(tmp_path) in lines[0]["error"]
