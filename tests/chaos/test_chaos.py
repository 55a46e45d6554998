"""A few rounds of chaos with fixed seeds. Long runs by hand: make chaos ARGS='--rounds 100'."""

from __future__ import annotations

import pytest

from . import round as rounds
from .faults import FAULTS
from .nemesis import plan
from .traffic import Publisher


@pytest.mark.parametrize("seed", [101, 202, 303])
def test_a_round_of_faults_violates_nothing(seed: int) -> None:
    lines: list[str] = []
    report = rounds.run(seed, 4.0, lines.append)
    assert not report.violations, "\n".join([*lines, *report.violations, f"logs, journal and data: {report.folder}"])


def test_a_seed_gives_the_same_faults_and_requests_again() -> None:
    assert plan(7, 60.0) == plan(7, 60.0) != plan(8, 60.0)
    first, again = Publisher(0, 7), Publisher(0, 7)
    assert [first.request().body for _ in range(50)] == [again.request().body for _ in range(50)]


def test_a_long_round_meets_every_fault() -> None:
    assert {name for step in plan(7, 300.0) for name in step.names} == FAULTS.keys()
