"""What the logs may say: never a payload, whichever way a request went."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from datetime import UTC, datetime

from api import Api, event, fresh
from servers import Stack, eventually

from chronicle.events import Events
from chronicle.ledger import new_batch_id
from command.writer import Writer

MARK = "marked-payload"


async def record(url: str, topic: str, payloads: list[str]) -> None:
    """Records events that no request could bring in, as one batch, as if validation had let them through."""
    count = len(payloads)
    times = [datetime.now(UTC)] * count
    events = Events(["same"] * count, [topic] * count, ["s"] * count, [text.encode() for text in payloads], times)
    writer = await Writer.open(url)
    await writer.record_received(new_batch_id(), events)
    await writer.close()


def logs(stack: Stack) -> str:
    """All that the system and its servers have written, but for their data."""
    files = [path for path in stack.home.rglob("*.log") if path.is_file()]
    assert any("postgres" in path.name for path in files)
    return stack.log() + "".join(path.read_text(errors="replace") for path in files)


def test_no_payload_is_logged_on_any_way(own_stack: Stack, own_api: Api) -> None:
    topic, failing = fresh(), fresh()
    own_api.publish_settled(topic, event(topic, "same", text=MARK), event(topic, "same", text=MARK + " other"))
    for bad in (
        json.dumps({"events": [event(topic, text=MARK, timestamp=MARK)]}),
        json.dumps({"events": [event(topic, text=MARK + "\0")]}),
        json.dumps({"events": [event(topic, message=[MARK])]}),
        '{"events": [' + MARK,
    ):
        assert own_api.post_body(bad.encode()).status_code == 422
    assert own_api.raw(f"/{MARK}", {MARK: MARK}).status_code == 404

    hidden = f'{{"{MARK}": "{MARK} \\u0000"}}'
    asyncio.run(record(own_stack.run()["postgres"]["url"], failing, [hidden, f'{{"b": "{MARK}"}}']))
    eventually(lambda: own_api.counters(failing)["failed"] > 0, timeout=30)

    os.kill(own_stack.pids()["postgres"], signal.SIGQUIT)
    own_api.post([event(topic, text=MARK)])
    eventually(lambda: own_api.post([event(topic, text=MARK)]).status_code == 200, timeout=60)

    written = logs(own_stack)
    assert "unsupported Unicode escape sequence" in written
    assert MARK not in written
