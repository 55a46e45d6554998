"""/metrics and /ready?verbose: right numbers, bounded labels, and a projector that hangs shows within ten seconds."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
import yaml
from api import Api, event, fresh
from scrape import Scrape, scrape
from servers import ROOT, Stack, eventually, free_port

from chronicle import metrics

pytestmark = pytest.mark.skipif("CHRONICLE_TEST_URL" in os.environ, reason="these tests read the run.json of a system")

DEPLOY = ROOT / "deploy" / "metrics"
SEEN_SECONDS = 10.0
"""How soon a projector that does not get on must show."""


def front(stack: Stack) -> Scrape:
    """The metrics of command and query, at the front door."""
    return scrape(f"{stack.url}/metrics")


def projectors(stack: Stack) -> Scrape:
    """The metrics of the projector processes, at their own port."""
    return scrape(stack.run()["projector"]["metrics"])


def test_what_was_published_is_counted_by_outcome_on_both_sides(stack: Stack, api: Api) -> None:
    api.quiet()
    before, before_projecting = front(stack), projectors(stack)
    topic = fresh()
    same, other = event(topic, "e", n=1), event(topic, "e", n=2)
    api.publish_settled(topic, same, same, other, event(topic, "f"))

    def more(name: str, **labels: str) -> float:
        return front(stack).value(name, **labels) - before.value(name, **labels)

    for outcome, count in {"received": 4, "processed": 2, "duplicate": 1, "conflict": 1}.items():
        assert more("chronicle_events_total", outcome=outcome) == count, outcome
    assert more("chronicle_received_events_total") == 4
    assert more("chronicle_receive_batch_events_sum") == 4
    assert more("chronicle_receive_commit_requests_sum") == 1
    assert more("chronicle_receive_duration_seconds_count") == 1
    assert more("chronicle_http_requests_total", route="/publish", method="POST", status="200") == 1
    assert more("chronicle_http_request_duration_seconds_count", route="/publish") == 1
    eventually(lambda: more("chronicle_dispatch_batches_sum") == 1)
    after = projectors(stack)
    for outcome, count in {"processed": 2, "dropped": 2, "failed": 0}.items():
        name = "chronicle_projected_events_total"
        assert after.value(name, outcome=outcome) - before_projecting.value(name, outcome=outcome) == count, outcome
    name = "chronicle_lag_seconds_count"
    eventually(lambda: projectors(stack).value(name) - before_projecting.value(name) == 1)


def test_the_state_of_the_system_is_a_snapshot_of_the_database(stack: Stack, api: Api) -> None:
    api.quiet()
    seen = front(stack)
    assert seen.value("chronicle_database_up") == seen.value("chronicle_broker_up") == 1
    for name in ("events_in_flight", "outbox_batches", "outbox_oldest_age_seconds", "workers_silent"):
        assert seen.value(f"chronicle_{name}") == 0, name
    assert seen.value("chronicle_workers_alive") == len(seen.series("chronicle_worker_heartbeat_age_seconds")) == 4
    assert seen.value("chronicle_query_sessions_max") == 10


def test_every_metric_is_ours_or_the_processs_own_and_says_what_it_is(stack: Stack, api: Api) -> None:
    for seen in (front(stack), projectors(stack)):
        assert seen.families == seen.documented
        assert all(name.startswith(("chronicle_", "process_", "python_")) for name in seen.families)
        [build] = seen.series("chronicle_build_info")
        assert dict(build).keys() == {"service", "version", "python"}


def test_whatever_clients_ask_for_the_series_stay_as_many(stack: Stack, api: Api) -> None:
    def series() -> set[Any]:
        return front(stack).series("chronicle_http_requests_total")

    def ask(method: str) -> None:
        api.raw(f"/{fresh()}")
        api.raw("/events", {"topic": fresh(), "event_id": fresh()})
        api.http.request(method, "/stats")
        api.http.request(method, f"/{fresh()}")

    ask("PROPFIND")
    series()  # which is a request as well
    known = series()
    assert {"/events", "/stats", "other"} <= {dict(labels)["route"] for labels in known}
    for method in ("MKCOL", "LOCK", "REPORT", "PURGE", "SEARCH", "COPY"):
        ask(method)
    assert series() == known


def test_a_refusal_of_what_is_no_http_is_counted(stack: Stack) -> None:
    def refused() -> float:
        return front(stack).value("chronicle_http_requests_total", route="other", method="other", status="400")

    before = refused()
    with socket.create_connection(("127.0.0.1", stack.port), timeout=10) as client:
        client.sendall(b"not HTTP\r\n\r\n")
        assert client.recv(65_536).startswith(b"HTTP/1.1 400 ")
    assert refused() == before + 1


def test_of_several_processes_each_answers_for_all_and_one_that_was_killed_is_not_forgotten(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "home", options=["--api-processes", "3", "--projector-processes", "2"])
    stack.start()
    try:
        files = list((stack.home / "metrics").rglob("*.db"))
        assert {file.name.rpartition("_")[0] for file in files} == set(metrics.KINDS)
        for file in files:  # a write into a hole of a full disk ends the process
            assert 512 * file.stat().st_blocks >= file.stat().st_size, file
        topic = fresh()
        for n in range(30):
            answer = httpx2.post(f"{stack.url}/publish", json={"events": [event(topic, str(n))]})
            assert answer.status_code == 200
        with Api(stack.url) as api:
            api.settled(topic, 30)
        for kill in ("api", "projector"):
            for _ in range(12):
                assert front(stack).value("chronicle_received_events_total") == 30
                assert front(stack).value("chronicle_http_requests_total", route="/publish") == 30
                assert projectors(stack).value("chronicle_projected_events_total", outcome="processed") == 30
            killed = stack.pids()[kill]
            os.kill(killed, signal.SIGKILL)
            eventually(lambda killed=killed, kill=kill: stack.pids().get(kill, killed) != killed, timeout=30)
            eventually(lambda: front(stack).value("chronicle_workers_alive") == 8, timeout=30)
        files = [path for path in (stack.home / "metrics").rglob("*.db") if "counter" in path.name]
        assert len(files) == 5
    finally:
        stack.close()


@contextmanager
def service(stack: Stack, *words: str, **environment: str) -> Iterator[None]:
    """A service beside the stack, in a process of its own."""
    command = [sys.executable, "-m", "chronicle", *words]
    process = subprocess.Popen(command, env=stack.environment | environment, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=15)


def answers(url: str) -> bool:
    try:
        return httpx2.get(url).status_code == 200
    except httpx2.TransportError:
        return False


def test_a_scrape_while_database_and_broker_are_away_says_so(stack: Stack) -> None:
    port = free_port()
    nowhere = {
        "DATABASE_URL": f"postgresql://nobody@127.0.0.1:{free_port()}/none",
        "REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",
    }
    with service(stack, "query", "--port", str(port), **nowhere):
        eventually(lambda: answers(f"http://127.0.0.1:{port}/health"), timeout=30)
        seen = scrape(f"http://127.0.0.1:{port}/metrics")
    assert seen.value("chronicle_database_up") == seen.value("chronicle_broker_up") == 0
    assert {"chronicle_database_up", "chronicle_broker_up"} <= seen.names()
    assert not {"chronicle_outbox_oldest_age_seconds", "chronicle_stream_tickets"} & seen.names()


def test_command_and_projector_alone_answer_for_themselves(stack: Stack) -> None:
    command, projector = free_port(), free_port()
    with (
        service(stack, "command", "--port", str(command)),
        service(stack, "projector", "--metrics-port", str(projector)),
    ):
        for port, name in ((command, "chronicle_received_events"), (projector, "chronicle_projected_events")):
            url = f"http://127.0.0.1:{port}/metrics"
            eventually(lambda url=url: answers(url), timeout=30)
            seen = scrape(url)
            assert name in seen.families
            assert "process_resident_memory_bytes" in seen.names() or sys.platform != "linux"
            assert "chronicle_database_up" not in seen.names()
    eventually(lambda: front(stack).value("chronicle_workers_alive") == 4)
    assert front(stack).value("chronicle_workers_silent") == 0


def test_a_ready_system_says_what_it_has_looked_at(stack: Stack, api: Api) -> None:
    api.quiet()
    answer = eventually(lambda: (found := verbose(api))["status"] == "ready" and found)
    assert answer["problems"] == []
    checks = answer["checks"]
    assert checks["database"] == {"status": "up"}
    assert re.fullmatch(r"\d{4}", checks["schema"]["version"])
    assert checks["durability"] == {"off": []}
    assert checks["broker"]["status"] == "up"
    assert checks["backlog"] == {"batches": 0, "events": 0, "oldest_seconds": 0}
    assert 0 <= checks["unsequenced"]["oldest_seconds"] < 5
    assert [worker["worker_id"] for worker in checks["workers"]] == [0, 1, 2, 3]
    assert {worker["process"].partition(":")[2] for worker in checks["workers"]} == {str(stack.pids()["projector"])}
    assert api.get("/ready") == {"status": "ready"}
    assert httpx2.get(f"{api.url}/ready?verbose").json().keys() == answer.keys()


def verbose(api: Api) -> Any:
    """The answer of /ready?verbose."""
    return api.get("/ready", {"verbose": ""})


def degraded(api: Api, *words: str) -> dict[str, Any]:
    """The answer of /ready?verbose once it has a problem with each of these words; soon, or it fails."""

    def check() -> dict[str, Any]:
        answer: dict[str, Any] = verbose(api)
        assert answer["status"] == "degraded", answer
        assert all(any(word in problem for problem in answer["problems"]) for word in words), answer["problems"]
        return answer

    return eventually(check, timeout=SEEN_SECONDS)


def recovers(stack: Stack, api: Api) -> None:
    eventually(lambda: verbose(api)["status"] == "ready", timeout=30)
    seen = front(stack)
    assert seen.value("chronicle_workers_silent") == 0
    assert seen.value("chronicle_outbox_oldest_age_seconds") < 5


def test_a_projector_that_is_stopped_shows_within_ten_seconds(own_stack: Stack, own_api: Api) -> None:
    pid = own_stack.pids()["projector"]
    topic = fresh()
    own_api.publish_settled(topic, event(topic))
    os.kill(pid, signal.SIGSTOP)
    try:
        own_api.publish(event(topic), event(topic))
        answer = degraded(own_api, "lags behind", "no projector worker is alive", f":{pid}) has said nothing")
        assert answer["checks"]["backlog"]["events"] == 2
        seen = front(own_stack)
        assert seen.value("chronicle_outbox_oldest_age_seconds") > 5
        assert seen.value("chronicle_workers_alive") == 0
        assert seen.value("chronicle_workers_silent") == 4
        assert own_api.get("/ready") == {"status": "ready"}
    finally:
        os.kill(pid, signal.SIGCONT)
    recovers(own_stack, own_api)


@pytest.mark.parametrize("table", ["processed_events", "outbox"])
def test_workers_that_wait_for_a_lock_show_within_ten_seconds(own_stack: Stack, own_api: Api, table: str) -> None:
    topic = fresh()
    own_api.publish_settled(topic, event(topic))
    with psycopg.connect(own_stack.run()["postgres"]["url"]) as holder:
        os.kill(own_stack.pids()["projector"], signal.SIGSTOP)
        own_api.publish(event(topic))
        holder.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")  # reads go on
        os.kill(own_stack.pids()["projector"], signal.SIGCONT)
        degraded(own_api, "lags behind")
        assert front(own_stack).value("chronicle_outbox_oldest_age_seconds") > 5
    recovers(own_stack, own_api)


def test_a_broker_that_is_away_shows_and_is_no_reason_not_to_be_ready(own_stack: Stack, own_api: Api) -> None:
    os.kill(own_stack.pids()["broker"], signal.SIGSTOP)
    try:
        degraded(own_api, "Redis is away")
        assert front(own_stack).value("chronicle_broker_up") == 0
        assert own_api.get("/ready") == {"status": "ready"}
    finally:
        os.kill(own_stack.pids()["broker"], signal.SIGCONT)
    recovers(own_stack, own_api)


def test_an_outbox_that_nobody_can_read_is_a_quick_503_and_no_false_calm(own_stack: Stack, own_api: Api) -> None:
    with psycopg.connect(own_stack.run()["postgres"]["url"]) as holder:
        holder.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
        answer = own_api.raw("/ready", {"verbose": "1"})
        assert answer.status_code == 503
        assert answer.elapsed.total_seconds() < SEEN_SECONDS
        assert front(own_stack).value("chronicle_database_up") == 0
    recovers(own_stack, own_api)


RULES = [rule for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
PANELS = [panel for panel in json.loads((DEPLOY / "dashboard.json").read_text())["panels"] if panel["type"] != "row"]
PANEL_QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
QUERIES = [(rule["alert"], rule["expr"]) for rule in RULES] + PANEL_QUERIES
NOT_NAMES = r'"[^"]*"|\$\w+|\b(?:by|without)\s*\([^)]*\)'
"""Strings, Grafana's variables, and the labels that are grouped by."""


def used(query: str) -> set[str]:
    """The metrics that a PromQL expression names."""
    bare = re.sub(NOT_NAMES, "", query)
    names = set(re.findall(r"\b([a-z_][a-z0-9_]*)\b(?!\s*\(|\s*[=!]~?\")", re.sub(r"\{[^}]*\}", "", bare)))
    return names - {"and", "or", "unless", "up", "m", "s", "h"}


def grouped(query: str) -> set[str]:
    """The labels that a PromQL expression groups by."""
    found = re.findall(r"\b(?:by|without)\s*\(([^)]*)\)", query)
    return {label for labels in found for label in labels.replace(" ", "").split(",")} - {"instance", "job"}


def test_every_alert_and_panel_asks_for_what_the_services_have(stack: Stack, api: Api) -> None:
    topic = fresh()
    api.publish_settled(topic, event(topic))
    scrapes = (front(stack), projectors(stack))
    names = {name for seen in scrapes for name in seen.names()}
    labels = {label for seen in scrapes for _, found in seen.samples for label, _ in found}
    for title, query in QUERIES:
        metrics = used(query)
        assert metrics or "up{" in query, title
        assert metrics <= names, title
        assert grouped(query) <= labels, title


def test_every_metric_of_ours_is_on_the_dashboard(stack: Stack, api: Api) -> None:
    shown = {re.sub("_(bucket|total)$", "", name) for _, query in PANEL_QUERIES for name in used(query)}
    families = front(stack).families | projectors(stack).families
    assert {name for name in families if name.startswith("chronicle_")} == shown


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_how_much_it_matters(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "warn")
    assert rule["annotations"].keys() == {"summary", "description"}
    assert all(text.strip().endswith(".") for text in rule["annotations"].values())


def test_the_dashboard_has_panels_with_places_of_their_own() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    taken = [
        (x, y)
        for panel in PANELS
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert all(x < 24 for x, _ in taken)
