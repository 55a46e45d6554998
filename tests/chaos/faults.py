"""What a fault is: a context manager that strikes on entry, says what it did, and is over on exit."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from .system import System
from .traffic import Traffic


@dataclass
class Scene:
    """What a fault may lay hands on, and where its choices come from."""

    system: System
    traffic: Traffic
    chance: random.Random


Strike = Callable[[Scene], Iterator[str]]


@dataclass(frozen=True)
class Fault:
    """A fault, the part that it strikes (two at once never strike one part), and the kind of bug it would catch."""

    name: str
    part: str
    catches: str
    inject: Callable[[Scene], AbstractContextManager[str]]


FAULTS: dict[str, Fault] = {}


def fault(name: str, part: str, catches: str) -> Callable[[Strike], Strike]:
    """Puts a generator into FAULTS: it strikes, yields what it did, and ends what it did."""

    def register(strike: Strike) -> Strike:
        FAULTS[name] = Fault(name, part, catches, contextmanager(strike))
        return strike

    return register
