"""The ceiling: `chronicle` whose receiver answers at once, so that server, route and validation are all that is left.

`python -m loadtest.ceiling api --fd N` is then the same process as in `chronicle up`, and commits nothing.
"""

from __future__ import annotations

from chronicle import cli
from chronicle.events import Events
from command.receive import Receiver


async def answer_at_once(self: Receiver, events: Events, size: int, request_id: str) -> None:
    """Takes events, and forgets them."""


if __name__ == "__main__":
    Receiver.receive = answer_at_once  # type: ignore[method-assign]
    cli.main()
