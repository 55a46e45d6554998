"""What was answered 200 is there after every kind of end, and the system goes on where it was."""

from __future__ import annotations

from typing import Any

from api import Api, event, fresh, ids, series
from servers import Stack


def everything(api: Api) -> dict[str, Any]:
    """All that can be read, save the uptime, which starts again with a process."""
    stats: dict[str, Any] = {**api.stats()}
    del stats["uptime"]
    return {
        "stats": stats,
        "events": [each for page in api.event_pages(limit=50) for each in page["events"]],
        "audit": api.records(),
        "summary": api.summary(),
    }


def test_everything_reads_the_same_after_a_restart(own_stack: Stack) -> None:
    topic, other = fresh(), fresh("other")
    with Api(own_stack.url) as api:
        events = series(topic, 120)
        api.publish_settled(topic, *events, *events[:30])
        api.publish_settled(other, event(other, "one", version=1), event(other, "one", version=2))
        before = everything(api)
    assert own_stack.stop() == 0
    own_stack.start()
    with Api(own_stack.url) as api:
        assert everything(api) == before


def test_a_repeat_is_still_known_after_a_restart(own_stack: Stack) -> None:
    topic = fresh()
    events = series(topic, 25)
    with Api(own_stack.url) as api:
        api.publish_settled(topic, *events)
    assert own_stack.stop() == 0
    own_stack.start()
    with Api(own_stack.url) as api:
        counters = api.publish_settled(topic, *events, event(topic, "new"))
        assert counters == {"received": 51, "queued": 51, "processed": 26, "dropped": 25, "failed": 0}


def test_what_was_answered_200_survives_kill_9_of_every_process(own_stack: Stack) -> None:
    topic = fresh()
    events = series(topic, 3_000)
    with Api(own_stack.url) as api:
        for start in range(0, 3_000, 500):
            api.publish(*events[start : start + 500])
    own_stack.kill()
    own_stack.start()
    with Api(own_stack.url) as api:
        counters = api.settled(topic, 3_000)
        assert counters == {"received": 3_000, "queued": 3_000, "processed": 3_000, "dropped": 0, "failed": 0}
        assert ids(api.events(topic=topic, limit=10_000)["events"]) == ids(events[::-1])
        assert api.quiet()["received"] == 3_000


def test_what_was_in_flight_at_the_end_is_processed_after_the_start(own_stack: Stack) -> None:
    topic = fresh()
    with Api(own_stack.url) as api:
        api.publish(*series(topic, 5_000))
    assert own_stack.stop() == 0
    own_stack.start()
    with Api(own_stack.url) as api:
        assert api.settled(topic, 5_000)["processed"] == 5_000
