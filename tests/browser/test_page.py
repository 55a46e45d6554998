"""The page as people see and use it."""

from __future__ import annotations

import os
import signal
import uuid
from typing import Any
from urllib.parse import urlencode

import psycopg
import pytest
from conftest import running
from servers import Stack, eventually, family
from tab import figures, publish, tab

from projector.sequencer import SEQUENCE_LOCK

NARROW = {"width": 390, "height": 844}
KEYS = {"shop": "publish-0123456789abcdef", "board": "read-0123456789abcdef"}


def fresh(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:12]}"


def test_an_empty_system_shows_what_to_try_and_then_what_was_published(browser: Any, fresh_stack: Stack) -> None:
    with tab(browser, fresh_stack) as shown:
        shown.open()
        start = shown.text(".start")
        assert f"curl -s {fresh_stack.url}/publish -H 'Content-Type: application/json' -d '" in start
        assert f"AGGREGATOR_URL={fresh_stack.url} .venv/bin/chronicle publish" in start
        assert "0 received = 0 unique" in shown.text(".balance")
        publish(fresh_stack, ("t", "e", {}), ("t", "e", {}), ("t", "e", {"n": 2}))
        shown.page.wait_for_selector(".start", state="detached")
        eventually(lambda: figures(shown, ["received", "unique", "duplicates", "conflicts"]) == ["3", "1", "1", "1"])
        assert "The books balance. 3 received = 1 unique + 1 duplicates + 1 conflicts" in shown.text(".balance")


def test_it_loads_without_complaint_and_from_this_host_alone(browser: Any, stack: Stack) -> None:
    publish(stack, ("t", fresh("e"), {}))
    for scheme in ("light", "dark"):
        with tab(browser, stack, color_scheme=scheme) as shown:
            shown.open()
            shown.page.wait_for_selector(".chart canvas")
            shown.waits_for("[aria-label=Topics]", "t")
            assert shown.errors == []
            assert shown.hosts == {f"127.0.0.1:{stack.port}"}


def test_the_documentation_works_without_any_other_host(browser: Any, stack: Stack) -> None:
    with tab(browser, stack) as shown:
        shown.open("/docs", ready=".swagger-ui .opblock")
        shown.waits_for(".swagger-ui", "/events/{topic}/{event_id}/trail")
        shown.page.click(".opblock-summary-path >> text=/stats")
        shown.waits_for(".opblock.is-open", "Try it out")
        assert shown.errors == []
        assert shown.hosts == {f"127.0.0.1:{stack.port}"}


def test_an_event_is_seen_within_two_seconds_and_opens_with_its_trail(browser: Any, stack: Stack) -> None:
    event_id = fresh("a/b ü")
    with tab(browser, stack) as shown:
        shown.open()
        publish(stack, ("orders/eu", event_id, {"amount": 1, "same": [1]}))
        shown.waits_for(".newest", event_id, seconds=2)
        publish(stack, ("orders/eu", event_id, {"amount": 2, "same": [1.0]}))
        shown.page.get_by_role("button", name="Pause").click()
        shown.page.click(f".newest button:has-text({event_id!r})")
        shown.waits_for("dialog", "orders/eu")
        shown.page.reload()
        shown.waits_for("dialog", "Conflict")
        assert '"amount": 1' in shown.text("dialog pre")
        rows = shown.page.locator("dialog .sighting").nth(0).locator("tbody tr").all_inner_texts()
        assert [row.split()[0] for row in rows] == ["RECEIVED", "QUEUED", "PROCESSED"]
        assert all("ms" in row or " s" in row for row in rows[1:])
        assert shown.page.locator(".difference tbody tr").all_inner_texts() == ["amount\t1\t2"]
        shown.page.keyboard.press("Escape")
        shown.page.wait_for_selector("dialog", state="detached")
        assert "event=" not in shown.page.url


def test_the_search_finds_an_event_in_every_topic_and_keeps_it_in_the_url(browser: Any, stack: Stack) -> None:
    event_id, other = fresh("e"), fresh("other")
    publish(stack, ("one", event_id, {}), ("", event_id, {}), ("one", other, {}))
    with tab(browser, stack) as shown:
        shown.open()
        shown.page.keyboard.press("Tab")
        shown.page.fill("#search", event_id)
        shown.page.keyboard.press("Enter")
        shown.waits_for("[data-found]", "in topic (empty)")
        shown.waits_for("[data-found]", "in topic one")
        assert urlencode({"search": event_id}) in shown.page.url
        shown.page.fill("#search", other)
        shown.page.keyboard.press("Enter")
        shown.waits_for("dialog[open]", other)
        shown.page.keyboard.press("Escape")
        eventually(lambda: shown.page.locator("dialog[open]").count() == 0)
        shown.page.fill("#search", "never seen")
        shown.page.keyboard.press("Enter")
        shown.waits_for("[data-found]", "No event was received")


def test_the_search_finds_what_is_in_flight_and_what_is_stuck_is_red(browser: Any, stack: Stack) -> None:
    event_id = fresh("e")
    projector = stack.pids()["projector"]
    with tab(browser, stack) as shown:
        shown.open()
        os.kill(projector, signal.SIGSTOP)
        try:
            publish(stack, ("t", event_id, {}))
            shown.page.fill("#search", event_id)
            shown.page.keyboard.press("Enter")
            shown.waits_for("dialog .sighting", "In flight")
            shown.waits_for("[data-box=Outbox].stuck", "the oldest batch has waited", seconds=15)
        finally:
            os.kill(projector, signal.SIGCONT)
        shown.waits_for("dialog .sighting", "Stored", seconds=20)


def test_a_stream_that_stands_still_is_red(browser: Any, stack: Stack) -> None:
    with tab(browser, stack) as shown, psycopg.connect(stack.run()["postgres"]["url"]) as holder:
        shown.open()
        holder.execute("SELECT pg_advisory_lock(%s)", [SEQUENCE_LOCK])
        publish(stack, ("t", fresh("e"), {}))
        shown.waits_for("[data-box='Read models'].stuck", "subscribers wait", seconds=15)
        holder.execute("SELECT pg_advisory_unlock(%s)", [SEQUENCE_LOCK])
        shown.waits_for("[data-box='Read models']:not(.stuck)", "up to date", seconds=30)


def test_filters_are_in_the_url_and_come_back_with_it(browser: Any, stack: Stack) -> None:
    topic, event_id = fresh("topic"), fresh("e")
    publish(stack, (topic, event_id, {}), (fresh("another"), fresh("e"), {}))
    with tab(browser, stack) as shown:
        shown.open("/?" + urlencode({"topic": topic, "range": 360}))
        shown.waits_for(".newest", event_id)
        eventually(lambda: shown.page.locator(".newest li").count() == 1)
        assert shown.text(".columns [aria-pressed=true]") == "6 h"
        shown.page.get_by_role("button", name="24 h").click()
        shown.page.get_by_role("button", name="Show all topics").click()
        assert shown.page.url == f"{stack.url}/?range=1440"
        shown.page.go_back()
        shown.waits_for(".chip", topic)


TIMELINE = """
async ([begins, received, minutes, now]) => {
  const { BOOKS, timeline } = await import("/assets/series.js");
  const past = { minutes: begins.map(begin => new Date(begin * 1000).toISOString()), in_flight: begins.map(() => 0) };
  for (const name of BOOKS) past[name] = received;
  const snapshot = { at: new Date(now * 1000).toISOString(), books: {} };
  const line = timeline(past, [snapshot], minutes);
  return line.time.map((time, at) => [time, line.received[at]]);
}
"""


def test_rates_are_those_of_the_minutes_and_what_nobody_saw_stays_a_gap(browser: Any, stack: Stack) -> None:
    begins = [60 * minute for minute in (0, 1, 2, 3, 10, 11, 12)]
    received = [None, 60, 120, 180, 600, 1200, 1]
    with tab(browser, stack) as shown:
        shown.open()
        fine = shown.page.evaluate(TIMELINE, [begins, received, 15, 750])  # the last minute is under way
        assert fine == [[90, 1], [150, 2], [210, 3], [570, None], [630, 10], [690, 20]]
        coarse = shown.page.evaluate(TIMELINE, [begins, received, 360, 750])  # two minutes are one point
        assert coarse == [[90, 1], [180, 2.5], [570, None], [660, 15]]


def test_a_paused_list_stands_still_while_the_books_go_on(browser: Any, stack: Stack) -> None:
    first, second = fresh("e"), fresh("e")
    publish(stack, ("t", first, {}))
    with tab(browser, stack) as shown:
        shown.open()
        shown.waits_for(".newest", first)
        shown.page.get_by_role("button", name="Pause").click()
        [received] = figures(shown, ["received"])
        publish(stack, ("t", second, {}))
        eventually(lambda: figures(shown, ["received"]) != [received])
        assert second not in shown.text(".newest")
        shown.page.get_by_role("button", name="Paused").click()
        shown.waits_for(".newest", second)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/", "/?event_topic=long&event=long"])
def test_a_narrow_page_is_nowhere_wider_than_the_screen(browser: Any, stack: Stack, scheme: str, path: str) -> None:
    long = "x" * 255
    publish(stack, (long, long * 2, {"message": long}), ("long", "long", {"message": long, "words": long.split("x")}))
    with tab(browser, stack, viewport=NARROW, color_scheme=scheme) as shown:
        shown.open(path)
        shown.waits_for(".newest", "xxx")
        assert shown.page.evaluate("document.documentElement.scrollWidth") == NARROW["width"]
        wide = (
            "[...document.querySelectorAll('dialog, .event, main > *')].filter(e => e.scrollWidth > e.clientWidth + 1)"
        )
        assert shown.page.evaluate(f"{wide}.map(e => e.className || e.tagName)") == []
        ground = shown.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (ground == "rgb(21, 21, 20)") is (scheme == "dark")


def test_a_hidden_page_asks_for_nothing(browser: Any, stack: Stack) -> None:
    with tab(browser, stack) as shown:
        shown.open()
        hide = "Object.defineProperty(document, 'hidden', {{value: {}, configurable: true}});"
        tell = "document.dispatchEvent(new Event('visibilitychange'))"
        shown.page.evaluate(hide.format("true") + tell)
        shown.page.wait_for_selector("[data-state=paused]")
        publish(stack, ("t", event_id := fresh("e"), {}))
        shown.page.evaluate(hide.format("false") + tell)
        shown.page.wait_for_selector("[data-state=live]")
        shown.waits_for(".newest", event_id)


def test_a_lost_server_is_said_and_found_again(browser: Any, fresh_stack: Stack) -> None:
    with tab(browser, fresh_stack) as shown:
        shown.open()
        fresh_stack.stop()
        shown.waits_for("[role=alert]", "The connection to the server was lost")
        fresh_stack.start()
        shown.page.wait_for_selector("[data-state=live]", timeout=30_000)
        shown.page.wait_for_selector("[role=alert]", state="detached")
        publish(fresh_stack, ("t", "after", {}))
        shown.waits_for(".newest", "after")


def test_a_database_that_does_not_answer_is_said(browser: Any, fresh_stack: Stack) -> None:
    postgres = family(fresh_stack.pids()["postgres"])
    with tab(browser, fresh_stack) as shown:
        shown.open()
        try:
            for pid in postgres:
                os.kill(pid, signal.SIGSTOP)
            shown.waits_for("[role=alert]", "PostgreSQL cannot be reached", seconds=20)
            assert shown.page.query_selector("[data-state=live]")
        finally:
            for pid in postgres:
                os.kill(pid, signal.SIGCONT)
        shown.page.wait_for_selector("[role=alert]", state="detached")


def test_where_there_are_keys_the_page_asks_for_one(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    keys = f"shop:publish:{KEYS['shop']} board:read:{KEYS['board']}"
    for stack in running(tmp_path_factory.mktemp("guarded"), CHRONICLE_API_KEYS=keys):
        publish(stack, ("t", "e", {}), key=KEYS["shop"])
        with tab(browser, stack) as shown:
            shown.open(ready="[data-locked]")
            assert shown.page.query_selector(".books") is None
            for secret, said in (("wrong-0123456789abcdef", "not valid"), (KEYS["shop"], "lacks the scope read")):
                shown.page.fill("#key", secret)
                shown.page.keyboard.press("Enter")
                shown.waits_for("[data-locked]", said)
            shown.page.fill("#key", KEYS["board"])
            shown.page.keyboard.press("Enter")
            shown.waits_for(".newest", "e")
            shown.page.reload()
            shown.waits_for(".newest", "e")
            assert KEYS["board"] not in shown.page.url
