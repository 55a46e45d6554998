"""What the API says in the end, read to the last page."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode


def get(port: int, path: str, **parameters: str | int) -> dict[str, Any]:
    """The answer of a GET, which must be a 200. Raises AssertionError, OSError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", f"{path}?{urlencode(parameters)}")
        answer = connection.getresponse()
        text = answer.read().decode()
        assert answer.status == 200, f"{path} answered {answer.status} {text[:200]}"
        return dict(json.loads(text))
    finally:
        connection.close()


def pages(port: int, path: str, **parameters: str | int) -> Iterator[dict[str, Any]]:
    """Every page of a route, the first with its first cursor."""
    page = get(port, path, **parameters)
    while True:
        yield page
        if page["next_cursor"] is None:
            return
        page = get(port, path, **parameters, cursor=page["next_cursor"])
