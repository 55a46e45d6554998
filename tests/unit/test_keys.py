"""API keys: every route of the services with no key, a wrong one, one of another scope, and the right one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.routing import Route
from starlette.testclient import TestClient

from chronicle import gate, http, keys
from chronicle.errors import SettingsError
from chronicle.settings import Settings
from command.app import create_app as command_app
from query.app import create_app as query_app

SECRETS = {"publish": "p" * 16, "read": "r" * 16, "admin": "a" * 16}
TEXT = ", ".join(f"{scope}er:{scope}:{secret}" for scope, secret in SECRETS.items())
SETTINGS = Settings(chronicle_api_keys=TEXT, chronicle_home=Path("/nonexistent"))
KEYRING = keys.load(SETTINGS, "127.0.0.1")
NOWHERE = "postgresql://nobody@127.0.0.1:1/none"

COMMAND = command_app(SETTINGS, NOWHERE, "redis://127.0.0.1:1", keyring=KEYRING)
QUERY = query_app(SETTINGS, NOWHERE, keyring=KEYRING)
APPS = {"command": COMMAND, "query": QUERY, "front door": http.front_door(COMMAND, QUERY)}

NEEDED = {
    ("command", "/publish"): "publish",
    ("query", "/events"): "read",
    ("query", "/events/stream"): "read",
    ("query", "/events/{topic}/{event_id}"): "read",
    ("query", "/events/{topic}/{event_id}/trail"): "read",
    ("query", "/stats"): "read",
    ("query", "/audit"): "read",
    ("query", "/audit/summary"): "read",
    ("command", "/metrics"): "read",
    ("query", "/metrics"): "read",
    ("query", "/dashboard/stream"): "read",
    ("query", "/dashboard/history"): "read",
    ("query", "/"): None,
    ("query", "/assets/{name}"): None,
    ("query", "/assets/vendor/{name}"): None,
} | {
    (app, path): None
    for app in ("command", "query")
    for path in ("/health", "/ready", "/docs", "/docs/{name}", "/openapi.json")
}
"""Which scope each route needs; a route that is not here was not decided on, and the tests fail."""


def routes(name: str, app: FastAPI) -> dict[tuple[str, str], set[str]]:
    """Each route of the application, and its methods; fails on a route that is something else than HTTP."""
    for route in app.routes:
        assert isinstance(route, Route), route
    return {(name, route.path): set(route.methods or ()) for route in app.routes if isinstance(route, Route)}


STOPPING = asyncio.Event()
STOPPING.set()
"""Ends the streams that have no end of their own."""

ROUTES = routes("command", COMMAND) | routes("query", QUERY)
CALLS = [
    (app, method, path)
    for (name, path), methods in ROUTES.items()
    for app in (name, "front door")
    for method in sorted(methods | {"HEAD", "OPTIONS"})
]


def call(app: str, method: str, path: str, headers: dict[str, str]) -> int:
    """The status of the answer; a refusal has to be in the one shape, and to say nothing of any secret."""
    client = TestClient(APPS[app], raise_server_exceptions=False)
    client.app_state["stopping"] = STOPPING
    content = b'{"events": []}' if method == "POST" else None
    answer = client.request(method, path, headers=headers, content=content, follow_redirects=False)
    assert answer.headers["x-request-id"]
    if answer.status_code in (401, 403) and method != "HEAD":
        [problem] = answer.json()["detail"]
        assert problem.keys() == {"type", "loc", "msg"}
        assert answer.headers["www-authenticate"].startswith('Bearer realm="chronicle"')
        assert not [secret for secret in SECRETS.values() if secret in answer.text]
    return answer.status_code


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_every_route_is_decided_on() -> None:
    assert ROUTES.keys() == NEEDED.keys()
    assert {path for _, path in NEEDED} == gate.ROUTES.keys()


@pytest.mark.parametrize(("app", "method", "path"), CALLS)
def test_each_route_wants_its_scope(app: str, method: str, path: str) -> None:
    if app == "front door" and method == "HEAD" and path == "/publish":
        method = "POST"
    needed = NEEDED.get((app, path), NEEDED.get(("query", path), NEEDED.get(("command", path))))
    expected = {None: 401, "not a key of ours": 401} | {
        secret: 200 if scope in (needed, "admin") else 403 for scope, secret in SECRETS.items()
    }
    for secret, status in expected.items():
        got = call(app, method, path, {} if secret is None else bearer(secret))
        passed = got not in (401, 403)
        assert passed if needed is None or status == 200 else got == status, (secret, got)


@pytest.mark.parametrize("query", ["verbose", "verbose=1", "%76erbose", "x=1"])
def test_what_a_probe_says_of_the_inside_wants_the_scope_read(query: str) -> None:
    path = f"/ready?{query}"
    assert call("query", "GET", "/ready", {}) == 503
    assert call("query", "GET", path, {}) == 401
    assert call("query", "GET", path, bearer(SECRETS["publish"])) == 403
    assert call("query", "GET", path, bearer(SECRETS["read"])) == 503


@pytest.mark.parametrize("path", ["/nothing", "/publish/more", "/events/1", "/Events", "/.env", "/metrics/more"])
@pytest.mark.parametrize("app", APPS)
def test_a_path_that_is_no_route_is_closed(app: str, path: str) -> None:
    assert call(app, "GET", path, {}) == 401
    assert call(app, "GET", path, bearer(SECRETS["read"])) == 404
    assert call(app, "GET", path, bearer(SECRETS["admin"])) == 404


@pytest.mark.parametrize("path", ["/docs/..%2Fstats", "/assets/%2e%2e/stats", "/docs/x/../../stats", "/assets/x%2Fy/z"])
def test_no_open_folder_is_a_way_to_anything_else(path: str) -> None:
    assert call("query", "GET", path, {}) in (401, 404)


@pytest.mark.parametrize("path", ["/events/t/a%2Fb", "/events//e", "/events/t/trail/trail", "/events/%ff/e"])
def test_an_event_by_its_key_can_be_read_with_the_key_to_read(path: str) -> None:
    assert call("query", "GET", path, {}) == 401
    assert call("query", "GET", path, bearer(SECRETS["publish"])) == 403
    assert call("query", "GET", path, bearer(SECRETS["read"])) in (422, 503)


@pytest.mark.parametrize("path", ["/events/", "/%65vents", "/events?topic=/health", "/stats//"])
def test_another_spelling_of_a_path_is_no_way_in(path: str) -> None:
    assert call("query", "GET", path, {}) == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": SECRETS["read"]},
        {"Authorization": f"Basic {SECRETS['read']}"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {SECRETS['read']}x"},
        {"Authorization": f"Bearer {SECRETS['read'][:-1]}"},
        {"Authorization": f"Bearer {SECRETS['read'].upper()}"},
        {"Authorization": "Bearer \xff\xfe"},
        {"X-API-Key": ""},
        {"X-API-Key": "wrong"},
        {"X-API-Key": f"Bearer {SECRETS['read']}"},
        {"Cookie": f"key={SECRETS['read']}"},
    ],
)
def test_what_is_almost_a_key_is_none(headers: dict[str, str]) -> None:
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    assert call("query", "GET", "/stats", encoded) == 401  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {SECRETS['read']}"},
        {"authorization": f"bearer  {SECRETS['read']}"},
        {"X-API-Key": SECRETS["read"]},
        {"Authorization": "Basic of-a-proxy", "X-API-Key": SECRETS["read"]},
    ],
)
def test_a_key_may_come_in_either_header(headers: dict[str, str]) -> None:
    assert call("query", "GET", "/stats", headers) not in (401, 403)


def test_several_keys_are_valid_at_once_also_under_one_name(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# the next one\n\nshop:publish:{'n' * 16}\n  # another\nops:read+publish:{'o:' * 8}\n")
    settings = Settings(chronicle_api_keys=f"shop:publish:{'s' * 16}", chronicle_api_keys_file=str(file))
    keyring = keys.load(settings, "0.0.0.0")
    assert [(key.name, sorted(key.scopes)) for key in keyring] == [
        ("shop", ["publish"]),
        ("shop", ["publish"]),
        ("ops", ["publish", "read"]),
    ]


SECRET = "S3cret-S3cret-S3cret"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SECRET, "name:scope"),
        (f"a:{SECRET}", "name:scope"),
        (f":read:{SECRET}", "name:scope"),
        ("a:read:", "name:scope"),
        (f"a b:read:{SECRET}", "name:scope"),
        (f"a:{SECRET}:read", "scopes are"),
        (f"a::{SECRET}", "scopes are"),
        (f"a:write:{SECRET}", "scopes are"),
        (f"a:read+:{SECRET}", "scopes are"),
        ("a:read:S3cret-S3cret-S", "16 characters"),
        (f"a:read:{SECRET}é", "ASCII"),
        (f"a:read:{SECRET} b:publish:{SECRET}", "same secret"),
        (f"none, a:read:{SECRET}", "name:scope"),
    ],
)
def test_an_entry_that_is_not_valid_is_refused_and_never_repeated(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    text = text[:-1] if "16 characters" in said and len(text) > 22 else text
    for settings in (Settings(chronicle_api_keys=text), Settings(chronicle_api_keys_file=str(file))):
        with pytest.raises(SettingsError, match=said) as error:
            keys.load(settings, "127.0.0.1")
        assert "S3cret" not in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "# nothing\n"])
def test_a_file_without_keys_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        keys.load(Settings(chronicle_api_keys_file=str(file)), "127.0.0.1")
    file.write_text(content)
    with pytest.raises(SettingsError, match="names no key"):
        keys.load(Settings(chronicle_api_keys_file=str(file)), "127.0.0.1")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "::ffff:192.0.2.1"])
def test_an_address_that_others_reach_needs_keys_or_an_explicit_no(host: str) -> None:
    for empty in (Settings(), Settings(chronicle_api_keys=" "), Settings(chronicle_api_keys_file="")):
        with pytest.raises(SettingsError, match="CHRONICLE_API_KEYS="):
            keys.load(empty, host)
    assert keys.load(Settings(chronicle_api_keys="none"), host) == ()
    assert len(keys.load(SETTINGS, host)) == 3


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "localhost", "::1", "::ffff:127.0.0.1"])
def test_loopback_needs_none_until_there_are_some(host: str) -> None:
    assert keys.load(Settings(), host) == ()
    assert len(keys.load(SETTINGS, host)) == 3


def test_none_and_a_file_of_keys_contradict_each_other(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"a:read:{SECRET}")
    with pytest.raises(SettingsError, match="unset one of them"):
        keys.load(Settings(chronicle_api_keys="none", chronicle_api_keys_file=str(file)), "127.0.0.1")


def test_no_secret_shows_in_what_is_printed() -> None:
    settings = Settings(chronicle_api_keys=f"a:read:{SECRET}", chronicle_api_key=SECRET)
    assert SECRET not in f"{settings!r} {settings} {keys.load(settings, 'localhost')!r}"
    digest = keys.load(settings, "localhost")[0].digest
    assert repr(digest) not in repr(keys.load(settings, "localhost"))


def test_a_client_sends_its_key_and_refuses_what_is_none() -> None:
    assert keys.bearer(Settings(chronicle_api_key=f" {SECRET}\n")) == {"Authorization": f"Bearer {SECRET}"}
    assert keys.bearer(Settings()) == {}
    with pytest.raises(SettingsError) as error:
        keys.bearer(Settings(chronicle_api_key=f"{SECRET} é"))
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(("app", "publish"), [(COMMAND, {"/publish"}), (QUERY, {"/publish"})])
def test_the_document_names_the_schemes_and_what_each_operation_asks_for(app: FastAPI, publish: set[str]) -> None:
    document = app.openapi()
    schemes = document["components"]["securitySchemes"]
    assert {scheme["type"] for scheme in schemes.values()} == {"http", "apiKey"}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            needed = gate.ROUTES[path]
            assert operation.get("security") == ([{name: [needed]} for name in schemes] if needed else None), path
            assert {"401", "403"} <= operation["responses"].keys() or not needed


def test_without_keys_everything_is_open_and_the_document_says_so() -> None:
    app = query_app(Settings(), NOWHERE)
    client = TestClient(app, raise_server_exceptions=False)
    assert client.get("/stats").status_code == 503
    document = client.get("/openapi.json").json()
    assert "security" not in document["paths"]["/publish"]["post"]
    assert "security" not in document["paths"]["/stats"]["get"]
