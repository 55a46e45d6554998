"""From the publisher's command line to every route: all of them tell the same story."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from api import Api, Event, event, fresh, ids, series
from publisher_runs import kept, publish
from servers import Stack


def test_the_generator_sends_exactly_what_it_was_told(api: Api, tmp_path: Path) -> None:
    before, summary_before = api.quiet(), api.summary()
    code, output = publish(api.url, tmp_path, EVENT_COUNT=5_000, DUPLICATE_RATIO=0.3, BATCH_SIZE=500)
    assert code == 0, output
    after, summary = api.quiet(), api.summary()
    assert after["received"] - before["received"] == 5_000
    assert after["unique_processed"] - before["unique_processed"] == 3_500
    assert after["duplicated_dropped"] - before["duplicated_dropped"] == 1_500
    assert after["failed"] == before["failed"]
    assert summary["total_received"] - summary_before["total_received"] == 5_000
    assert summary["total_queued"] - summary_before["total_queued"] == 5_000
    assert summary["total_processed"] - summary_before["total_processed"] == 3_500
    assert summary["total_dropped"] - summary_before["total_dropped"] == 1_500
    assert kept(tmp_path) == []


def test_the_generator_without_duplicates_sends_only_new_events(api: Api, tmp_path: Path) -> None:
    before = api.quiet()
    code, output = publish(api.url, tmp_path, EVENT_COUNT=777, DUPLICATE_RATIO=0, BATCH_SIZE=100)
    assert code == 0, output
    after = api.quiet()
    assert after["unique_processed"] - before["unique_processed"] == 777
    assert after["duplicated_dropped"] == before["duplicated_dropped"]


def stream(topics: list[str]) -> list[Event]:
    """100 events in each topic, then the first 20 again, then 5 of those with another payload."""
    events = [each for topic in topics for each in series(topic, 100)]
    again = [each for topic in topics for each in series(topic, 20)]
    other = [event(topic, f"e{number}", changed=True) for topic in topics for number in range(5)]
    return events + again + other


def test_publish_events_stats_audit_and_summary_agree(api: Api, tmp_path: Path) -> None:
    topics = [fresh() for _ in range(3)]
    file = tmp_path / "input.jsonlines"
    file.write_text("".join(json.dumps(each) + "\n" for each in stream(topics)))
    before = api.quiet()
    code, output = publish(api.url, tmp_path, "--file", str(file), BATCH_SIZE=1_000)
    assert code == 0, output
    for topic in topics:
        counters = api.settled(topic, 125)
        assert counters == {"received": 125, "queued": 125, "processed": 100, "dropped": 25, "failed": 0}
        page = api.events(topic=topic)
        assert (page["count"], page["events"]) == (100, series(topic, 100)[::-1])
        records = api.records(topic=topic)
        assert Counter(record["action"] for record in records) == {
            "RECEIVED": 125, "QUEUED": 125, "PROCESSED": 100, "DROPPED": 25,
        }  # fmt: skip
        assert {record["event_id"] for record in records if record["action"] == "PROCESSED"} == set(ids(page["events"]))
        reasons = Counter(record["reason"] for record in records if record["action"] == "DROPPED")
        assert reasons == {"duplicate": 20, "conflict": 5}
    after = api.quiet()
    assert after["received"] - before["received"] == 375
    assert after["unique_processed"] - before["unique_processed"] == 300
    assert after["duplicated_dropped"] - before["duplicated_dropped"] == 75
    assert set(after["topics"]) - set(before["topics"]) == set(topics)


def test_payloads_of_a_file_arrive_as_they_are_written(api: Api, tmp_path: Path) -> None:
    topic = fresh()
    payload = '{"small":1e-300,"price":1.10,"big":1180591620717411303424,"text":"\u00e9 \\u00e9 \\n"}'
    line = json.dumps(event(topic)).replace(json.dumps(event(topic)["payload"]), payload)
    file = tmp_path / "input.jsonlines"
    file.write_text("\n" + line + "\n\n", encoding="utf-8")
    code, output = publish(api.url, tmp_path, "--file", str(file))
    assert code == 0, output
    assert api.settled(topic, 1)["processed"] == 1
    assert '"small":1e-300,"price":1.10,"big":1180591620717411303424' in api.raw("/events", {"topic": topic}).text
    assert api.events(topic=topic)["events"][0]["payload"]["text"] == "\u00e9 \u00e9 \n"


def test_verify_finds_every_invariant_held_after_a_run(own_stack: Stack, own_api: Api, tmp_path: Path) -> None:
    code, output = publish(own_stack.url, tmp_path, EVENT_COUNT=3_000, DUPLICATE_RATIO=0.3, BATCH_SIZE=200)
    assert code == 0, output
    topic = fresh()
    own_api.publish_settled(topic, event(topic, "one", version=1), event(topic, "one", version=2))
    assert own_api.quiet()["received"] == 3_002
    verify = subprocess.run(
        [sys.executable, "-m", "chronicle", "verify"],
        env=own_stack.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert verify.returncode == 0, verify.stdout + verify.stderr
