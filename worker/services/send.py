"""Sending: claims in micro-batches, calls the channel, publishes the results, and then acknowledges.

A claim is held under a token and a lease. Just before the relay can have a message, the claim is marked as
handed over. A process that dies leaves claims. If a claim was not handed over, another process sends it after
the lease has expired. If it was handed over, its recipient becomes `unknown` and is never sent again
automatically.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from worker.amqp.consuming import consuming
from worker.amqp.reports import Report, Reports
from worker.channels.contents import Contents
from worker.channels.protocol import ChannelUnreachable, Granted
from worker.channels.reaching import Reaching
from worker.crashing import crash_point
from worker.db.holding import Holding
from worker.db.retrying import Idempotent, Unstorable
from worker.db.start_times import StartTimes
from worker.domain.audience import address_key
from worker.domain.content import ContentInvalid
from worker.domain.failures import NO_MESSAGES_FAULT, Busy, Stopped
from worker.domain.verdicts import Failed, Unsure, Withheld, result_of
from worker.domain.window import ClaimWindow
from worker.services.asked import read, take_absent
from worker.services.unclaimed import Unclaimed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from contracts.sends import Send
    from worker.amqp.dead import Burying
    from worker.amqp.messages import Consumer, Incoming, Publisher
    from worker.channels.protocol import Channel, HandOver
    from worker.db.hand_over import Right
    from worker.db.holding import Claims, Held
    from worker.db.retrying import Retrying
    from worker.domain.verdicts import Verdict
    from worker.services.asked import Asked, Sizes
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


class ContentStore(Protocol):
    """Reads contents."""

    async def content(self, delivery_id: int) -> tuple[str, dict[str, Any]] | None:
        """Returns a delivery's channel and content."""

    async def seconds_since_due(self, delivery_id: int) -> float | None:
        """Returns the seconds since a delivery was to start; None if it is not confirmed."""


@dataclass(frozen=True, slots=True)
class SendParts:
    """The parts of a sender."""

    channel_name: str
    channel: Channel
    """The channel that it sends over."""
    open_consumer: Callable[[], Consumer]
    """Makes a consumer of the channel's queue: a new one each time that the channel is reachable again."""
    publisher: Publisher
    """Publishes the results."""
    exchange: str
    """The exchange of the results, by its full name."""
    dead: Burying
    claims: Claims
    sizes: Sizes
    """Says which numbers cannot be recipients."""
    contents: ContentStore
    database: Retrying
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class SendLimits:
    """The limits of a sender."""

    batch: int
    """The most messages in one claim."""
    age: float
    """Seconds to wait for a batch to fill after its first message came."""
    claim_lease: float
    """Seconds for which a claim is held before it is handed over."""
    result_lease: float
    """Seconds from the hand-over until the result of a message."""
    patience: float
    """Seconds to wait for an unreachable channel. Then unclaimed messages go back to the queue."""
    unclaimed: int = 500
    """The most messages that are held unclaimed because their lane takes no more now."""


class SendService:
    """Sends over one channel."""

    def __init__(self, parts: SendParts, limits: SendLimits) -> None:
        """Takes its parts and its limits."""
        self.name = f"send {parts.channel_name}"
        self._parts = parts
        self._limits = limits
        self._metrics = parts.metrics
        self._at_once = parts.channel.concurrency
        # Twice the channel's concurrency: the next messages are claimed while the current ones are sent.
        least = limits.batch if self._at_once is None else 2 * self._at_once
        self._window = ClaimWindow(least, limits.batch)
        self._contents = Contents(parts.channel, self._read_content)
        self._starts = StartTimes(parts.contents, parts.database, self._metrics.start_seconds.observe)
        self._holding = Holding(
            parts.claims,
            parts.database,
            lease=limits.claim_lease,
            result_lease=limits.result_lease,
            at_most=self._at_once,
            on_mark=self._starts.handed_over,
            on_end=self._metrics.hand_over_seconds.observe,
        )
        self._reaching = Reaching(parts.channel, parts.channel_name)
        self._reports = Reports(
            parts.publisher,
            parts.exchange,
            lambda key, count: self._metrics.results_published.labels(parts.channel_name, key).inc(count),
            # One half is reported, and as many are marked, while the other half is sent.
            enough=max(1, (self._at_once or 1) // 2),
        )
        self._sending: set[asyncio.Task[None]] = set()
        self._unclaimed = Unclaimed(limits.unclaimed)
        self._freed = asyncio.Event()
        self._reading: asyncio.Timeout | None = None
        """Ends the wait for messages of the queue, so that the unclaimed ones are looked at."""
        self._consumer: Consumer | None = None
        self._metrics.sends_in_flight.labels(parts.channel_name).set_function(lambda: len(self._sending))
        self._metrics.channel_up.labels(parts.channel_name).set_function(lambda: not self.unreachable)

    @property
    def unreachable(self) -> str:
        """Why nothing can be sent over the channel now; empty if the channel works."""
        return self._reaching.unreachable

    async def consuming(self) -> bool:
        """Returns whether the broker delivers to this sender now."""
        return self._consumer is not None and await self._consumer.present()

    async def run(self, stop: asyncio.Event) -> None:
        """Sends until `stop`; it sends and reports claimed messages first."""
        async with asyncio.TaskGroup() as group:
            background = [
                group.create_task(self._reports.run()),
                group.create_task(self._holding.run()),
                group.create_task(self._stop_waiting(stop)),
            ]
            with contextlib.suppress(Stopped):
                while not stop.is_set():
                    await self._reaching.reach(stop)
                    await self._consume(stop, group)
            while self._sending:
                await asyncio.wait(self._sending)
            await self._reports.flush()
            for task in background:
                task.cancel()
        await self._parts.channel.close()

    async def _stop_waiting(self, stop: asyncio.Event) -> None:
        """Lets nobody wait for the channel while the process stops: their claims are given back."""
        await stop.wait()
        self._parts.channel.stop_waiting()

    async def _consume(self, stop: asyncio.Event, group: asyncio.TaskGroup) -> None:
        """Sends the queue's messages, until `stop` or until the channel is unreachable for too long."""
        consumer = self._consumer = self._parts.open_consumer()
        self._unclaimed.clear()  # what the consumer before held is back in the queue
        async with consuming(consumer, stop):
            try:
                await self._take_turns(consumer, stop, group)
            except ChannelUnreachable as error:
                log.warning(
                    "the messages in hand go back to the queue",
                    channel=self._parts.channel_name,
                    because=str(error),
                )
                return
            except Stopped:
                pass  # unclaimed messages go back to the queue, claimed ones are sent
            while self._sending:
                await asyncio.wait(self._sending)
            await self._reports.flush()

    async def _take_turns(self, consumer: Consumer, stop: asyncio.Event, group: asyncio.TaskGroup) -> None:
        """Claims what waits for its lane, then what comes out of the queue; until the consumer is stopped.

        Only this task claims. So the window counts all messages in hand, and none of them waits for anything
        but its own send: what must wait is unclaimed.
        """
        loop = asyncio.get_running_loop()
        while not stop.is_set():
            free = await self._free_slots()
            self._settle(self._unclaimed.surplus(loop.time()))
            if self._unclaimed.ready(loop.time()):
                await self._claim_some(free, stop, group)
            elif batch := await self._read(consumer, free):
                await self.handle(batch, consumer, stop, group)

    async def _read(self, consumer: Consumer, most: int) -> list[Incoming]:
        """Returns messages of the queue; none when the unclaimed ones are to be looked at, or at a stop."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(self._unclaimed.look_at(loop.time())) as self._reading:
                if self._unclaimed.full:
                    await loop.create_future()
                return await consumer.batch(most, self._limits.age)
        except TimeoutError:
            return []
        finally:
            self._reading = None

    def _settle(self, unclaimed: Collection[Asked]) -> None:
        """Acknowledges messages that are not sent. If they must be, their page is published again."""
        self._reports.add([Report(a.consumer, a.message, None) for a in unclaimed])

    async def _free_slots(self) -> int:
        loop = asyncio.get_running_loop()
        while not (free := self._window.free(len(self._sending), loop.time())):
            self._freed.clear()
            await self._freed.wait()
        return free

    async def handle(
        self, batch: list[Incoming], consumer: Consumer, stop: asyncio.Event, group: asyncio.TaskGroup
    ) -> None:
        """Claims the recipients of a batch and begins to send; the tasks that go on belong to `group`.

        Raises:
            ChannelUnreachable: the channel was unreachable for too long. Unclaimed messages are not
                acknowledged.
            Stopped: `stop` is set. Unclaimed messages are not acknowledged.
        """
        now = asyncio.get_running_loop().time()
        asked, unread, doubles = read(batch, consumer, self._parts.channel.lanes, now)
        consumer.acknowledge(doubles)
        unread += take_absent(asked, await self._parts.sizes.sizes(asked.keys()))
        if unread:
            await self._parts.dead.bury(*unread)
            consumer.acknowledge(letter.message for letter in unread)
        for _, of_one in sorted(asked.items()):
            self._settle(self._unclaimed.add(of_one.values()))
        await self._claim_some(len(batch), stop, group)

    async def _claim_some(self, most: int, stop: asyncio.Event, group: asyncio.TaskGroup) -> None:
        """Claims so many of the unclaimed messages at most, and begins to send."""
        loop = asyncio.get_running_loop()
        while most and self._unclaimed.ready(loop.time()):
            await self._reaching.reach(stop, self._limits.patience)
            taken = self._unclaimed.take(most, loop.time())
            if taken is None:
                return
            delivery_id, asked = taken
            most -= len(asked)
            await self._send_granted(delivery_id, asked, group)

    async def _send_granted(
        self, delivery_id: int, asked: dict[int, Asked], group: asyncio.TaskGroup
    ) -> None:
        wanted = {r: (a.send.attempt, address_key(a.send.address)) for r, a in asked.items()}
        try:
            granted = await self._claim(delivery_id, wanted)
        except (Busy, Unstorable) as error:  # other messages go on: the scheduler opens the page again
            log.warning("claims refused", delivery_id=delivery_id, messages=len(wanted), because=str(error))
            self._metrics.sends_refused.labels(self._parts.channel_name).inc(len(wanted))
            self._leave(asked.values(), unused=True)
            self._settle(asked.values())
            return
        self._metrics.claim_recipients.observe(len(wanted))
        self._metrics.sends_claimed.labels(self._parts.channel_name).inc(len(granted))
        self._metrics.sends_refused.labels(self._parts.channel_name).inc(len(wanted) - len(granted))
        if refused := [a for r, a in asked.items() if r not in granted]:
            self._leave(refused, unused=True)
            self._settle(refused)
            log.debug("not granted", delivery_id=delivery_id, messages=len(refused))
        if not granted:
            return
        first = min(granted)
        await self._starts.expect(delivery_id, first, asked[first].send.attempt)
        # After the claim, since only the content of a confirmed delivery is final.
        try:
            compiled = await self._contents.compiled(delivery_id)
        except Busy as busy:
            compiled = busy  # for this batch only
        if self._at_once is None:
            self._starts.handed_over(delivery_id, granted.keys())
            now = datetime.now(UTC)
            tried = [(asked[r], await self._try(compiled, asked[r].send, Granted())) for r in granted]
            self._reports.add(
                [Report(a.consumer, a.message, result_of(a.send, verdict, now)) for a, verdict in tried]
            )
            return
        for recipient, held in granted.items():
            one = asked[recipient]
            task = group.create_task(
                self._try_and_report(compiled, one, held), name=f"send {one.message.message_id}"
            )
            self._sending.add(task)
            task.add_done_callback(self._free)

    async def _claim(self, delivery_id: int, wanted: dict[int, tuple[int, str]]) -> dict[int, Held]:
        with self._metrics.claim_seconds.time():
            return await self._holding.claim(delivery_id, wanted)

    def _leave(self, asked: Collection[Asked], *, unused: bool) -> None:
        """Notes that messages are not claimed any more; whether they were not tried."""
        for one in asked:
            if one.lane is not None:
                one.lane.leave(unused=unused)
                if one.lane.waiting:
                    self._look()

    def _look(self) -> None:
        """Has the unclaimed messages looked at, if the next ones of the queue are waited for."""
        if self._reading is not None and not self._reading.expired():
            self._reading.reschedule(asyncio.get_running_loop().time())

    def _free(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._window.done()
        self._freed.set()

    async def _read_content(self, delivery_id: int) -> tuple[str, dict[str, Any]] | None:
        reading = Idempotent(lambda: self._parts.contents.content(delivery_id))
        found: tuple[str, dict[str, Any]] | None
        found = await self._parts.database.until_done(reading, "reading the content")
        return found

    async def _try_and_report(
        self,
        compiled: Any,  # noqa: ANN401 - each channel's own
        one: Asked,
        held: Held,
    ) -> None:
        right = self._holding.right(held)
        verdict = await self._try(compiled, one.send, right)
        if isinstance(verdict, Failed) and verdict.waits:
            await self._put_off(one, held, right)
            return
        if isinstance(verdict, Withheld):
            await self._holding.give_back(held)
        self._leave([one], unused=False)
        self._starts.forget(one.send.delivery_id, one.send.recipient)
        result = result_of(one.send, verdict, datetime.now(UTC))
        self._reports.add([Report(one.consumer, one.message, result, right.end)])

    async def _put_off(self, one: Asked, held: Held, right: Right) -> None:
        """Gives the claim of a message back, which is then claimed again like one that was just read.

        So a pause, a stop or the end of the validity holds for those who wait too, and nobody loses an
        attempt. The message stays in hand: to publish its page again would double all that is queued.
        """
        await self._holding.give_back(held, in_hand=True)
        right.end()  # nobody is in doubt any more
        if one.consumer is self._consumer:  # else it is back in the queue
            self._settle(self._unclaimed.add([one]))
        self._leave([one], unused=False)
        self._look()

    async def _try(self, compiled: Any, send: Send, right: HandOver) -> Verdict:  # noqa: ANN401 - as above
        if isinstance(compiled, ContentInvalid):
            return Failed("content", retryable=False, detail=str(compiled))
        if isinstance(compiled, Busy):
            return Failed("internal", retryable=True, detail=str(compiled))
        try:
            verdict = await self._parts.channel.send(compiled, send, right)
            crash_point("send.tried")
        except NO_MESSAGES_FAULT:
            raise
        except Exception as error:
            # A fault of our code with one message must not stop the others, and the message needs an outcome.
            log.exception("send failed", delivery_id=send.delivery_id, recipient=send.recipient)
            return Failed("internal", retryable=False, detail=repr(error))
        if isinstance(verdict, Unsure):
            log.warning(
                "outcome unknown",
                delivery_id=send.delivery_id,
                recipient=send.recipient,
                because=verdict.detail,
            )
        return verdict
