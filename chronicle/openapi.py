"""The OpenAPI document: what FastAPI cannot know by itself, said by hand, so that /docs covers every route."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from chronicle.gate import ROUTES
from chronicle.keys import Keyring

DESCRIPTION = (
    "A publish-subscribe log aggregator. An event that was answered 200 is durable, and is stored exactly once for "
    "each (topic, event_id)."
)

ERROR = {
    "type": "object",
    "required": ["detail"],
    "properties": {
        "detail": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "loc", "msg"],
                "properties": {
                    "type": {"type": "string"},
                    "loc": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}},
                    "msg": {"type": "string"},
                },
            },
        }
    },
}


def _error(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": ERROR}}}


INVALID: dict[int | str, dict[str, Any]] = {422: _error("A parameter is not valid")}
NOT_THERE: dict[int | str, dict[str, Any]] = {404: _error("There is no such event: the type of the error says why")}
UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: _error("Not available now; Retry-After says when to try again")}
EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Messages whose `data` is an event as /events gives it, and whose `id` is its position",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}

EVERYWHERE: dict[str, dict[str, Any]] = {
    "400": _error("The request is not HTTP/1.1"),
    "405": _error("The route answers other methods; Allow names them"),
    "408": _error("The request did not come in time"),
    "414": _error("The URL is too long"),
    "422": _error("The query string is not percent-encoded UTF-8"),
    "431": _error("The headers are too many or too long"),
    "500": _error("An internal error; the log has it under the request id of the answer"),
    "503": UNAVAILABLE[503],
}
"""What any route may answer."""

_MOMENT = {"type": "string", "description": "ISO 8601; without an offset it is UTC", "example": "2025-01-01T00:00:00Z"}
_EVENT = {
    "type": "object",
    "required": ["event_id", "topic", "source", "payload", "timestamp"],
    "properties": {
        "event_id": {"type": "string", "minLength": 1, "maxLength": 512, "description": "unique within its topic"},
        "topic": {"type": "string", "maxLength": 255},
        "source": {"type": "string", "minLength": 1, "maxLength": 255},
        "payload": {
            "type": "object",
            "description": "stored whole",
            "properties": {"message": {"type": "string"}, "timestamp": _MOMENT},
        },
        "timestamp": _MOMENT,
    },
}
_PUBLISHED = {
    "type": "object",
    "required": ["status", "message", "events_count"],
    "properties": {
        "status": {"type": "string", "const": "success"},
        "message": {"type": "string"},
        "events_count": {"type": "integer"},
    },
}
_BODY = {
    "type": "object",
    "required": ["events"],
    "properties": {
        "events": {"type": "array", "items": _EVENT, "description": "At most CHRONICLE_MAX_EVENTS, by default 10,000."}
    },
}

PUBLISH = {
    "post": {
        "tags": ["command"],
        "summary": "Publish events",
        "description": "All or nothing. 200 means durable: the events are committed before the answer leaves.",
        "operationId": "publish",
        "requestBody": {"required": True, "content": {"application/json": {"schema": _BODY}}},
        "responses": {
            "200": {"description": "Durable", "content": {"application/json": {"schema": _PUBLISHED}}},
            "413": _error("More events or bytes than a request may have"),
            "415": _error("The body is not JSON"),
            "422": _error("An event is not valid; `loc` names it and its field; nothing was stored"),
            "503": UNAVAILABLE[503],
        },
    }
}


SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, where the service has any"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key in another header"},
}
REFUSALS = {"401": _error("No API key, or none that is valid"), "403": _error("The API key lacks the scope")}


def _secure(schema: dict[str, Any], *, closed: bool) -> None:
    """Names the security schemes and, where there are keys, what each operation asks for."""
    schema.setdefault("components", {})["securitySchemes"] = SCHEMES
    for path, operations in schema["paths"].items() if closed else ():
        if scope := ROUTES.get(path, "admin"):
            for operation in operations.values():
                operation["security"] = [{scheme: [scope]} for scheme in SCHEMES]
                operation["responses"] = operation["responses"] | REFUSALS


def describe(app: FastAPI, *, keyring: Keyring = ()) -> None:
    """Gives the application its document, with POST /publish, a route that FastAPI does not see."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title="ChronicleWeaver", version=app.version, routes=app.routes, description=DESCRIPTION
            )
            schema["paths"] = {"/publish": deepcopy(PUBLISH)} | schema["paths"]
            for operation in (operation for path in schema["paths"].values() for operation in path.values()):
                operation["responses"] = EVERYWHERE | operation["responses"]
            _secure(schema, closed=bool(keyring))
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
