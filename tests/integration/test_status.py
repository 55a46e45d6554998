"""`chronicle status` before services in any state, and before what is no service of ours."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from chronicle import runfile, status
from chronicle.errors import ChronicleError
from chronicle.settings import Settings
from query.sessions import ANSWER_SECONDS

READY = (200, {"status": "ready"})
STATS = (200, {"received": 5, "topics": ["t", "u"], "uptime": 7})


def problem(*messages: str) -> dict[str, object]:
    return {"detail": [{"type": "x", "loc": [], "msg": message} for message in messages]}


@contextmanager
def answering(ready: tuple[int, object], stats: tuple[int, object]) -> Iterator[str]:
    """The URL of a server that answers these two routes and says 404 to others."""
    routes = {"/ready": ready, "/stats": stats}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, content = routes.get(self.path, (404, {"detail": "Not Found"}))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("CHRONICLE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "150")
    return monkeypatch


def shown(url: str, environment: pytest.MonkeyPatch) -> bool:
    environment.setenv("AGGREGATOR_URL", url)
    return status.show(Settings.load())


@pytest.mark.parametrize("end", ["", "/"])
def test_a_service_that_is_ready_is_shown_also_through_a_proxy_of_the_environment(
    end: str, ask: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("http_proxy", "ALL_PROXY"):
        ask.setenv(name, "http://127.0.0.1:1")
    with answering(READY, STATS) as url:
        assert shown(url + end, ask)
    rows = [line.split("│")[1:3] for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["ready", "yes"],
        ["received", "5"],
        ["topics", "2"],
        ["uptime", "7"],
    ]


def test_what_is_missing_is_shown_in_words(ask: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with answering((503, problem("database away", "no lane")), (503, problem("database away"))) as url:
        assert not shown(url, ask)
    out = capsys.readouterr().out
    assert "│ database away; no lane " in out
    assert "CHRONICLE_API_KEY" not in out


@pytest.mark.parametrize("code", [401, 403])
def test_where_the_key_is_refused_it_is_said_which_one_that_is(
    code: int, ask: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(READY, (code, problem("no such key"))) as url:
        assert shown(url, ask)
    assert "no such key (CHRONICLE_API_KEY is what is sent)" in capsys.readouterr().out


@pytest.mark.parametrize("content", [[], "x", 1, {}, {"detail": "Not Found"}, {"detail": []}, {"detail": ["x"]}])
def test_what_is_no_service_of_ours_is_said_to_be_none(content: object, ask: pytest.MonkeyPatch) -> None:
    for answers in (((200, content), (200, content)), (READY, (404, content))):
        with answering(*answers) as url, pytest.raises(ChronicleError, match="is no ChronicleWeaver"):
            shown(url, ask)


def test_it_waits_for_longer_than_the_service_looks_whether_it_is_ready() -> None:
    assert status.TIMEOUT.read
    assert status.TIMEOUT.read > ANSWER_SECONDS


def test_it_asks_the_service_of_this_home_unless_another_one_is_named(
    ask: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(READY, STATS) as own, answering(READY, (200, {"received": 6})) as other:
        runfile.write(tmp_path, {"api": {"pid": 1, "url": own}})
        ask.delenv("AGGREGATOR_URL", raising=False)
        assert status.show(Settings.load())
        assert "│ received │ 5" in capsys.readouterr().out
        assert shown(other, ask)
        assert "│ received │ 6" in capsys.readouterr().out


def test_the_url_of_a_server_that_is_not_ours_is_not_shown(
    ask: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(READY, STATS) as own:
        runfile.write(tmp_path, {"postgres": {"url": "postgresql://u:secret@h/d"}, "api": {"pid": 1, "url": own}})
        ask.delenv("AGGREGATOR_URL", raising=False)
        assert status.show(Settings.load())
    out = capsys.readouterr().out
    assert own in out
    assert "secret" not in out
