"""(2) dispatch: a ticket for each committed batch goes to Redis; what still waits a moment later gets its QUEUED fact.

A worker writes the QUEUED facts that it misses together with the outcome, which is one commit less for most batches,
and none for the ticket to wait for. Nothing depends on a ticket: a batch whose ticket was not sent, or was lost, is
found in the outbox by the workers.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from uuid import UUID

import psycopg

from chronicle import broker, logs
from chronicle.arrays import UuidArray
from chronicle.database import ours
from chronicle.errors import BrokerAway, ChronicleError
from chronicle.ledger import RECORD_QUEUED
from command import metrics
from command.writer import Writer

PAUSE_SECONDS = 1.0
"""After Redis failed, tickets are left out for so long; the outbox has them."""

MOST_TICKETS = 500

ROUND_SECONDS = 0.025
"""Tickets are sent so long after the last ones at the earliest: small batches are then dispatched, and projected,
together, for little more than one costs."""

SECOND_ROUND_EVENTS, THIRD_ROUND_EVENTS, MANY_EVENTS = 64, 400, 1000
"""Where so many events came in one round there is a second, and where so many came in two a third: each projection
takes from the commits beside it what they need. But batches of MANY_EVENTS wait for no others."""

QUEUED_SECONDS = 0.1
"""A batch whose ticket was sent between one and two of these ago gets its QUEUED fact, unless a worker was quicker."""

log = logs.get(__name__)


class Dispatcher:
    """Sends the tickets of batches, as many together as there are, and records that they are queued."""

    def __init__(self, database_url: str, redis_url: str) -> None:
        self._url = database_url
        self._redis = broker.connect_async(redis_url)
        self._batch_ids: list[UUID] = []
        self._sent: list[UUID] = []
        self._arrived, self._many = asyncio.Event(), asyncio.Event()
        self._events = 0
        self._away_until = 0.0
        self._writer: Writer | None = None

    def add(self, batch_id: UUID, events: int) -> None:
        """A batch of so many events was committed."""
        self._batch_ids.append(batch_id)
        self._events += events
        self._arrived.set()
        if self._events >= MANY_EVENTS:
            self._many.set()

    async def close(self) -> None:
        """Gives up its connections."""
        await self._redis.aclose()
        if self._writer:
            await self._writer.close()

    async def send_all(self) -> None:
        """Sends the tickets of what is added, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            began = loop.time()
            batch_ids, self._batch_ids, self._events = self._batch_ids, [], 0
            self._arrived.clear()
            self._many.clear()
            for start in range(0, len(batch_ids), MOST_TICKETS):
                tickets = batch_ids[start : start + MOST_TICKETS]
                if await self.send(tickets):
                    self._sent += tickets
            await self._many_come_by(began + ROUND_SECONDS)
            for rounds, enough in enumerate((SECOND_ROUND_EVENTS, THIRD_ROUND_EVENTS), start=2):
                if self._events < enough:
                    break
                await self._many_come_by(began + rounds * ROUND_SECONDS)

    async def _many_come_by(self, moment: float) -> None:
        """Returns once many events wait, or at this moment of the loop's clock."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(moment):
                await self._many.wait()

    async def record_all(self) -> None:
        """Records QUEUED for what still waits a moment after its ticket was sent, until cancelled."""
        earlier: list[UUID] = []
        while True:
            await asyncio.sleep(QUEUED_SECONDS)
            if earlier:
                await self.record_queued(earlier)
            earlier, self._sent = self._sent, []

    async def send(self, batch_ids: list[UUID]) -> bool:
        """Sends tickets. False where Redis is away: workers find the batches."""
        began = time.monotonic()
        if began < self._away_until:
            return False
        try:
            await self._send(batch_ids)
        except BrokerAway as error:
            metrics.DISPATCH_FAILURES.inc()
            if not self._away_until:
                log.warning("tickets not sent: workers take batches from the outbox", error=str(error))
            self._away_until = time.monotonic() + PAUSE_SECONDS
            return False
        if self._away_until:
            log.info("tickets are sent again")
            self._away_until = 0.0
        metrics.dispatched(len(batch_ids), time.monotonic() - began)
        return True

    async def _send(self, batch_ids: list[UUID]) -> None:
        with broker.ours():
            # A transaction: a worker that waits is woken by all of them, not by the first.
            async with self._redis.pipeline(transaction=True) as pipeline:
                for batch_id in batch_ids:
                    pipeline.xadd(broker.STREAM, {broker.FIELD: str(batch_id)})
                await pipeline.execute()

    async def record_queued(self, batch_ids: list[UUID]) -> bool:
        """Records QUEUED where no worker has. False where PostgreSQL is away, or refuses: workers will."""
        try:
            await self._record(batch_ids)
        except (ChronicleError, psycopg.Error) as error:
            metrics.DISPATCH_FAILURES.inc()
            log.warning("QUEUED not recorded", error=str(error), batches=len(batch_ids))
            return False
        return True

    async def _record(self, batch_ids: list[UUID]) -> None:
        self._writer = writer = self._writer or await Writer.open(self._url)
        try:
            with ours():
                await writer.connection.execute(
                    RECORD_QUEUED, {"batch_ids": UuidArray(sorted(batch_ids)), "lane": writer.lane}, prepare=True
                )
        except ChronicleError:
            self._writer = None
            await writer.close()
            raise
