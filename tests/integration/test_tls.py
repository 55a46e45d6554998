"""Databases that are reached over TLS: the services work through it, and refuse a server that is not the one named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
import redis
import tls
import trustme
from given import event
from psycopg.conninfo import conninfo_to_dict
from servers import ROOT, eventually, free_port, own_environment

from chronicle import broker, database
from chronicle.errors import BrokerAway, DatabaseAway

AUTHORITY = trustme.CA()


@dataclass(frozen=True)
class Secured:
    """PostgreSQL and Valkey, and where both are behind TLS under the name localhost; `trusted` vouches for the name."""

    database: dict[str, str]
    database_port: int
    broker: str
    broker_port: int
    trusted: Path

    def database_url(self, host: str, trusted: Path) -> str:
        """As the README says, by a name for the server and the authority to trust."""
        user = f"{self.database['user']}:{self.database['password']}"
        where = f"{host}:{self.database_port}/{self.database['dbname']}"
        return f"postgresql://{user}@{where}?sslmode=verify-full&sslrootcert={trusted}"

    def redis_url(self, host: str, trusted: Path) -> str:
        """The same for the broker."""
        user = urlsplit(self.broker).netloc.partition("@")[0]
        return f"rediss://{user}@{host}:{self.broker_port}/0?ssl_ca_certs={trusted}"


@pytest.fixture
def secured(database_url: str, queue: str, tmp_path: Path) -> Iterator[Secured]:
    given, certificate = conninfo_to_dict(database_url), AUTHORITY.issue_cert("localhost")
    AUTHORITY.cert_pem.write_to_path(trusted := tmp_path / "ca.pem")
    words = {name: str(value) for name, value in given.items()}
    with (
        tls.before(int(words["port"]), certificate, postgres=True) as database_port,
        tls.before(urlsplit(queue).port or 0, certificate) as broker_port,
    ):
        yield Secured(words, database_port, queue, broker_port, trusted)


@pytest.fixture
def services(secured: Secured) -> Iterator[dict[str, str]]:
    """All three of them, which know the databases by these addresses only; the URLs of command and query."""
    environment = own_environment(
        DATABASE_URL=secured.database_url("localhost", secured.trusted),
        REDIS_URL=secured.redis_url("localhost", secured.trusted),
    )
    urls = {name: f"http://127.0.0.1:{free_port()}" for name in ("command", "query")}
    words = [["projector"], *([name, "--port", url.rsplit(":", 1)[1]] for name, url in urls.items())]
    started = [
        subprocess.Popen([sys.executable, "-m", "chronicle", *each], cwd=ROOT, env=environment) for each in words
    ]
    yield urls
    for process in started:
        process.terminate()
        process.wait(10)


def asked(url: str) -> httpx2.Response:
    """The answer to a GET; who does not listen yet has failed a check."""
    try:
        return httpx2.get(url)
    except httpx2.TransportError as error:
        raise AssertionError(error) from None


def unprocessed_and_done(url: str) -> tuple[int, int]:
    stats = asked(f"{url}/stats").json()
    return stats["in_flight"], stats["unique_processed"]


def test_the_services_work_over_tls(services: dict[str, str], queue: str) -> None:
    eventually(lambda: unprocessed_and_done(services["query"]) == (0, 0), timeout=30)
    eventually(lambda: read_by_a_worker(queue), timeout=30)
    eventually(lambda: asked(f"{services['command']}/ready").is_success, timeout=30)
    events = [event(f"e{n}") for n in range(50)]
    assert httpx2.post(f"{services['command']}/publish", json={"events": events}).status_code == 200
    eventually(lambda: unprocessed_and_done(services["query"]) == (0, 50))


def read_by_a_worker(queue: str) -> bool:
    """Whether somebody waits for tickets in the broker now."""
    with broker.connect(queue) as client:
        return any(connection["cmd"] == "xreadgroup" for connection in client.client_list())


@pytest.mark.parametrize("wrong", ["name", "authority"])
def test_a_server_of_another_name_or_of_an_unknown_authority_is_refused(
    secured: Secured, wrong: str, tmp_path: Path
) -> None:
    host, trusted = "localhost", secured.trusted
    assert_reached(secured, host, trusted)
    if wrong == "name":
        host = "127.0.0.1"
    else:
        trustme.CA().cert_pem.write_to_path(trusted := tmp_path / "other.pem")
    with pytest.raises(DatabaseAway, match=r"certificate"):
        database.connect(secured.database_url(host, trusted), "test")
    with broker.connect(secured.redis_url(host, trusted)) as client, pytest.raises(BrokerAway, match=r"CERTIFICATE"):
        ping(client)


def assert_reached(secured: Secured, host: str, trusted: Path) -> None:
    """Both answer, and PostgreSQL's session is one that TLS protects on our side."""
    with database.connect(secured.database_url(host, trusted), "test") as connection:
        assert connection.pgconn.ssl_in_use
    with broker.connect(secured.redis_url(host, trusted)) as client:
        ping(client)


def ping(client: redis.Redis) -> None:
    with broker.ours():
        assert client.ping()
