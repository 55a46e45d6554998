"""What the OpenAPI document promises holds for requests made from it, good ones and bad ones: no 5xx, no surprise."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from api import Api
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 60


@pytest.fixture(scope="module")
def document(api: Api) -> Any:
    """The running system's own description; of the answer without end, test_29_stream.py asks for the beginning."""
    return schemathesis.openapi.from_url(f"{api.url}/openapi.json").exclude(path="/events/stream")


def test_every_route_is_documented(document: Any) -> None:
    routes = {(operation.ok().method, operation.ok().path) for operation in document.get_all_operations()}
    assert {("post", "/publish"), ("get", "/events"), ("get", "/audit"), ("get", "/audit/summary")} <= routes


def answers_as_documented(operation: Any, mode: schemathesis.GenerationMode) -> None:
    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), database=None)
    @given(case=operation.as_strategy(generation_mode=mode))
    def every_request(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    every_request()


def test_requests_made_from_the_document_get_documented_answers(document: Any) -> None:
    for result in document.get_all_operations():
        answers_as_documented(result.ok(), schemathesis.GenerationMode.POSITIVE)


@pytest.mark.parametrize("path", ["/publish", "/events", "/audit"])
def test_requests_that_break_the_document_get_documented_answers(document: Any, path: str) -> None:
    [operation] = [result.ok() for result in document.get_all_operations() if result.ok().path == path]
    answers_as_documented(operation, schemathesis.GenerationMode.NEGATIVE)


@settings(max_examples=20)
@given(st.text())
def test_no_text_in_a_query_string_is_an_internal_error(api: Api, text: str) -> None:
    names = ("topic", "event_id", "source", "action", "from", "to", "limit", "cursor")
    encodable = text.encode("utf-8", "replace").decode()
    for path in ("/events", "/audit"):
        for name in names:
            assert api.http.get(path, params={name: encodable}).status_code in (200, 422)
