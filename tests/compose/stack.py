"""What the tests of compose.yml do with it: commands, what it answers, and events that must not be lost."""

from __future__ import annotations

import os
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
from servers import ROOT, eventually

ENGINES = (["docker", "compose"], ["docker-compose"])
WAIT_SECONDS = 90.0


class Stack:
    """A running compose project. Called with the words of a command, it gives what that prints."""

    def __init__(self, engine: list[str], project: str, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._command = [*engine, "-p", project]
        self._environment = os.environ | {"GATEWAY_ADDRESS": f"127.0.0.1:{port}"}

    def __call__(self, *words: str, error: bool = False) -> str:
        """Standard output, or with `error` both outputs of a command that has to fail. Raises AssertionError."""
        ended = subprocess.run(
            [*self._command, *words], cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False
        )
        assert (ended.returncode != 0) == error, ended.stdout + ended.stderr
        return ended.stdout + ended.stderr if error else ended.stdout

    def inspect(self, service: str, template: str) -> list[str]:
        """What `docker inspect` says about each container of a service."""
        containers = self("ps", "-q", service).split()
        inspect = ["docker", "inspect", "--format", template, *containers]
        return subprocess.run(inspect, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]

    def crash(self, service: str, user: str) -> None:
        """Kills all that one container runs; returns when Docker has started it again."""
        container = self("ps", "-q", service).split()[0]
        before = self.inspect(service, "{{.Id}} {{.RestartCount}}")
        # The command's own outcome says nothing: its container ends under it.
        subprocess.run(["docker", "exec", "-u", user, container, "sh", "-c", "kill -9 -1"], check=False)
        eventually(lambda: self.inspect(service, "{{.Id}} {{.RestartCount}}") != before, WAIT_SECONDS)

    def wait_until_ready(self) -> None:
        """Returns when events can be published, and statistics read."""
        eventually(lambda: self.publish() == 200, WAIT_SECONDS)
        eventually(self.stats, WAIT_SECONDS)

    def stats(self) -> dict[str, Any]:
        """The answer of /stats. Raises AssertionError where there is none."""
        try:
            answer = httpx2.get(f"{self.url}/stats", timeout=30)
        except httpx2.TransportError as error:
            raise AssertionError(error) from None
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def publish(self, *event_ids: str) -> int:
        """The status of publishing these events of one topic; 0 where the connection broke."""
        event = {"topic": "compose", "source": "s", "payload": {}, "timestamp": "2025-01-01T00:00:00Z"}
        events = [event | {"event_id": event_id} for event_id in event_ids]
        try:
            return httpx2.post(f"{self.url}/publish", json={"events": events}, timeout=30).status_code
        except httpx2.TransportError:
            return 0

    def publish_for_good(self, event_ids: list[str]) -> None:
        """Publishes these events again and again until they are accepted."""
        eventually(lambda: self.publish(*event_ids) == 200, WAIT_SECONDS)

    def settled(self) -> dict[str, Any]:
        """Waits until nothing is in flight; gives the totals."""

        def still() -> dict[str, Any]:
            stats = self.stats()
            assert stats["in_flight"] == 0, stats
            return stats

        return eventually(still, WAIT_SECONDS)

    @contextmanager
    def nothing_lost_or_doubled(self) -> Iterator[None]:
        """Publishes all the while, each request again until it is answered 200; then all is there, each event once."""
        before = self.settled()["unique_processed"]
        over, accepted = threading.Event(), 0

        def work() -> None:
            nonlocal accepted
            while not over.is_set():
                self.publish_for_good([uuid.uuid4().hex for _ in range(20)])
                accepted += 20

        thread = threading.Thread(target=work)
        thread.start()
        try:
            eventually(lambda: accepted > 100 or not thread.is_alive(), WAIT_SECONDS)
            yield
            reached = accepted
            eventually(lambda: accepted > reached + 100 or not thread.is_alive(), WAIT_SECONDS)
            assert thread.is_alive(), "a request found no end"
        finally:
            over.set()
            thread.join()
        assert self.settled()["unique_processed"] - before == accepted
        assert "checks hold" in self("exec", "-T", "command", "chronicle", "verify")
