"""`chronicle status`: what runs on this machine, and where the events are."""

from __future__ import annotations

from typing import Any

import httpx2

from chronicle import clients, keys, runfile, screen
from chronicle.errors import ChronicleError
from chronicle.settings import Settings

TIMEOUT = httpx2.Timeout(12, connect=5)
"""The service takes up to ten seconds to find out that it is not ready."""

ELSEWHERE = "as it is set"
"""For the URL of a server that is not ours: there may be a password in it."""


def show(settings: Settings) -> bool:
    """Prints the parts of this home's `chronicle up` and the statistics of the service; True where it is ready.

    The service is that of AGGREGATOR_URL where it is set, or the one of this home. Raises ChronicleError where nothing
    of ours answers there.
    """
    console = screen.console()
    parts = runfile.read(settings.chronicle_home)
    if parts:
        table = screen.table("part", "pid", "url", title=f"chronicle up in {settings.chronicle_home}")
        for name, part in parts.items():
            where = part.get("url") or part.get("metrics", "-")
            table.add_row(name, str(part.get("pid", "-")), where if "pid" in part else ELSEWHERE)
        console.print(table)
    own = None if "aggregator_url" in settings.model_fields_set else parts.get("api", {}).get("url")
    base = (own or settings.aggregator_url).rstrip("/")
    with clients.opened(
        httpx2.Client, clients.address(base, ""), timeout=TIMEOUT, headers=keys.bearer(settings)
    ) as client:
        ready, missing = _ask(client, base, "/ready", "status")
        stats, refusal = _ask(client, base, "/stats", "received")
    table = screen.table("what", "value", title=base)
    table.add_row("ready", missing or "yes")
    if refusal:
        table.add_row("statistics", refusal)
    for name, value in stats.items():
        table.add_row(name, f"{len(value)}" if isinstance(value, list) else screen.clean(str(value)))
    console.print(table)
    return bool(ready)


def _ask(client: httpx2.Client, base: str, path: str, field: str) -> tuple[dict[str, Any], str]:
    """What a route answers: an object with this field; or an empty one, and the reasons.

    Raises ChronicleError where nothing answers, or something that is not ours.
    """
    try:
        answer = client.get(clients.address(base, path))
    except httpx2.HTTPError as error:
        raise ChronicleError(f"nothing answers at {base}: {error or type(error).__name__}") from None
    content = clients.content(answer)
    match content.get("detail"):
        case None if field in content:
            return content, ""
        case [{"msg": str()}, *_] as problems:
            reasons = "; ".join(screen.clean(str(problem.get("msg"))) for problem in problems)
            hint = " (CHRONICLE_API_KEY is what is sent)" if answer.status_code in (401, 403) else ""
            return {}, reasons + hint
    raise ChronicleError(f"what answers at {base} is no ChronicleWeaver: {answer.status_code} to {path}")
