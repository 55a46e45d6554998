"""What the sessions of PostgreSQL do at full load: a lock that caps the design would show here, whatever the cores."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import psycopg

from loadtest import system
from loadtest.goals import Figures
from loadtest.rates import BULK, SINGLE, Shape, measure
from tests.servers import Stack

LOOK_SECONDS = 0.02

STATEMENTS = """
SELECT application_name || ' ' || coalesce('waits for ' || wait_event_type || ' ' || wait_event, 'works')
FROM pg_stat_activity
WHERE application_name LIKE 'chronicle-%' AND state = 'active'
"""


def of_sessions(scale: float) -> Figures:
    """Percent of the statements under way, looked at every LOOK_SECONDS: whose they are, and what they wait for."""
    with system.chronicle() as stack, ThreadPoolExecutor(1) as load:
        found: Figures = {}
        for shape in (BULK, SINGLE):
            sending = load.submit(measure, stack.port, shape, scale, partial(system.settle, stack))
            found |= _shares(shape, _seen(stack, sending))
            sending.result()
        system.verify(stack)
    return found


def _seen(stack: Stack, sending: Future[Any]) -> Counter[str]:
    """How often a statement was seen at each thing, until `sending` is done; at least one look is taken."""
    seen: Counter[str] = Counter()
    with psycopg.connect(stack.run()["postgres"]["url"], autocommit=True) as session:
        while not seen or not sending.done():
            seen.update(what for (what,) in session.execute(STATEMENTS))
            wait([sending], LOOK_SECONDS)
    return seen


def _shares(shape: Shape, seen: Counter[str]) -> Figures:
    return {f"{shape.name}: {what} %": 100 * times / seen.total() for what, times in seen.most_common()}
