"""What Prometheus reads of every service: requests by route, the registry as text, a port for processes without HTTP.

Names follow Prometheus' conventions; labels are bounded: never a topic, an event_id or anything else that clients make
up. Each service has its own metrics in a module `metrics`, and touches them once a request or a batch, never once an
event.
"""

from __future__ import annotations

import functools
import os
import platform
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from http.server import ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Histogram,
    Metric,
    MetricsHandler,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.values import MultiProcessValue
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chronicle import logs
from chronicle.settings import METRICS_FOLDER, METRICS_PROCESS

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
"""The buckets of all histograms."""

KINDS, FILE_BYTES = ("counter", "histogram", "gauge_sum"), 2**19
"""The files of prometheus_client for a process, and how large they are: thousands of series."""

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

log = logs.get(__name__)

disable_created_metrics()  # a series of its own for each series, which nobody asks for


def fill(folder: Path, process: str) -> None:
    """Makes a process's files with no hole in them: to write into a hole of a full disk ends the process (SIGBUS)."""
    for kind in KINDS:
        with (folder / f"{kind}_{process}.db").open("ab") as file:
            if file.tell() == 0:
                file.write(bytes(FILE_BYTES))


if METRICS_FOLDER in os.environ and METRICS_PROCESS in os.environ:
    # Before the first metric is made, which is why it happens on import.
    fill(Path(os.environ[METRICS_FOLDER]), os.environ[METRICS_PROCESS])
    values.ValueClass = MultiProcessValue(functools.partial(str, os.environ[METRICS_PROCESS]))

REQUESTS = Counter("chronicle_http_requests", "HTTP requests answered.", ["route", "method", "status"])
REQUEST_SECONDS = Histogram(
    "chronicle_http_request_duration_seconds",
    "From the headers of a request to those of its answer.",
    ["route", "method"],
    buckets=SECONDS,
)


class Families:
    """Metrics that are made when somebody asks, as a collector."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """All of them."""
        return self._families


def build(service: str) -> Collector:
    """Which version of what answers."""
    family = GaugeMetricFamily(
        "chronicle_build_info", "Always 1; the labels say what runs.", labels=["service", "version", "python"]
    )
    family.add_metric([service, version("chronicleweaver"), platform.python_version()], 1)
    return Families([family])


def registry(*more: Collector) -> CollectorRegistry:
    """The metrics of this process, or of all that share its folder, and those of `more`."""
    found = CollectorRegistry()
    for collector in more:
        found.register(collector)
    if METRICS_FOLDER in os.environ:
        MultiProcessCollector(found)
    else:
        found.register(REGISTRY)
    return found


def answer(*more: Collector) -> Response:
    """The answer of /metrics."""
    return Response(generate_latest(registry(*more)), media_type=CONTENT_TYPE_PLAIN_0_0_4)


class Server(ThreadingHTTPServer):
    """The standard library's, whose complaints go where all our logs go."""

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """A client left before it had its answer, most likely."""
        log.info("a scrape was not answered", exc_info=True)


def serve(listener: socket.socket, service: str) -> None:
    """Answers every request at this socket with the metrics, in threads of its own, as long as the process lives."""

    class Handler(MetricsHandler):
        timeout = 5  # for a client that says nothing

    Handler.registry = registry(build(service))
    server = Server(("", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


class Requests:
    """Counts requests and their time. Pure ASGI, around everything that may answer one."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        """`routes` of the application: a path that is none of them is counted as `other`."""
        self.app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. A stream is counted when it begins."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        counted = False

        def count(status: int) -> None:
            nonlocal counted
            counted = True
            answered(self._route(scope), scope["method"], status, time.perf_counter() - began)

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                count(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, send_counted)
        except BaseException as error:
            if not counted:
                count(500 if isinstance(error, Exception) else 503)  # what is answered outside, see chronicle.http
            raise

    def _route(self, scope: Scope) -> str:
        """The template of the route; the path itself may be anything."""
        if found := getattr(scope.get("route"), "path", None):
            return str(found)
        # Refused before it was routed, or around the router.
        path: str = scope["path"]
        return path if any(getattr(route, "path", None) == path for route in self._routes) else "other"


def answered(route: str, method: str, status: int, seconds: float) -> None:
    """One request."""
    requests, durations = _series(route, method if method in METHODS else "other", status)
    requests.inc()
    durations.observe(seconds)


@functools.lru_cache(maxsize=1024)
def _series(route: str, method: str, status: int) -> tuple[Counter, Histogram]:
    return REQUESTS.labels(route, method, status), REQUEST_SECONDS.labels(route, method)
