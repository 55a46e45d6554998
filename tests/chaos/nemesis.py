"""Strikes with faults, as a plan says that follows from a seed alone."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import psycopg
import redis

from . import broker_faults, network_faults, postgres_faults, process_faults
from .faults import FAULTS, Scene
from .system import System
from .traffic import Traffic

MODULES = (broker_faults, network_faults, postgres_faults, process_faults)
"""Importing them fills FAULTS."""

TWO_AT_ONCE = 0.3
SHORTEST_HOLD, LONGEST_HOLD = 0.2, 3.0
SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 1.5
PROBLEMS = (psycopg.Error, redis.RedisError, OSError, AssertionError)


@dataclass(frozen=True)
class Step:
    """After a pause one fault, or two on different parts, held for a while; all in seconds."""

    pause: float
    names: tuple[str, ...]
    hold: float
    seed: int


def plan(
    seed: int, seconds: float, *, longest_pause: float = LONGEST_PAUSE, without: frozenset[str] = frozenset()
) -> list[Step]:
    """The faults of a round. A round with many steps meets every fault before it meets one again."""
    chance = random.Random(f"{seed}/nemesis")
    steps: list[Step] = []
    deck: list[str] = []
    left = seconds
    while left > 0:
        pause, hold = chance.uniform(SHORTEST_PAUSE, longest_pause), chance.uniform(SHORTEST_HOLD, LONGEST_HOLD)
        names: tuple[str, ...] = ()
        for _ in range(2 if chance.random() < TWO_AT_ONCE else 1):
            deck = deck or chance.sample(sorted(FAULTS.keys() - without), len(FAULTS) - len(without))
            if {FAULTS[deck[-1]].part}.isdisjoint(FAULTS[name].part for name in names):
                names = (*names, deck.pop())
        steps.append(Step(pause, names, hold, chance.getrandbits(32)))
        left -= pause + hold
    return steps


class Nemesis:
    """Works a plan off. What it did, and when, goes to `say`."""

    def __init__(self, system: System, traffic: Traffic, say: Callable[[str], None]) -> None:
        self._system = system
        self._traffic = traffic
        self._say = say
        self._began = time.monotonic()

    def run(self, steps: list[Step]) -> None:
        """Every step in turn; afterwards each fault is over."""
        for step in steps:
            time.sleep(step.pause)
            with ExitStack() as active:
                for name in step.names:
                    self._strike(name, step, active)
                time.sleep(step.hold)

    def _strike(self, name: str, step: Step, active: ExitStack) -> None:
        """A fault that cannot strike (the server that it needs is away) is noted, as is one that cannot end well."""
        scene = Scene(self._system, self._traffic, random.Random(f"{step.seed}/{name}"))
        fault = FAULTS[name].inject(scene)
        try:
            said = fault.__enter__()
        except PROBLEMS as error:
            self._note(f"{name}: could not strike: {error!r}")
            return
        self._note(f"{name}: {said}")
        active.callback(self._end, name, fault)

    def _end(self, name: str, fault: AbstractContextManager[str]) -> None:
        try:
            fault.__exit__(None, None, None)
            self._note(f"{name}: over")
        except PROBLEMS as error:
            self._note(f"{name}: ended with {error!r}")

    def _note(self, text: str) -> None:
        self._say(f"{time.monotonic() - self._began:6.2f} s  {text}")
