"""The journal of long runs finds out whatever the ledger holds too much, too little or otherwise."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from given import event, receive

from tests.chaos.digests import Digests
from tests.chaos.journal import Event, Request

SENT = [
    event(
        f"größe | {n}", source="a", payload={"n": n, "odd": [1e300, "\u2028"]}, timestamp="2025-01-01T00:00:00.500000Z"
    )
    for n in range(3)
]


def journal(status: int | None, *, valid: bool = True) -> Digests:
    """One request, and how it ended."""
    request = Request("a", SENT, json.dumps({"events": SENT}).encode(), valid)
    digests = Digests()
    digests.begin(request)
    digests.end(request, status, "")
    return digests


@pytest.mark.parametrize(
    ("status", "batches"),
    [(200, [SENT]), (200, [[event("b"), *SENT]]), (503, [SENT]), (503, []), (None, [SENT]), (None, [])],
)
async def test_what_may_be_is_no_violation(
    status: int | None, batches: list[list[Event]], database_url: str, db: psycopg.Connection[Any]
) -> None:
    await receive(database_url, *batches)
    found = [violation for violation in journal(status).violations(db) if "request test" not in violation]
    assert not found


@pytest.mark.parametrize(
    ("status", "batches"),
    [
        (200, []),
        (200, [SENT, SENT]),
        (200, [SENT[:2]]),
        (200, [[SENT[0], event("b"), *SENT[1:]]]),
        (200, [[*SENT[:2], SENT[2] | {"payload": {}}]]),
        (200, [[*SENT[:2], SENT[2] | {"timestamp": "2025-01-01T00:00:00.500001Z"}]]),
        (None, [SENT[:2]]),
        (None, [SENT[:2], SENT[2:]]),
        (422, [SENT]),
    ],
    ids=["lost", "twice", "a part", "torn", "another payload", "another time", "unknown in part", "in two", "refused"],
)
async def test_what_may_not_be_is_a_violation(
    status: int | None, batches: list[list[Event]], database_url: str, db: psycopg.Connection[Any]
) -> None:
    await receive(database_url, *batches)
    violations = journal(status, valid=status != 422).violations(db)
    assert any("request a" in violation for violation in violations)
