"""Who may call which route. Pure ASGI, before routing, so that a route nobody decided on is closed."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from chronicle import http, paths
from chronicle.errors import Problem
from chronicle.keys import Key, Keyring, digest

ROUTES: dict[str, str | None] = {
    "/publish": "publish",
    "/events": "read",
    "/events/stream": "read",
    "/events/{topic}/{event_id}": "read",
    "/events/{topic}/{event_id}/trail": "read",
    "/stats": "read",
    "/audit": "read",
    "/audit/summary": "read",
    "/metrics": "read",
    "/dashboard/stream": "read",
    "/dashboard/history": "read",
    "/health": None,
    "/ready": None,
    "/": None,
    "/assets/{name}": None,
    "/assets/vendor/{name}": None,
    "/docs": None,
    "/docs/{name}": None,
    "/openapi.json": None,
}
"""The scope that each route asks for; None: open to everybody. Probes have no keys, a browser sends none when it opens
a page, and none of the open ones says anything about events. Every other path is admin's."""

NAMED = tuple(route for route in ROUTES if "{" in route)

PROBES = ("/ready",)
"""With a query string these tell of the inside, and ask for the scope read."""


class ApiKeys:
    """Lets a request through to the application where its key allows it."""

    def __init__(self, app: ASGIApp, keyring: Keyring) -> None:
        self.app = app
        self._keyring = keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request: 401 without a valid key, 403 with one that is not for this, 404 where there is nothing."""
        if scope["type"] == "lifespan" or not self._keyring:
            await self.app(scope, receive, send)
            return
        route = _route(scope)
        needed = "read" if route in PROBES and scope["query_string"] else ROUTES.get(route, "admin")
        if needed is None:
            await self.app(scope, receive, send)
            return
        secret = _secret(scope["headers"])
        key = self._find(secret) if secret else None
        if key and key.allows(needed):
            with structlog.contextvars.bound_contextvars(api_key=key.name):
                await self.app(scope, receive, send)
            return
        await _refusal(route, needed, with_secret=bool(secret), valid=bool(key))(scope, receive, send)

    def _find(self, secret: bytes) -> Key | None:
        """The key with this secret. Each is compared, whichever it is, in a time that says nothing about any."""
        wanted = digest(secret)
        found = None
        for key in self._keyring:
            if hmac.compare_digest(key.digest, wanted):
                found = key
        return found


def _route(scope: Scope) -> str:
    """The route that a request asks for, or its path, where it is none."""
    path = scope["path"].rstrip("/") or "/"
    named = (route for route in NAMED if paths.names(route, scope) is not None)
    return path if path in ROUTES else next(named, path)


def _secret(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """What the request sends as `Authorization: Bearer`, else as `X-API-Key`; empty where it sends neither."""
    given = dict(headers)
    scheme, _, secret = given.get(b"authorization", b"").partition(b" ")
    return secret.strip() if scheme.lower() == b"bearer" else given.get(b"x-api-key", b"").strip()


def _refusal(route: str, needed: str, *, with_secret: bool, valid: bool) -> ASGIApp:
    """The answer to a request that may not pass, with the challenge that RFC 6750, section 3, asks for."""
    if valid and route not in ROUTES:
        return http.problems(404, Problem(type="http_error", loc=[], msg="Not Found"))
    if valid:
        status, kind, message = 403, "insufficient_scope", f"this API key lacks the scope {needed}"
        challenge = f'Bearer realm="chronicle", error="{kind}", scope="{needed}"'
    elif with_secret:
        status, kind, message = 401, "invalid_token", "this API key is not valid"
        challenge = f'Bearer realm="chronicle", error="{kind}"'
    else:
        status, kind, message = 401, "missing", "an API key is needed: Authorization: Bearer KEY"
        challenge = 'Bearer realm="chronicle"'
    problem = Problem(type=kind, loc=["header", "authorization"], msg=message)
    return http.problems(status, problem, headers={"WWW-Authenticate": challenge})
