"""API keys: who may call which route. Pure ASGI, before routing, so that a route nobody decided on is closed."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from chronicle import http
from chronicle.errors import Problem, SettingsError
from chronicle.settings import Settings

SCOPES = ("publish", "read", "admin")
"""What a key may be for; admin includes the others."""

ROUTES: dict[str, str | None] = {
    "/publish": "publish",
    "/events": "read",
    "/stats": "read",
    "/audit": "read",
    "/audit/summary": "read",
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

NONE = "none"
SHORTEST_SECRET = 16
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
SECRET = re.compile(r"[!-~]+")

HOW = (
    "set CHRONICLE_API_KEYS='name:publish+read:SECRET' or CHRONICLE_API_KEYS_FILE (scopes publish, read, admin; "
    f"a secret has at least {SHORTEST_SECRET} characters), or CHRONICLE_API_KEYS={NONE} where something before it "
    "checks who calls"
)


@dataclass(frozen=True)
class Key:
    """A key as the service knows it: never the secret itself."""

    name: str
    scopes: frozenset[str]
    digest: bytes = field(repr=False)

    def allows(self, scope: str) -> bool:
        """Whether it may do what asks for this scope."""
        return scope in self.scopes or "admin" in self.scopes


Keyring = tuple[Key, ...]
"""The keys that are valid now; without any, everybody may do everything."""


def load(settings: Settings, host: str) -> Keyring:
    """The keys of CHRONICLE_API_KEYS and CHRONICLE_API_KEYS_FILE, for a service that listens on `host`.

    Raises SettingsError, which never contains a secret, for an entry that is not valid, and where there is no key
    although others than this machine may call.
    """
    text = settings.chronicle_api_keys.get_secret_value() if settings.chronicle_api_keys else ""
    open_on_purpose = text.strip() == NONE
    keyring = _read("CHRONICLE_API_KEYS", "" if open_on_purpose else text)
    if name := settings.chronicle_api_keys_file:
        variable = f"CHRONICLE_API_KEYS_FILE {name}"
        keyring += _read(variable, _content(variable, Path(name))) or _none_in(variable)
    if open_on_purpose and keyring:
        raise SettingsError(f"CHRONICLE_API_KEYS is {NONE}, and CHRONICLE_API_KEYS_FILE names keys: unset one of them")
    if len({key.digest for key in keyring}) < len(keyring):
        raise SettingsError("two API keys have the same secret")
    if not keyring and not open_on_purpose and not _is_loopback(host):
        raise SettingsError(f"{host} is open to others, and there are no API keys: {HOW}")
    return keyring


def bearer(settings: Settings) -> dict[str, str]:
    """The header by which a client of ours sends CHRONICLE_API_KEY; none where it is not set. Raises SettingsError."""
    secret = settings.chronicle_api_key.get_secret_value().strip() if settings.chronicle_api_key else ""
    if secret and not SECRET.fullmatch(secret):
        raise SettingsError("CHRONICLE_API_KEY has characters that are in no key")
    return {"Authorization": f"Bearer {secret}"} if secret else {}


def _content(variable: str, path: Path) -> str:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise SettingsError(f"{variable} cannot be read: {reason}") from None
    return "\n".join(line for line in lines if not line.lstrip().startswith("#"))


def _none_in(variable: str) -> Keyring:
    raise SettingsError(f"{variable} names no key")


def _read(variable: str, text: str) -> Keyring:
    """The keys of entries `name:scope+scope:secret`, separated by commas or whitespace."""
    entries = [entry for entry in re.split(r"[,\s]+", text) if entry]
    return tuple(_key(f"{variable}, entry {number}", entry) for number, entry in enumerate(entries, 1))


def _key(place: str, entry: str) -> Key:
    """One key. What is wrong with it is said without repeating it: any part may be the secret."""
    name, _, rest = entry.partition(":")
    scopes, _, secret = rest.partition(":")
    if not NAME.fullmatch(name) or not secret:
        raise SettingsError(f"{place}: not name:scope+scope:secret")
    if not set(scopes.split("+")) <= set(SCOPES):
        raise SettingsError(f"{place}: the scopes are {', '.join(SCOPES)}, joined by +")
    if len(secret) < SHORTEST_SECRET or not SECRET.fullmatch(secret):
        raise SettingsError(f"{place}: a secret has at least {SHORTEST_SECRET} characters, all of them printable ASCII")
    return Key(name, frozenset(scopes.split("+")), _digest(secret.encode()))


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def _is_loopback(host: str) -> bool:
    """Whether only this machine can reach a socket that listens on `host`; a name that means nothing cannot listen."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return True
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


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
        needed = ROUTES.get(path, "admin")
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
        digest = _digest(secret)
        found = None
        for key in self._keyring:
            if hmac.compare_digest(key.digest, digest):
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
