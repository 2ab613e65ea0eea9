"""Sending: claim in micro-batches, call the channel, publish the results, and only then acknowledge.

Between the claim and the result nothing is held in the database. A process that dies in between leaves a
claim without a result, which the scheduler turns into `unknown` when its lease runs out; it is never sent
again by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import OrderedDict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog
from pydantic import TypeAdapter, ValidationError

from contracts import results, routing
from contracts.base import explain
from contracts.batch import MAX_ITEMS
from contracts.sends import Send
from worker.amqp.consuming import consuming
from worker.amqp.messages import Outgoing
from worker.channels.protocol import ChannelUnreachable
from worker.db import deliveries
from worker.db.retrying import Idempotent, Unstorable
from worker.domain.audience import address_key
from worker.domain.content import ContentInvalid
from worker.domain.failures import NO_MESSAGES_FAULT, Busy, Failure, Stopped
from worker.domain.verdicts import Accepted, Bounced, Failed, Unsure
from worker.domain.window import ClaimWindow
from worker.lifecycle import pause, unless

if TYPE_CHECKING:
    from worker.amqp.dead import DeadQueue
    from worker.amqp.messages import Consumer, Incoming, Publisher
    from worker.channels.protocol import Channel
    from worker.db.accounts import Accounts
    from worker.db.pool import Database
    from worker.domain.verdicts import Verdict
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_Result = results.Taken | results.Bounce | results.Error

_CONTENTS_KEPT: Final = 64
_SHORTEST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 10.0


_read = TypeAdapter(Send).validator.validate_json


class _Asked(NamedTuple):
    """A send message, and the delivery of it that has to be settled."""

    send: Send
    message: Incoming


class SendService:
    """Sends over one channel."""

    def __init__(
        self,
        channel_name: str,
        channel: Channel,
        consumer: Consumer,
        publisher: Publisher,
        dead: DeadQueue,
        db: Database,
        names: routing.Names,
        metrics: Metrics,
        *,
        accounts: Accounts,
        batch: int,
        age: float,
    ) -> None:
        """Takes its parts; at most `batch` messages are claimed together, `age` seconds after the first."""
        self.name = f"send {channel_name}"
        self._channel_name = channel_name
        self._channel = channel
        self._consumer = consumer
        self._publisher = publisher
        self._dead = dead
        self._db = db
        self._accounts = accounts
        self._exchange = names.exchange(routing.RESULTS)
        # Twice the channel's own concurrency: the next messages are claimed while the present ones are sent.
        self._window = ClaimWindow(batch if channel.concurrency is None else 2 * channel.concurrency, batch)
        self._age = age
        self._contents: OrderedDict[int, Any] = OrderedDict()
        self._sending: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()
        self._outbox: list[tuple[Incoming, _Result | None]] = []
        self._reported = asyncio.Event()
        self._metrics = metrics
        metrics.sends_in_flight.labels(channel_name).set_function(lambda: len(self._sending))

    async def run(self, stop: asyncio.Event) -> None:
        """Sends until `stop`; what was claimed is sent and reported first."""
        done = asyncio.Event()
        async with consuming(self._consumer, stop), asyncio.TaskGroup() as group:
            group.create_task(self._report(done))
            with contextlib.suppress(Stopped):  # what is not claimed goes back to the queue
                while batch := await self._consumer.batch(await self._free_slots(), self._age):
                    await self._take(batch, stop, group)
            while self._sending:
                await asyncio.wait(self._sending)
            done.set()
            self._reported.set()
        await self._channel.close()

    async def _free_slots(self) -> int:
        loop = asyncio.get_running_loop()
        while not (free := self._window.free(len(self._sending), loop.time())):
            self._freed.clear()
            await self._freed.wait()
        return free

    async def _take(self, batch: list[Incoming], stop: asyncio.Event, group: asyncio.TaskGroup) -> None:
        by_delivery: dict[int, dict[int, _Asked]] = {}
        for message in batch:
            try:
                one = _Asked(_read(message.body), message)
            except ValidationError as error:
                await self._dead.bury(message, f"The send message could not be read: {explain(error)}")
                self._consumer.settle([message])
                continue
            asked = by_delivery.setdefault(one.send.delivery_id, {})
            double = asked.setdefault(one.send.recipient, one)
            if double is not one:
                earlier, later = sorted((double, one), key=lambda a: a.send.attempt)
                asked[one.send.recipient] = later
                self._consumer.settle([earlier.message])
        for delivery_id, asked in sorted(by_delivery.items()):
            await self._channel_ready(stop)
            await self._send_granted(delivery_id, asked, group)

    async def _channel_ready(self, stop: asyncio.Event) -> None:
        """Waits for the channel before anything is claimed: an outage must not cost recipients an attempt.

        A channel that refuses us is waited for like one that is away: the others have nothing to do with it.

        Raises:
            Stopped: `stop` is set.
        """
        said: bool | None = None
        wait = _SHORTEST_PAUSE
        while not stop.is_set():
            try:
                await unless(stop, self._channel.ready())
            except ChannelUnreachable as error:
                refused = error.failure is Failure.BROKEN
                if refused is not said:
                    log.warning(
                        "channel refuses us, waiting" if refused else "channel out of reach, waiting",
                        channel=self._channel_name,
                        because=str(error),
                    )
                said = refused
                wait = min(2 * wait, _LONGEST_PAUSE)
                await pause(stop, wait * random.uniform(0.5, 1))  # noqa: S311 - lest all come back at once
            else:
                if said is not None:
                    log.info("channel is back", channel=self._channel_name)
                return
        raise Stopped("The process stops, and nothing more is claimed.")

    async def _send_granted(
        self, delivery_id: int, asked: dict[int, _Asked], group: asyncio.TaskGroup
    ) -> None:
        wanted = {r: (a.send.attempt, address_key(a.send.address)) for r, a in asked.items()}
        claiming = Idempotent(lambda: self._accounts.claim(delivery_id, wanted))
        with self._metrics.claim_seconds.time():
            try:
                granted = await self._db.until_done(claiming, "claiming recipients")
            except (Busy, Unstorable) as error:
                # Refused, so that others get on: the scheduler has the page published again. Of a claim's
                # values only the key can be refused, where several others claim the same recipient just now.
                log.warning(
                    "claims refused", delivery_id=delivery_id, messages=len(wanted), because=str(error)
                )
                self._metrics.sends_refused.labels(self._channel_name).inc(len(wanted))
                self._consumer.settle([a.message for a in asked.values()])
                return
        self._metrics.claim_recipients.observe(len(wanted))
        self._metrics.sends_claimed.labels(self._channel_name).inc(len(granted))
        self._metrics.sends_refused.labels(self._channel_name).inc(len(wanted) - len(granted))
        await self._refuse(delivery_id, [a for r, a in asked.items() if r not in granted])
        if not granted:
            return
        # After the claim: only a confirmed delivery's content is final.
        compiled = await self._compiled(delivery_id)
        ordered = [asked[recipient] for recipient in sorted(granted)]
        if self._channel.concurrency is None:
            now = datetime.now(UTC)
            tried = [(one, await self._try(compiled, one)) for one in ordered]
            self._tell([(message, _result(send, verdict, now)) for (send, message), verdict in tried])
            return
        for one in ordered:
            task = group.create_task(self._try_and_tell(compiled, one), name=f"send {one.message.message_id}")
            self._sending.add(task)
            task.add_done_callback(self._free)

    def _free(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._window.done()
        self._freed.set()

    async def _refuse(self, delivery_id: int, refused: list[_Asked]) -> None:
        """Settles what was not granted: done, paused, stopped, over; what names nobody is buried."""
        if not refused:
            return
        numbers = [a.send.recipient for a in refused]
        looking = Idempotent(lambda: self._accounts.absent(delivery_id, numbers))
        absent: set[int] = set()
        with contextlib.suppress(Busy):  # they are refused, and not looked at
            absent = await self._db.until_done(looking, "looking for absent recipients")
        for one in refused:
            if one.send.recipient in absent:
                reason = "The delivery was never confirmed, or has no recipient of this number."
                await self._dead.bury(one.message, reason)
        self._consumer.settle([a.message for a in refused])
        log.debug("not granted", delivery_id=delivery_id, messages=len(refused))

    async def _compiled(self, delivery_id: int) -> Any:  # noqa: ANN401 - each channel's own
        """Returns a delivery's content, compiled; the confirmed content never changes, so it is kept."""
        if delivery_id not in self._contents:
            reading = Idempotent(lambda: deliveries.content(self._db, delivery_id))
            try:
                found = await self._db.until_done(reading, "reading the content")
            except Busy as busy:
                return busy  # of this batch alone
            try:
                compiled = self._channel.prepare(found[1]) if found else None
            except ContentInvalid as error:
                compiled = error
            if len(self._contents) >= _CONTENTS_KEPT:
                self._contents.popitem(last=False)
            self._contents[delivery_id] = compiled
        self._contents.move_to_end(delivery_id)
        return self._contents[delivery_id]

    async def _try_and_tell(self, compiled: Any, one: _Asked) -> None:  # noqa: ANN401 - each channel's own
        verdict = await self._try(compiled, one)
        self._tell([(one.message, _result(one.send, verdict, datetime.now(UTC)))])

    async def _try(self, compiled: Any, one: _Asked) -> Verdict:  # noqa: ANN401 - each channel's own
        if isinstance(compiled, ContentInvalid):
            return Failed("content", retryable=False, detail=str(compiled))
        if isinstance(compiled, Busy):
            return Failed("internal", retryable=True, detail=str(compiled))
        try:
            verdict = await self._channel.send(compiled, one.send)
        except NO_MESSAGES_FAULT:
            raise
        except Exception as error:
            # A fault of ours with one message must neither stop the others nor leave it without an outcome.
            log.exception("send failed", delivery_id=one.send.delivery_id, recipient=one.send.recipient)
            return Failed("internal", retryable=False, detail=repr(error))
        if isinstance(verdict, Unsure):
            log.warning(
                "outcome unknown",
                delivery_id=one.send.delivery_id,
                recipient=one.send.recipient,
                because=verdict.detail,
            )
        return verdict

    def _tell(self, told: list[tuple[Incoming, _Result | None]]) -> None:
        self._outbox += told
        self._reported.set()

    async def _report(self, done: asyncio.Event) -> None:
        """Publishes results as they gather, and settles their messages once the broker has confirmed them."""
        while not (done.is_set() and not self._outbox):
            await self._reported.wait()
            self._reported.clear()
            taken, self._outbox = self._outbox, []
            by_key: dict[str, list[Any]] = {}
            for _, result in taken:
                if result is not None:
                    by_key.setdefault(results.routing_key(result), []).append(result)
            async with asyncio.TaskGroup() as group:
                for key, found in by_key.items():
                    group.create_task(self._publish(key, found))
            self._consumer.settle([message for message, _ in taken])

    async def _publish(self, key: str, found: list[Any]) -> None:
        bodies = [
            Outgoing(results.encode(found[i : i + MAX_ITEMS]), key) for i in range(0, len(found), MAX_ITEMS)
        ]
        await self._publisher.publish(self._exchange, key, bodies)
        self._metrics.results_published.labels(self._channel_name, key).inc(len(found))


def _result(send: Send, verdict: Verdict, at: datetime) -> _Result | None:
    if isinstance(verdict, Accepted):
        return results.Taken(
            send.delivery_id, send.recipient, send.attempt, at, verdict.reply, verdict.provider_id
        )
    common: dict[str, Any] = {
        "delivery_id": send.delivery_id,
        "recipient": send.recipient,
        "attempt": send.attempt,
        "at": at,
    }
    match verdict:
        case Bounced():
            return results.Bounce(
                **common,
                kind=verdict.kind,
                reason=verdict.reason,
                status=verdict.status,
                reply=verdict.reply,
                fault=verdict.fault,
            )
        case Failed():
            return results.Error(
                **common, reason=verdict.reason, retryable=verdict.retryable, detail=verdict.detail
            )
        case Unsure():
            return None
