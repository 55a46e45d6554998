"""Valkey that is up and loses what it holds, or refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import redis

from chronicle import broker

from .faults import Scene, fault

MAX_MEMORY, MAX_CLIENTS = "256mb", "10000"


def _lost(name: str, catches: str, command: Callable[[redis.Redis], object]) -> None:
    """Valkey loses something, and once more at the end of the fault; readers block on it meanwhile."""

    @fault(name, "broker", catches)
    def strike(scene: Scene) -> Iterator[str]:
        with scene.system.queue() as client:
            command(client)
            yield "now, and at the end"
            with suppress(redis.RedisError):
                command(client)


_lost("FLUSHALL", "a group that is never made again", lambda client: client.flushall())
_lost("DEL of the stream", "a blocked reader that dies of UNBLOCKED", lambda client: client.delete(broker.STREAM))
_lost(
    "group destroyed",
    "a group made again at $, which skips what the stream holds",
    lambda client: client.exists(broker.STREAM) and client.xgroup_destroy(broker.STREAM, broker.GROUP),
)


@fault("broker out of memory", "broker", "publishing that fails where a ticket cannot be sent")
def _out_of_memory(scene: Scene) -> Iterator[str]:
    with scene.system.queue() as client:
        client.config_set("maxmemory", "1mb")
        try:
            yield "maxmemory 1mb"
        finally:
            with suppress(redis.RedisError):
                client.config_set("maxmemory", MAX_MEMORY)


@fault("connections of broker used up", "broker", "a service that gives up where Redis refuses it")
def _used_up(scene: Scene) -> Iterator[str]:
    with scene.system.queue() as client:
        client.config_set("maxclients", "1")
        client.client_kill_filter(_type="normal", skipme=True)
        try:
            yield "maxclients 1, and all others thrown out"
        finally:
            with suppress(redis.RedisError):
                client.config_set("maxclients", MAX_CLIENTS)
