"""Networks that cut or delay, after any number of bytes or just before an answer arrives."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from . import proxy
from .faults import Scene, fault


def _network(name: str, way: str, catches: str, rule: Callable[[random.Random], proxy.Rule]) -> None:
    """The proxy before a server follows a rule for a while."""

    @fault(name, f"network to {way}", catches)
    def strike(scene: Scene) -> Iterator[str]:
        network = scene.system.proxies[way]
        network.rule = rule(scene.chance)
        try:
            yield f"network to {way}, {network.resets} cuts so far"
        finally:
            network.rule = proxy.pass_all


for _way, _part in (("postgres", "statement"), ("broker", "reply"), ("api", "request")):
    _network(
        f"network to {_way} cuts",
        _way,
        f"a {_part} taken for whole of which a part arrived",
        lambda chance: proxy.cut_every(chance.randrange(500, 60_000)),
    )
    _network(
        f"network to {_way} stalls",
        _way,
        "deadlines that are missing, or too short to get through",
        lambda chance: proxy.stall_every(chance.randrange(1, 20_000), chance.uniform(0.05, 1.0)),
    )

for _way in ("postgres", "broker"):
    _network(
        f"network to {_way} cuts after answers",
        _way,
        "a part that ends where it meets a connection that was whole a moment before",
        lambda chance: proxy.cut_after_answers(chance.randrange(10, 100)),
    )

_network(
    "answers of COMMIT lost",
    "postgres",
    "a commit tried again under another batch id, which doubles its events",
    lambda chance: proxy.cut_answers(proxy.committed, chance.randrange(1, 8)),
)
_network(
    "answers of broker lost",
    "broker",
    "tickets pending for ever under the name of a reader who never saw them",
    lambda chance: proxy.cut_answers(proxy.anything, chance.randrange(1, 8)),
)
_network(
    "answers of API lost",
    "api",
    "a request that is there in part when its client does not know",
    lambda chance: proxy.cut_answers(proxy.anything, chance.randrange(1, 8)),
)
