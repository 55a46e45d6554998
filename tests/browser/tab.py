"""A tab of the browser, and all that goes wrong in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2
from servers import Stack, eventually

NETWORK_CHANGED = "ERR_NETWORK_CHANGED"
"""What Chromium says, of loopback too, when this machine gets or loses any network, as containers give it."""


class Tab:
    """An open page of a system. `errors` is what its console and its scripts complained of."""

    def __init__(self, page: Any, stack: Stack) -> None:
        self.page = page
        self.stack = stack
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        page.on("console", lambda message: message.type in ("error", "warning") and self.errors.append(message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    def open(self, path: str = "/", ready: str = "[data-state=live]") -> None:
        """Goes to a path and waits until the page shows what `ready` selects."""

        def shown() -> bool:
            self.errors.clear()
            self.page.goto(self.stack.url + path)
            self.page.wait_for_function(
                "([ready, first]) => document.querySelector(ready) || performance.now() > first", arg=[ready, 8000]
            )
            return not any(NETWORK_CHANGED in error for error in self.errors)

        eventually(shown, timeout=60)
        self.page.wait_for_selector(ready, timeout=20_000)

    def text(self, selector: str) -> str:
        """What stands there."""
        return str(self.page.inner_text(selector))

    def waits_for(self, selector: str, text: str, seconds: float = 10) -> None:
        """Returns once the text stands there."""
        self.page.locator(selector).filter(has_text=text).first.wait_for(timeout=seconds * 1000)


@contextmanager
def tab(browser: Any, stack: Stack, **options: Any) -> Iterator[Tab]:
    """A tab of a browser that knows nothing yet; `options` as of playwright's new_context."""
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
    yield Tab(context.new_page(), stack)
    context.close()


def publish(stack: Stack, *events: tuple[str, str, dict[str, Any]], key: str = "") -> None:
    """Publishes (topic, event_id, payload) in one request each."""
    for topic, event_id, payload in events:
        sent = {
            "event_id": event_id,
            "topic": topic,
            "source": "browser",
            "payload": payload,
            "timestamp": "2025-01-01T00:00:00Z",
        }
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        httpx2.post(f"{stack.url}/publish", json={"events": [sent]}, headers=headers).raise_for_status()


def figures(shown: Tab, names: Sequence[str]) -> list[str]:
    """Figures of the books."""
    return [shown.text(f"[data-figure={name}] .number") for name in names]
