"""The page over HTTP: who gets it, what it may load, its files, its stream, and /docs without any other host."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from api import Api, event, fresh, problem
from servers import Stack

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
ELSEWHERE = re.compile(r"(?:src|href|action)\s*=\s*[\"']?(?:https?:)?//|@import|url\(\s*[\"']?https?:", re.IGNORECASE)


def page(api: Api, path: str) -> httpx2.Response:
    answer = api.http.get(path, headers={"accept": BROWSER})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    return answer


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (None, False),
        ("*/*", False),
        ("application/json", False),
        (BROWSER, True),
        ("text/html", True),
        ("TEXT/HTML;q=0.9", True),
        ("application/json, text/html;q=0.5", False),
        ("application/json;q=0.5, text/html", True),
        ("text/html;q=0", False),
        ("text/html;q=much", False),
        ("text/html;q*=a;q*1=b", True),
        ('text/html;"' + ";" * 30_000, True),
        ("", False),
    ],
)
def test_the_root_is_a_page_to_who_prefers_html_and_json_to_all_others(
    api: Api, accept: str | None, html: bool
) -> None:
    answer = api.http.get("/", headers={} if accept is None else {"accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html") is html
    assert answer.headers["vary"] == "Accept"
    if not html:
        assert answer.json()["message"] == "ChronicleWeaver is running..."


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_runs_nothing_that_stands_in_it_and_loads_nothing_from_elsewhere(api: Api, path: str) -> None:
    answer = page(api, path)
    policy = dict(directive.strip().split(" ", 1) for directive in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", answer.text)
    assert not ELSEWHERE.search(answer.text)


@pytest.mark.parametrize("asked", ["lines=1-2", "bytes=99999999-", "bytes=5-2", "bytes=", "bytes=-0", "bytes=0-1"])
@pytest.mark.parametrize("path", ["/", "/docs", "/assets/format.js", "/docs/swagger-ui.css"])
def test_of_a_file_there_are_no_parts(api: Api, path: str, asked: str) -> None:
    answer = api.http.get(path, headers={"accept": BROWSER, "range": asked})
    assert (answer.status_code, answer.headers["accept-ranges"]) == (200, "none")
    assert answer.content == api.http.get(path, headers={"accept": BROWSER}).content


def files(api: Api, path: str) -> Iterator[str]:
    """All that a page loads, and what that loads in turn."""
    waiting, seen = re.findall(r"(?:src|href)=\"(/[^\"]+\.\w+)\"", page(api, path).text), set[str]()
    while waiting:
        file = waiting.pop()
        if file in seen or file.endswith(".json"):
            continue
        seen.add(file)
        yield file
        folder = file.rpartition("/")[0]
        waiting += [f"{folder}/{name}" for name in re.findall(r"from \"\./([\w./-]+)\"", api.raw(file).text)]


@pytest.mark.parametrize(("path", "least"), [("/", 12), ("/docs", 3)])
def test_every_file_of_a_page_is_there_typed_and_kept_by_browsers(api: Api, path: str, least: int) -> None:
    types = {"js": "javascript", "css": "text/css", "svg": "image/svg+xml"}
    names = list(files(api, path))
    assert len(names) >= least
    for name in names:
        answer = api.raw(name)
        assert answer.status_code == 200, name
        assert types[name.rpartition(".")[2]] in answer.headers["content-type"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        again = api.http.get(name, headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b""), name
        if "vendor" not in name and "swagger" not in name:
            assert not ELSEWHERE.search(answer.text), name


@pytest.mark.parametrize("path", ["/assets/none.js", "/assets/", "/assets/vendor", "/assets/..%2fpage.py", "/docs/x"])
def test_what_is_no_file_of_a_page_is_a_404(api: Api, path: str) -> None:
    assert api.raw(path).status_code == 404


def frames(api: Api) -> Iterator[dict[str, Any]]:
    with api.http.stream("GET", "/dashboard/stream") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def test_the_stream_shows_what_was_published_and_books_that_balance(api: Api) -> None:
    topic, deadline = fresh(), time.monotonic() + 20
    stream = frames(api)
    assert "books" in next(stream)
    api.publish(event(topic, "e"), event(topic, "e"))
    for frame in stream:
        assert frame["books"]["off_by"] == 0
        if any(each["topic"] == topic for each in frame["newest"]["audit_logs"]):
            break
        assert time.monotonic() < deadline
    stream.close()


@pytest.mark.parametrize("minutes", [0, 1441, "x"])
def test_history_is_of_a_day_at_most(api: Api, minutes: int | str) -> None:
    problem(api.raw("/dashboard/history", {"minutes": minutes}), 422, ["query", "minutes"])
    assert api.raw("/dashboard/history", {"minutes": 1440}).status_code == 200


def test_who_watches_does_not_hold_up_the_stop(own_stack: Stack, own_api: Api) -> None:
    alone = stopping(own_stack)
    own_stack.start()
    stream = frames(own_api)
    next(stream)
    # Requests under way are waited for, for 2 s; a stream would be under way for ever.
    assert stopping(own_stack) < alone + 1
    assert len(list(stream)) < 10


def stopping(stack: Stack) -> float:
    """How many seconds it takes to stop."""
    began = time.monotonic()
    assert stack.stop() == 0
    return time.monotonic() - began
