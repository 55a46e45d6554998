"""What both HTTP services share."""

from __future__ import annotations

import asyncio

from starlette.types import Message

from chronicle import http


async def test_a_request_that_the_stop_cuts_short_is_answered_503() -> None:
    app = http.application("test")
    waiting, sent = asyncio.Event(), list[Message]()

    @app.get("/")
    async def wait_for_ever() -> None:
        waiting.set()
        await asyncio.Event().wait()

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    request = asyncio.create_task(app(scope, receive, send))
    await waiting.wait()
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    start, body = sent
    assert start["status"] == 503
    assert (b"retry-after", b"1") in start["headers"]
    assert body["body"] == b'{"detail":[{"type":"unavailable","loc":[],"msg":"the service stops: try again"}]}'
