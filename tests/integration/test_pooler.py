"""A transaction pooler before PostgreSQL: reading works through it, and whatever needs a session says that it does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from given import event, receive
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import InsufficientPrivilege, ReadOnlySqlTransaction
from servers import ROOT, eventually, free_port, own_environment

from chronicle import database, schema
from chronicle.errors import DatabaseAway
from projector.worker import Worker

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")

READER = """
CREATE ROLE {0} LOGIN PASSWORD 'reader-of-the-test' IN ROLE chronicle_query;
ALTER ROLE {0} SET timezone = 'UTC';
ALTER ROLE {0} SET statement_timeout = '20s';
ALTER ROLE {0} SET lock_timeout = '10s';
ALTER ROLE {0} SET search_path = 'public';
ALTER ROLE {0} SET default_transaction_isolation = 'read committed';
ALTER ROLE {0} SET default_transaction_read_only = on;
"""
"""As the README says: what the pooler does not pass on, the login has by itself."""

ADMINISTRATOR = """
ALTER DATABASE {0} SET default_transaction_isolation = 'serializable';
ALTER DATABASE {0} SET datestyle = 'German';
ALTER DATABASE {0} SET client_encoding = 'LATIN1';
ALTER DATABASE {0} SET search_path = 'app';
"""
"""What others set, and what the login has otherwise."""

BY_ITSELF = {
    "statement_timeout": "20s",
    "lock_timeout": "10s",
    "timezone": "UTC",
    "search_path": "public",
    "default_transaction_isolation": "read committed",
}

CONFIG = """
[databases]
{name} = host={host} port={port} user={user} password={password}
reading = host={host} port={port} dbname={name} user={reader} password=reader-of-the-test
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
ignore_startup_parameters = options,extra_float_digits
"""


@pytest.fixture
def pooled(database_url: str, db: psycopg.Connection[Any], server_home: Path) -> Iterator[str]:
    """The address of a pgbouncer: two sessions for all, as the reader in `reading`, as the owner in the database."""
    given, listen, reader = conninfo_to_dict(database_url), free_port(), f"reader_{uuid.uuid4().hex[:8]}"
    db.execute(READER.format(reader) + ADMINISTRATOR.format(given["dbname"]))
    config = server_home / f"{reader}.ini"
    words = {"name": given["dbname"], "listen": listen, "reader": reader, **given}
    config.write_text(CONFIG.format(**words))
    config.chmod(0o644)
    account = "nobody" if os.geteuid() == 0 else None  # it refuses to run as root
    process = subprocess.Popen([str(PGBOUNCER), "-q", config], user=account, stderr=subprocess.DEVNULL)
    yield f"postgresql://any@127.0.0.1:{listen}"
    process.terminate()
    process.wait(10)
    db.execute(f"DROP ROLE {reader}")


@pytest.fixture
def answering(pooled: str, database_url: str) -> Iterator[str]:
    """The URL of `chronicle query` on the pooler."""
    port = free_port()
    environment = own_environment(DATABASE_URL=f"{pooled}/reading")
    process = subprocess.Popen(
        [sys.executable, "-m", "chronicle", "query", "--port", str(port)], cwd=ROOT, env=environment
    )
    url = f"http://127.0.0.1:{port}"
    eventually(lambda: ready(url), timeout=30)
    yield url
    process.terminate()
    process.wait(10)


def ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/ready").status_code == 200
    except httpx2.TransportError:
        return False


async def test_the_query_service_answers_through_it_whoever_else_does(
    answering: str, database_url: str, worker: Worker
) -> None:
    await receive(database_url, [event(f"e{n}", source="Käse") for n in range(50)])
    eventually(worker.run_once)  # it is overdue after a second, since no ticket names it
    eventually(lambda: httpx2.get(f"{answering}/stats").json()["unique_processed"] == 50)
    paths = ["/stats", "/events?topic=t&limit=10", "/audit?event_id=e7", "/audit/summary"] * 25
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda path: httpx2.get(answering + path, timeout=30), paths))
    assert {answer.status_code for answer in answers} == {200}
    for path, answer in zip(paths, answers, strict=True):
        if "stats" not in path:  # its uptime goes on
            assert answer.json() == httpx2.get(answering + path).json()
    [record, *_] = answers[2].json()["audit_logs"]
    assert record["created_at"].endswith("Z")
    assert record["source"] == "Käse"


def test_its_sessions_have_the_deadlines_of_the_reader_and_cannot_write(answering: str, pooled: str) -> None:
    assert ready(answering)
    with psycopg.connect(f"{pooled}/reading", autocommit=True, prepare_threshold=None) as reading:
        for name, expected in BY_ITSELF.items():
            assert database.value(reading, "SELECT current_setting(%s)", [name]) == expected
        with pytest.raises((ReadOnlySqlTransaction, InsufficientPrivilege)):
            reading.execute("INSERT INTO outbox (batch_id) VALUES (gen_random_uuid())")


@pytest.mark.parametrize("service", ["command", "projector", "verify", "rebuild"])
def test_what_needs_a_session_of_its_own_refuses_it(pooled: str, database_url: str, service: str) -> None:
    through = f"{pooled}/{conninfo_to_dict(database_url)['dbname']}"
    eventually(lambda: "a pooler stands before PostgreSQL" in refusal(through, service))


async def test_so_does_what_runs_in_an_event_loop(pooled: str, database_url: str) -> None:
    through = f"{pooled}/{conninfo_to_dict(database_url)['dbname']}"
    eventually(lambda: "a pooler" in refusal(through, "command"))
    with pytest.raises(DatabaseAway, match="a pooler stands before PostgreSQL"):
        await database.connect_async(through, "command")


def test_migrating_refuses_it_too(pooled: str, database_url: str) -> None:
    through = f"{pooled}/{conninfo_to_dict(database_url)['dbname']}"
    eventually(lambda: "a pooler" in refusal(through, "command"))
    with pytest.raises(DatabaseAway, match="a pooler stands before PostgreSQL"):
        schema.migrate(through)


def refusal(url: str, service: str) -> str:
    """What the connection is refused with."""
    with pytest.raises(DatabaseAway) as caught:
        database.connect(url, service)
    return str(caught.value)
