"""Processes that die, stop, or are told to end."""

from __future__ import annotations

import signal
from collections.abc import Iterator

from chronicle.up.children import stop
from chronicle.up.servers import Postgres, Valkey

from .faults import Scene, fault


def _signalled(name: str, part: str, number: signal.Signals, catches: str) -> None:
    """A part gets a signal. One that was stopped goes on afterwards; the supervisor starts again what died."""

    @fault(name, part, catches)
    def strike(scene: Scene) -> Iterator[str]:
        target = scene.chance.choice(("projector", "second")) if part == "projector" else part
        pids = scene.system.pids(target)
        scene.system.signal(pids, number)
        try:
            yield f"{number.name} to {target} {pids}"
        finally:
            scene.system.signal(pids, signal.SIGCONT)
            scene.system.start_projector()


def _down(scene: Scene, server: Postgres | Valkey, number: signal.Signals) -> Iterator[str]:
    process = server.process
    assert process
    process.send_signal(number)
    process.wait(20)
    try:
        yield f"{number.name} to {server.name} {process.pid}"
    finally:
        scene.system.start_server(server)


_signalled("API killed", "api", signal.SIGKILL, "an answer before the commit")
_signalled("API stopped", "api", signal.SIGSTOP, "a lock or a lane that a silent process keeps")
_signalled("API ended", "api", signal.SIGTERM, "requests under way that are neither finished nor refused")
_signalled("projector killed", "projector", signal.SIGKILL, "acknowledging before the commit; half a projection")
_signalled("projector stopped", "projector", signal.SIGSTOP, "a batch projected twice when its worker wakes up again")
_signalled("projector ended", "projector", signal.SIGTERM, "tickets that nobody takes over from one who left")
_signalled("postgres stopped", "postgres", signal.SIGSTOP, "waiting without a deadline")
_signalled("broker stopped", "broker", signal.SIGSTOP, "publishing that waits for Redis")


@fault("postgres: immediate stop", "postgres", "an answer before the commit; a session that is never made again")
def _immediate_stop(scene: Scene) -> Iterator[str]:
    yield from _down(scene, scene.system.postgres, signal.SIGQUIT)


@fault("postgres killed", "postgres", "durability that is switched off")
def _postgres_killed(scene: Scene) -> Iterator[str]:
    yield from _down(scene, scene.system.postgres, signal.SIGKILL)


@fault("broker killed", "broker", "events that only the stream holds: it comes back empty")
def _broker_killed(scene: Scene) -> Iterator[str]:
    yield from _down(scene, scene.system.broker, signal.SIGKILL)


@fault("supervisor killed", "api", "children that outlive it, and stand in the way of the next one on the same home")
def _supervisor_killed(scene: Scene) -> Iterator[str]:
    process = scene.system.stack.process
    assert process
    process.kill()
    process.wait(20)
    try:
        yield f"SIGKILL to chronicle up {process.pid}"
    finally:
        scene.system.start_stack()


@fault("rebuild killed midway", "rebuild", "a rebuild that shows half of itself")
def _rebuild_killed(scene: Scene) -> Iterator[str]:
    process = scene.system.chronicle("rebuild")
    try:
        yield f"chronicle rebuild {process.pid}"
    finally:
        stop(process, [(signal.SIGKILL, 5.0)])


@fault("rebuild under load", "rebuild", "a rebuild that decides again, or counts a fact twice or never")
def _rebuild(scene: Scene) -> Iterator[str]:
    process = scene.system.chronicle("rebuild")
    try:
        yield f"chronicle rebuild {process.pid}"
    finally:
        stop(process, [(signal.SIGCONT, 90.0)])
