"""`chronicle status`: what runs on this machine, and where the events are."""

from __future__ import annotations

from typing import Any

import httpx2

from chronicle import keys, runfile, screen
from chronicle.errors import ChronicleError
from chronicle.settings import Settings


def show(settings: Settings) -> bool:
    """Prints the parts of this home's `chronicle up` and the statistics of the service; True where it is ready.

    The service is the one of this home, or AGGREGATOR_URL. Raises ChronicleError where nothing answers there.
    """
    console = screen.console()
    parts = runfile.read(settings.chronicle_home)
    if parts:
        table = screen.table("part", "pid", "url", title=f"chronicle up in {settings.chronicle_home}")
        for name, part in parts.items():
            table.add_row(name, str(part.get("pid", "-")), part.get("url") or part.get("metrics", "-"))
        console.print(table)
    url = parts.get("api", {}).get("url") or settings.aggregator_url
    headers = keys.bearer(settings)
    ready, stats = _ask(url, "/ready", headers), _ask(url, "/stats", headers)
    table = screen.table("what", "value", title=url)
    table.add_row("ready", "yes" if ready.get("status") == "ready" else str(ready.get("detail")))
    if problems := stats.pop("detail", None):
        table.add_row("statistics", f"{problems[0]['msg']} (CHRONICLE_API_KEY is what is sent)")
    for name, value in stats.items():
        table.add_row(name, f"{len(value)}" if isinstance(value, list) else str(value))
    console.print(table)
    return ready.get("status") == "ready"


def _ask(url: str, path: str, headers: dict[str, str]) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = httpx2.get(url + path, headers=headers, timeout=5).json()
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        raise ChronicleError(f"nothing answers at {url}: {error}") from None
    return answer
