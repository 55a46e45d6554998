"""(2) dispatch: each committed batch gets its QUEUED fact, then its ticket goes to Redis.

The fact comes first: after the ticket it would wait for the worker that is already projecting the batch.
Nothing depends on it: a batch whose ticket was not sent, or was lost, is found in the outbox by the workers, who
also write its QUEUED fact.
"""

from __future__ import annotations

import asyncio
import time
from uuid import UUID

from chronicle import broker, logs
from chronicle.database import ours
from chronicle.errors import BrokerAway, ChronicleError
from chronicle.ledger import RECORD_QUEUED
from command import metrics
from command.receive import Writer

PAUSE_SECONDS = 1.0
"""After Redis failed, tickets are left out for so long; the outbox has them."""

MOST_TICKETS = 500

ROUND_SECONDS = 0.005
"""A round takes at least so long: under load many small batches are then dispatched together, for little more."""

log = logs.get(__name__)


class Dispatcher:
    """Records that batches are queued and sends their tickets, as many together as there are."""

    def __init__(self, database_url: str, redis_url: str) -> None:
        self._url = database_url
        self._redis = broker.connect_async(redis_url)
        self._batch_ids: list[UUID] = []
        self._arrived = asyncio.Event()
        self._away_until = 0.0
        self._writer: Writer | None = None

    def add(self, batch_id: UUID) -> None:
        """A batch was committed."""
        self._batch_ids.append(batch_id)
        self._arrived.set()

    async def run(self) -> None:
        """Dispatches until cancelled."""
        try:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                while self._batch_ids:
                    batch_ids = self._batch_ids[:MOST_TICKETS]
                    del self._batch_ids[:MOST_TICKETS]
                    began = time.monotonic()
                    await self.dispatch(batch_ids)
                    await asyncio.sleep(began + ROUND_SECONDS - time.monotonic())
        finally:
            await self.close()

    async def close(self) -> None:
        """Gives up its connections."""
        await self._redis.aclose()
        if self._writer:
            await self._writer.close()

    async def dispatch(self, batch_ids: list[UUID]) -> bool:
        """One step: QUEUED facts, then tickets. False where Redis or PostgreSQL is away: workers find the batches."""
        if time.monotonic() < self._away_until:
            return False
        began = time.monotonic()
        try:
            await self._record(batch_ids)
            await self._send(batch_ids)
        except BrokerAway as error:
            self._away_until = time.monotonic() + PAUSE_SECONDS
            metrics.DISPATCH_FAILURES.inc()
            log.warning("tickets not sent", error=str(error), batches=len(batch_ids))
            return False
        except ChronicleError as error:
            metrics.DISPATCH_FAILURES.inc()
            log.warning("QUEUED not recorded", error=str(error), batches=len(batch_ids))
            return False
        metrics.dispatched(len(batch_ids), time.monotonic() - began)
        return True

    async def _send(self, batch_ids: list[UUID]) -> None:
        with broker.ours():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for batch_id in batch_ids:
                    pipeline.xadd(broker.STREAM, {broker.FIELD: str(batch_id)})
                await pipeline.execute()

    async def _record(self, batch_ids: list[UUID]) -> None:
        self._writer = writer = self._writer or await Writer.open(self._url)
        try:
            with ours():
                await writer.connection.execute(
                    RECORD_QUEUED, {"batch_ids": sorted(batch_ids), "lane": writer.lane}, prepare=True
                )
        except ChronicleError:
            self._writer = None
            await writer.close()
            raise
