"""Who may call which route. Pure ASGI, before routing, so that a route nobody decided on is closed."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from chronicle import http
from chronicle.errors import Problem
from chronicle.keys import Key, Keyring, digest

ROUTES: dict[str, str | None] = {
    "/publish": "publish",
    "/events": "read",
    "/events/stream": "read",
    "/stats": "read",
    "/audit": "read",
    "/audit/summary": "read",
    "/metrics": "read",
    "/health": None,
    "/ready": None,
    "/": None,
    "/docs": None,
    "/docs/oauth2-redirect": None,
    "/redoc": None,
    "/openapi.json": None,
}
"""The scope that each route asks for; None: open to everybody. Probes have no keys, a browser sends none when it opens
/docs, and none of the open ones says anything about events. Every other path is admin's."""

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
        path = scope["path"].rstrip("/") or "/"
        needed = "read" if path in PROBES and scope["query_string"] else ROUTES.get(path, "admin")
        if needed is None:
            await self.app(scope, receive, send)
            return
        secret = _secret(scope["headers"])
        key = self._find(secret) if secret else None
        if key and key.allows(needed):
            with structlog.contextvars.bound_contextvars(api_key=key.name):
                await self.app(scope, receive, send)
            return
        await _refusal(path, needed, with_secret=bool(secret), valid=bool(key))(scope, receive, send)

    def _find(self, secret: bytes) -> Key | None:
        """The key with this secret. Each is compared, whichever it is, in a time that says nothing about any."""
        wanted = digest(secret)
        found = None
        for key in self._keyring:
            if hmac.compare_digest(key.digest, wanted):
                found = key
        return found


def _secret(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """What the request sends as `Authorization: Bearer`, else as `X-API-Key`; empty where it sends neither."""
    given = dict(headers)
    scheme, _, secret = given.get(b"authorization", b"").partition(b" ")
    return secret.strip() if scheme.lower() == b"bearer" else given.get(b"x-api-key", b"").strip()


def _refusal(path: str, needed: str, *, with_secret: bool, valid: bool) -> ASGIApp:
    """The answer to a request that may not pass, with the challenge that RFC 6750, section 3, asks for."""
    if valid and path not in ROUTES:
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
