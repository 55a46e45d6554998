"""Who may do what, in real processes: API keys of the environment and a file, and a database role for each service."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import httpx2
import psycopg
import pytest
from api import Api, event, fresh, problems
from publisher_runs import kept, publish
from servers import Stack, eventually, free_port, own_environment

PUBLISH, READ, ADMIN, ROTATED = (f"{name}-0123456789abcdef" for name in ("publish", "read", "admin", "rotated"))
SECRETS = (PUBLISH, READ, ADMIN, ROTATED)

pytestmark = pytest.mark.skipif("CHRONICLE_TEST_URL" in os.environ, reason="these tests start systems of their own")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A system with keys, of which one is in a file."""
    folder = tmp_path_factory.mktemp("guarded")
    file = folder / "keys"
    file.write_text(f"# the shop's next key\nshop:publish:{ROTATED}\n")
    keys = f"shop:publish:{PUBLISH}, board:read:{READ} ops:admin:{ADMIN}"
    stack = Stack(folder / "home", env={"CHRONICLE_API_KEYS": keys, "CHRONICLE_API_KEYS_FILE": str(file)})
    stack.start()
    yield stack
    stack.close()


@pytest.fixture
def client(guarded: Stack) -> Iterator[Api]:
    """A client of that system, which sends no key yet."""
    with Api(guarded.url) as api:
        yield api


def with_key(client: Api, secret: str) -> Api:
    client.http.headers["Authorization"] = f"Bearer {secret}"
    return client


def chronicle(*words: str, **environment: str) -> CompletedProcess[str]:
    command = [sys.executable, "-m", "chronicle", *words]
    return subprocess.run(
        command, env=own_environment(**environment), capture_output=True, text=True, check=False, timeout=60
    )


def test_keys_of_the_environment_and_of_the_file_open_what_their_scope_says(client: Api) -> None:
    topic = fresh()
    problems(client.post([event(topic)]), 401)
    problems(client.raw("/stats"), 401)
    problems(client.raw("/events/stream"), 401)
    problems(with_key(client, READ).post([event(topic)]), 403)
    for secret in (PUBLISH, ROTATED, ADMIN):
        with_key(client, secret).publish(event(topic, secret))
    problems(with_key(client, PUBLISH).raw("/events"), 403)
    problems(client.raw("/events/stream"), 403)
    assert with_key(client, READ).http.head("/events/stream").status_code == 200
    assert client.settled(topic, 3)["processed"] == 3
    assert with_key(client, ADMIN).events(topic=topic)["count"] == 3


def test_probes_and_the_documentation_need_no_key(client: Api) -> None:
    for path in ("/health", "/ready", "/", "/docs", "/openapi.json"):
        assert client.raw(path).status_code == 200, path


def test_the_publisher_and_status_send_the_key_of_the_environment(guarded: Stack, tmp_path: Path) -> None:
    where = {"AGGREGATOR_URL": guarded.url, "CHRONICLE_HOME": str(guarded.home), "EVENT_COUNT": "50"}
    published = chronicle("publish", CHRONICLE_API_KEY=PUBLISH, **where)
    assert published.returncode == 0, published.stdout + published.stderr
    status = chronicle("status", CHRONICLE_API_KEY=READ, **where)
    assert status.returncode == 0
    assert "unique_processed" in status.stdout
    tailed = chronicle("tail", CHRONICLE_API_KEY=PUBLISH, **where)
    assert tailed.returncode == 1
    assert "403" in tailed.stderr
    without = chronicle("status", **where)
    assert "an API key is needed" in without.stdout
    assert "unique_processed" not in without.stdout


def test_without_a_key_the_publisher_is_refused_and_does_not_try_again(guarded: Stack, tmp_path: Path) -> None:
    file = tmp_path / "one.jsonl"
    file.write_text(
        '{"event_id": "e", "topic": "t", "source": "s", "payload": {}, "timestamp": "2025-01-01T00:00:00Z"}\n'
    )
    where = tmp_path / "run"
    where.mkdir()
    code, output = publish(guarded.url, where, "--file", str(file), CHRONICLE_API_KEY="wrong-" + READ)
    assert code == 1
    assert "401" in output
    assert READ not in output
    assert [spill.read_text() for spill in kept(where)] == [file.read_text()]


def test_no_secret_is_in_any_log_or_file_of_the_home(guarded: Stack, client: Api) -> None:
    for secret in SECRETS:
        with_key(client, secret).raw("/stats")
        client.raw("/audit", {"limit": "x"})
    written = [path.read_bytes() for path in (guarded.home / "logs").iterdir()]
    written += [guarded.log().encode(), (guarded.home / "run.json").read_bytes()]
    assert not [secret for secret in SECRETS for text in written if secret.encode() in text]


@pytest.mark.parametrize("name", ["up", "command", "query"])
def test_beyond_loopback_nothing_starts_without_keys(name: str, tmp_path: Path) -> None:
    nowhere = {"DATABASE_URL": "postgresql://x@127.0.0.1:1/x", "REDIS_URL": "redis://127.0.0.1:1"}
    home = tmp_path / "home"
    result = chronicle(name, "--host", "0.0.0.0", "--port", str(free_port()), CHRONICLE_HOME=str(home), **nowhere)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "chronicle: 0.0.0.0 is open to others, and there are no API keys: set CHRONICLE_API_KEYS="
        "'name:publish+read:SECRET' or CHRONICLE_API_KEYS_FILE (scopes publish, read, admin; a secret has at least 16 "
        "characters), or CHRONICLE_API_KEYS=none where something before it checks who calls"
    ]
    assert not home.exists()


@pytest.mark.parametrize("keys", ["none", f"ops:admin:{ADMIN}"])
def test_beyond_loopback_it_starts_with_keys_or_with_an_explicit_no(keys: str, stack: Stack) -> None:
    port = free_port()
    environment = stack.environment | {"CHRONICLE_API_KEYS": keys}
    command = [sys.executable, "-m", "chronicle", "query", "--host", "0.0.0.0", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        with Api(f"http://127.0.0.1:{port}") as api:
            eventually(lambda: answers(api), timeout=30)
            assert api.raw("/stats").status_code == (200 if keys == "none" else 401)
    finally:
        process.terminate()
        process.wait(timeout=15)


def answers(api: Api) -> bool:
    try:
        return api.raw("/ready").status_code == 200
    except httpx2.TransportError:
        return False


def test_the_embedded_services_work_under_their_roles(guarded: Stack, client: Api) -> None:
    api = with_key(client, ADMIN)
    with psycopg.connect(guarded.run()["postgres"]["url"], autocommit=True) as owner:
        owner.execute("REVOKE INSERT ON outbox FROM chronicle_command")
        refusal = problems(api.post([event(fresh())]), 503)
        assert "chronicle migrate" in refusal[0]["msg"]
        owner.execute("GRANT INSERT ON outbox TO chronicle_command")
        owner.execute("REVOKE SELECT ON stats FROM chronicle_query")
        problems(api.raw("/stats"), 503)
        owner.execute("GRANT SELECT ON stats TO chronicle_query")
        owner.execute("REVOKE DELETE ON outbox FROM chronicle_projector")
        topic = fresh()
        eventually(lambda: api.post([event(topic)]).status_code == 200)
        eventually(lambda: "permission denied for table outbox" in guarded.log())
        owner.execute("GRANT DELETE ON outbox TO chronicle_projector")
        assert api.settled(topic, 1)["processed"] == 1
