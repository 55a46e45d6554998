"""The routes around the data: alive, ready, the greeting, the documentation, and what is no route at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest
from api import Api, event, fresh, problems
from servers import Stack, eventually, free_port

ROUTES = {
    "/publish": "post",
    "/events": "get",
    "/stats": "get",
    "/audit": "get",
    "/audit/summary": "get",
    "/health": "get",
    "/ready": "get",
    "/": "get",
}


def test_a_living_system_is_healthy(api: Api) -> None:
    assert api.get("/health") == {"status": "healthy"}


def test_a_working_system_is_ready(api: Api) -> None:
    assert api.get("/ready") == {"status": "ready"}


@pytest.mark.parametrize("accept", [None, "*/*", "application/json"])
def test_the_root_greets_in_json(api: Api, accept: str | None) -> None:
    answer = api.http.get("/", headers={} if accept is None else {"accept": accept})
    assert answer.status_code == 200
    assert answer.json()["message"] == "ChronicleWeaver is running..."


def test_the_openapi_document_covers_every_route(api: Api) -> None:
    document = api.get("/openapi.json")
    assert document["openapi"].startswith("3.")
    for path, method in ROUTES.items():
        assert method in document["paths"].get(path, {}), path


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/events", {"topic", "source", "event_id", "from", "to", "limit", "cursor"}),
        ("/audit", {"action", "topic", "event_id", "from", "to", "limit", "cursor"}),
    ],
)
def test_the_openapi_document_names_every_parameter(api: Api, path: str, names: set[str]) -> None:
    parameters = api.get("/openapi.json")["paths"][path]["get"]["parameters"]
    assert names <= {parameter["name"] for parameter in parameters}


def test_the_openapi_document_describes_what_to_publish(api: Api) -> None:
    operation = api.get("/openapi.json")["paths"]["/publish"]["post"]
    assert "application/json" in operation["requestBody"]["content"]
    assert {"200", "413", "422", "503"} <= operation["responses"].keys()


def test_the_documentation_is_a_page(api: Api) -> None:
    answer = api.raw("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "openapi.json" in answer.text


@pytest.mark.parametrize("path", ["/nothing", "/publish/more", "/events/1", "/audit/other"])
def test_an_unknown_path_is_a_404(api: Api, path: str) -> None:
    problems(api.raw(path), 404)


@pytest.mark.parametrize("path", ["/%00", "/..%2f..%2fetc"])
def test_a_path_that_cannot_be_is_refused(api: Api, path: str, gateway: bool) -> None:
    problems(api.raw(path), 400 if gateway else 404)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/publish"),
        ("PUT", "/publish"),
        ("DELETE", "/publish"),
        ("POST", "/events"),
        ("DELETE", "/events"),
        ("POST", "/stats"),
        ("PATCH", "/audit"),
        ("POST", "/audit/summary"),
        ("POST", "/health"),
    ],
)
def test_another_method_is_a_405_that_names_the_allowed_one(api: Api, method: str, path: str) -> None:
    answer = api.http.request(method, path)
    problems(answer, 405)
    allowed = ROUTES[path].upper()
    assert answer.headers["allow"] == ("GET, HEAD" if allowed == "GET" else allowed)


def test_unknown_query_parameters_do_no_harm(api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, event(topic))
    assert api.events(topic=topic, colour="blue")["count"] == 1


@contextmanager
def service(name: str, stack: Stack, **environment: str) -> Iterator[Api]:
    """A service in a process of its own beside the stack, with this environment."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "chronicle", name, "--port", str(port)],
        env=stack.environment | environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        with Api(f"http://127.0.0.1:{port}") as api:
            eventually(lambda: is_healthy(api), timeout=30)
            yield api
    finally:
        process.terminate()
        process.wait(timeout=15)


def is_healthy(api: Api) -> bool:
    """Whether it answers /health as the contract says."""
    try:
        return bool(api.get("/health") == {"status": "healthy"})
    except httpx2.TransportError:
        return False


def test_command_and_query_run_apart(stack: Stack, api: Api) -> None:
    topic = fresh()
    with service("command", stack) as command, service("query", stack) as query:
        eventually(lambda: command.get("/ready") == {"status": "ready"}, timeout=30)
        eventually(lambda: query.get("/ready") == {"status": "ready"}, timeout=30)
        command.publish(event(topic, "one"))
        assert query.settled(topic, 1)["processed"] == 1
        assert query.events(topic=topic) == api.events(topic=topic)
        problems(command.raw("/events"), 404)
        problems(query.post([event(topic)]), 404)


@pytest.mark.parametrize("name", ["command", "query"])
def test_without_a_database_it_is_alive_and_not_ready(stack: Stack, name: str) -> None:
    nowhere = f"postgresql://chronicle@127.0.0.1:{free_port()}/chronicle"
    with service(name, stack, DATABASE_URL=nowhere) as api:
        [missing] = problems(api.raw("/ready"), 503)
        assert "PostgreSQL" in missing["msg"]
        work = api.post([event(fresh())]) if name == "command" else api.raw("/stats")
        problems(work, 503)
        assert int(work.headers["retry-after"]) >= 0
        assert is_healthy(api)


@pytest.mark.parametrize("name", ["command", "query"])
def test_without_a_schema_it_is_not_ready_and_says_what_to_do(stack: Stack, name: str) -> None:
    empty = stack.run()["postgres"]["url"].removesuffix("/chronicle") + "/postgres"
    with service(name, stack, DATABASE_URL=empty) as api:
        eventually(lambda: "migrate" in problems(api.raw("/ready"), 503)[0]["msg"], timeout=10)
        assert is_healthy(api)


def test_it_recovers_by_itself_when_the_database_was_killed(own_stack: Stack, own_api: Api) -> None:
    topic = fresh()
    own_api.publish_settled(topic, event(topic))
    os.kill(own_stack.pids()["postgres"], signal.SIGKILL)
    eventually(lambda: own_api.post([event(topic, "after")]).status_code == 200, timeout=30)
    eventually(lambda: own_api.events(topic=topic)["count"] == 2, timeout=30)
    assert own_api.get("/ready") == {"status": "ready"}
    assert own_api.get("/health") == {"status": "healthy"}
