"""Sends batches of events to POST /publish until each event is accepted or in the spill file."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime

import httpx2
from tenacity import AsyncRetrying, RetryCallState, retry_if_result, stop_after_attempt, wait_exponential_jitter

from publisher.answers import Answer, no_answer, read_answer
from publisher.sources import Event
from publisher.spill import Spill
from publisher.tally import Tally

TRIES = 5
"""Of one request, in all: a rule of the contract."""

BACKOFF = wait_exponential_jitter(multiplier=0.5, max=30, jitter=0.5)
"""Seconds before the next try: 0.5, 1, 2, 4, and up to half a second more so that requests do not return in step."""

TIMEOUT = httpx2.Timeout(30, connect=5)
LONGEST_SECONDS = 120
"""For one try, however it trickles."""

HEAD, TAIL = b'{"events":[', b"]}"
REQUEST_BYTES = 8 * 2**20 - len(HEAD) - len(TAIL)
"""Of events in one request; half of what the service takes as it comes."""

INTERRUPTED = "interrupted"
GIVEN_UP = "not tried to the end: the service had been given up"

Sleep = Callable[[float], Awaitable[None]]
Advance = Callable[[int], None]


class Sender:
    """Several requests at a time over one HTTP client, and what became of their events."""

    def __init__(
        self,
        client: httpx2.AsyncClient,
        url: str,
        *,
        spill: Spill,
        patience: int,
        sleep: Sleep,
        advance: Advance,
    ) -> None:
        """Sends to `url`; gives up when `patience` requests in a row failed for good; `advance` hears of progress."""
        self.tally = Tally()
        self._client, self._url = client, url
        self._spill, self._patience, self._sleep, self._advance = spill, patience, sleep, advance
        self._failed_in_a_row = 0
        self._asking: set[asyncio.Task[object]] = set()

    async def run(self, batches: AsyncIterator[list[Event]], concurrency: int) -> None:
        """Delivers every batch, `concurrency` at a time, reading no further ahead.

        Raises SpillError where events that were not accepted cannot be kept.
        """
        turn = asyncio.Lock()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(self._work(batches, turn))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    def stop(self, reason: str) -> None:
        """Sends nothing any more: what is on its way and what still comes goes to the spill file."""
        self.tally.stopped = self.tally.stopped or reason
        for task in self._asking:
            task.cancel()

    async def _work(self, batches: AsyncIterator[list[Event]], turn: asyncio.Lock) -> None:
        while True:
            async with turn:
                batch = await anext(batches, None)
            if batch is None:
                return
            for event in batch:
                if event.problem:
                    self._fail([event], event.problem)
            good = [event for event in batch if not event.problem]
            if good and not self.tally.stopped:
                self.tally.sent += len(good)
            await self._deliver(good)
            await asyncio.sleep(0)  # a file that only goes to the spill file never waits: let signals in

    async def _deliver(self, events: Sequence[Event], *, again: bool = False) -> None:
        """Sends the events in one request, or in several where the service refuses a part; `again`: it did before."""
        if not events:
            return
        answer = await self._ask(events)
        if answer.accepted:
            self.tally.accepted += len(events)
            self._advance(len(events))
        elif answer.status == 413 and len(events) > 1:
            await self._deliver_halves(events)
        elif answer.refused:
            for index, reason in answer.refused.items():
                self._fail([events[index]], reason)
            rest = [event for index, event in enumerate(events) if index not in answer.refused]
            # One bad event costs one request more; halves keep a file that is bad throughout from costing n² events.
            await (self._deliver_halves(rest) if again else self._deliver(rest, again=True))
        else:
            self._fail(events, answer.reason)

    async def _deliver_halves(self, events: Sequence[Event]) -> None:
        middle = (len(events) + 1) // 2
        await self._deliver(events[:middle], again=True)
        await self._deliver(events[middle:], again=True)

    def _fail(self, events: Sequence[Event], reason: str) -> None:
        self._spill.keep(event.text for event in events)
        self.tally.fail(events, reason)
        self._advance(len(events))

    async def _ask(self, events: Sequence[Event]) -> Answer:
        """The final answer to one request. A cancellation becomes an answer, so that no event in hand is forgotten."""
        task = asyncio.current_task()
        if self.tally.stopped or task is None:
            return Answer(self.tally.stopped or INTERRUPTED)
        self._asking.add(task)
        body = HEAD + b",".join(event.text for event in events) + TAIL
        try:
            answer: Answer = await self._retrying()(self._try, body, len(events))
        except asyncio.CancelledError:
            self.tally.stopped = self.tally.stopped or INTERRUPTED
            return Answer(self.tally.stopped)
        finally:
            self._asking.discard(task)
        self._count_failures(answer)
        return answer

    async def _try(self, body: bytes, count: int) -> Answer:
        started = time.perf_counter()
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                response = await self._client.post(
                    self._url, content=body, headers={"content-type": "application/json"}
                )
        except (httpx2.RequestError, TimeoutError) as error:
            return no_answer(error)
        answer = read_answer(response, count, datetime.now(UTC))
        if answer.accepted:
            self.tally.latencies.append(time.perf_counter() - started)
        return answer

    def _retrying(self) -> AsyncRetrying:
        def count_retry(_: RetryCallState) -> None:
            self.tally.retries += 1

        return AsyncRetrying(
            sleep=self._sleep,
            stop=stop_after_attempt(TRIES),
            wait=seconds_to_wait,
            retry=retry_if_result(lambda answer: answer.temporary),
            before_sleep=count_retry,
            retry_error_callback=last_answer,
        )

    def _count_failures(self, answer: Answer) -> None:
        self._failed_in_a_row = self._failed_in_a_row + 1 if answer.temporary else 0
        if self._failed_in_a_row == self._patience:
            self.stop(GIVEN_UP)


def last_answer(state: RetryCallState) -> Answer:
    """The answer that the latest try of a request brought."""
    answer: Answer = state.outcome.result() if state.outcome else Answer(INTERRUPTED)
    return answer


def seconds_to_wait(state: RetryCallState) -> float:
    """The back-off of this try, or what the server asked for where that is longer."""
    asked = last_answer(state).retry_after
    return max(BACKOFF(state), asked + random.uniform(0, 0.5) if asked else 0.0)
