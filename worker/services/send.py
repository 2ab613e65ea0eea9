"""Sending: claims in micro-batches, calls the channel, publishes the results, and then acknowledges.

A claim is held under a token and a lease. Just before the relay can have a message, the claim is marked as
handed over. A process that dies leaves claims. If a claim was not handed over, another process sends it after
the lease has expired. If it was handed over, its recipient becomes `unknown` and is never sent again
automatically.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import structlog
from pydantic import TypeAdapter, ValidationError

from contracts.base import explain
from contracts.sends import Send
from worker.amqp.consuming import consuming
from worker.amqp.dead import Letter
from worker.amqp.reports import Report, Reports
from worker.channels.contents import Contents
from worker.channels.protocol import ChannelUnreachable, Granted
from worker.db.audiences import why_absent
from worker.db.hand_over import Claimed, HandOvers, Right, seconds_since_boot
from worker.db.retrying import Idempotent, Unstorable
from worker.domain.audience import address_key
from worker.domain.content import ContentInvalid
from worker.domain.failures import NO_MESSAGES_FAULT, Busy, Failure, Stopped
from worker.domain.verdicts import Failed, Unsure, Withheld, result_of
from worker.domain.window import ClaimWindow
from worker.lifecycle import pause, unless_stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from worker.amqp.dead import Burying
    from worker.amqp.messages import Consumer, Incoming, Publisher
    from worker.channels.protocol import Channel, HandOver
    from worker.db.retrying import Retrying
    from worker.domain.verdicts import Verdict
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_SHORTEST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 10.0

_SAFE_SHARE: Final = 0.9
"""Share of a lease. After this time no send is begun; the rest of the lease is for sends under way."""

_read = TypeAdapter(Send).validator.validate_json


class Claims(Protocol):
    """The claims in the database: `worker.db.accounts.Accounts`, which says what each method does."""

    async def claim(
        self,
        delivery_id: int,
        asked: Mapping[int, tuple[int, str]],
        token: int,
        *,
        lease: float,
        handed_over: bool = False,
    ) -> set[int]:
        """Claims recipients."""

    async def hand_over(self, delivery_id: int, claims: Mapping[int, int], *, margin: float) -> set[int]:
        """Marks claims as handed over."""

    async def give_back(self, delivery_id: int, claims: Mapping[int, int], *, in_hand: bool = False) -> int:
        """Undoes claims that were not handed over."""


class Sizes(Protocol):
    """Knows the number of a delivery's recipients: `worker.db.audiences.Audiences`."""

    async def sizes(self, delivery_ids: Collection[int]) -> dict[int, int | Busy]:
        """Returns them by delivery: 0 for no such delivery, a Busy where it cannot be read now."""


class ContentStore(Protocol):
    """Reads contents."""

    async def content(self, delivery_id: int) -> tuple[str, dict[str, Any]] | None:
        """Returns a delivery's channel and content."""


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


class _Asked(NamedTuple):
    """A send message, and the AMQP message to acknowledge."""

    send: Send
    consumer: Consumer
    message: Incoming


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
        self._hand_overs = HandOvers(self._mark, self._at_once or 0)
        self._reports = Reports(
            parts.publisher,
            parts.exchange,
            lambda key, count: self._metrics.results_published.labels(parts.channel_name, key).inc(count),
        )
        self._sending: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()
        self._consumer: Consumer | None = None
        self.unreachable = ""
        """Why nothing can be sent over the channel now; empty if the channel works."""
        self._metrics.sends_in_flight.labels(parts.channel_name).set_function(lambda: len(self._sending))

    async def consuming(self) -> bool:
        """Returns whether the broker delivers to this sender now."""
        return self._consumer is not None and await self._consumer.present()

    async def run(self, stop: asyncio.Event) -> None:
        """Sends until `stop`; it sends and reports claimed messages first."""
        async with asyncio.TaskGroup() as group:
            background = [
                group.create_task(self._reports.run()),
                group.create_task(self._hand_overs.run()),
                group.create_task(self._stop_waiting(stop)),
            ]
            with contextlib.suppress(Stopped):
                while not stop.is_set():
                    await self._reach(stop)
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
        async with consuming(consumer, stop):
            try:
                while batch := await consumer.batch(await self._free_slots(), self._limits.age):
                    await self.handle(batch, consumer, stop, group)
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
        by_delivery: dict[int, dict[int, _Asked]] = {}
        unread: list[Letter] = []
        for message in batch:
            try:
                one = _Asked(_read(message.body), consumer, message)
            except ValidationError as error:
                unread.append(Letter(message, f"The send message could not be read: {explain(error)}"))
                continue
            asked = by_delivery.setdefault(one.send.delivery_id, {})
            double = asked.setdefault(one.send.recipient, one)
            if double is not one:
                earlier, later = sorted((double, one), key=lambda a: a.send.attempt)
                asked[one.send.recipient] = later
                consumer.acknowledge([earlier.message])
        unread += _take_absent(by_delivery, await self._parts.sizes.sizes(by_delivery.keys()))
        if unread:
            await self._parts.dead.bury(*unread)
            consumer.acknowledge(letter.message for letter in unread)
        for delivery_id, asked in sorted(by_delivery.items()):
            if not asked:
                continue
            await self._reach(stop, self._limits.patience)
            await self._send_granted(delivery_id, asked, stop, group)

    async def _reach(self, stop: asyncio.Event, patience: float | None = None) -> None:
        """Waits for the channel before any claim, so that recipients lose no attempt in an outage.

        It also waits for a channel that refuses us: other services do not need this channel.

        Args:
            stop: Ends the wait.
            patience: The most seconds to wait; None for no limit.

        Raises:
            ChannelUnreachable: the channel was unreachable for `patience` seconds.
            Stopped: `stop` is set.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        wait = _SHORTEST_PAUSE
        while not stop.is_set():
            try:
                await unless_stopped(stop, self._parts.channel.ready())
            except ChannelUnreachable as error:
                if not self.unreachable:
                    log.warning(
                        "channel refuses us, waiting"
                        if error.failure is Failure.BROKEN
                        else "channel out of reach, waiting",
                        channel=self._parts.channel_name,
                        because=str(error),
                    )
                self.unreachable = str(error)
                if patience is not None and loop.time() - began >= patience:
                    raise
                wait = min(2 * wait, _LONGEST_PAUSE)
                await pause(stop, wait * random.uniform(0.5, 1))  # noqa: S311 - not all at once
            else:
                if self.unreachable:
                    log.info("channel is back", channel=self._parts.channel_name)
                self.unreachable = ""
                return
        raise Stopped("The process stops, and nothing more is claimed.")

    async def _send_granted(
        self, delivery_id: int, asked: dict[int, _Asked], stop: asyncio.Event, group: asyncio.TaskGroup
    ) -> None:
        wanted = {r: (a.send.attempt, address_key(a.send.address)) for r, a in asked.items()}
        token = secrets.randbits(63)
        begun = seconds_since_boot()
        try:
            granted = await self._claim(delivery_id, wanted, token)
        except (Busy, Unstorable) as error:
            # Refused, so that other messages go on: the scheduler opens the page again. The database can
            # refuse only the key of a claim, when several senders claim the same recipient now.
            log.warning("claims refused", delivery_id=delivery_id, messages=len(wanted), because=str(error))
            self._metrics.sends_refused.labels(self._parts.channel_name).inc(len(wanted))
            self._reports.add([Report(a.consumer, a.message, None) for a in asked.values()])
            return
        self._metrics.claim_recipients.observe(len(wanted))
        self._metrics.sends_claimed.labels(self._parts.channel_name).inc(len(granted))
        self._metrics.sends_refused.labels(self._parts.channel_name).inc(len(wanted) - len(granted))
        refused = [a for r, a in asked.items() if r not in granted]
        if refused:
            self._reports.add([Report(a.consumer, a.message, None) for a in refused])
            log.debug("not granted", delivery_id=delivery_id, messages=len(refused))
        if not granted:
            return
        # After the claim, since only the content of a confirmed delivery is final.
        try:
            compiled = await self._contents.compiled(delivery_id)
        except Busy as busy:
            compiled = busy  # for this batch only
        ordered = [asked[recipient] for recipient in sorted(granted)]
        if self._at_once is None:
            now = datetime.now(UTC)
            tried = [(one, await self._try(compiled, one.send, Granted())) for one in ordered]
            self._reports.add(
                [Report(a.consumer, a.message, result_of(a.send, verdict, now)) for a, verdict in tried]
            )
            return
        until = begun + _SAFE_SHARE * self._limits.claim_lease
        for one in ordered:
            claimed = Claimed(delivery_id, one.send.recipient, token)
            task = group.create_task(
                self._try_and_report(compiled, one, claimed, until, stop),
                name=f"send {one.message.message_id}",
            )
            self._sending.add(task)
            task.add_done_callback(self._free)

    async def _claim(self, delivery_id: int, wanted: dict[int, tuple[int, str]], token: int) -> set[int]:
        at_once = self._at_once is None
        lease = self._limits.result_lease if at_once else self._limits.claim_lease
        claiming = Idempotent(
            lambda: self._parts.claims.claim(delivery_id, wanted, token, lease=lease, handed_over=at_once)
        )
        with self._metrics.claim_seconds.time():
            granted: set[int] = await self._parts.database.until_done(claiming, "claiming recipients")
        return granted

    def _free(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._window.done()
        self._freed.set()

    async def _read_content(self, delivery_id: int) -> tuple[str, dict[str, Any]] | None:
        reading = Idempotent(lambda: self._parts.contents.content(delivery_id))
        found: tuple[str, dict[str, Any]] | None
        found = await self._parts.database.until_done(reading, "reading the content")
        return found

    async def _mark(self, delivery_id: int, claims: Mapping[int, int]) -> set[int]:
        margin = (1 - _SAFE_SHARE) * self._limits.claim_lease
        marking = Idempotent(lambda: self._parts.claims.hand_over(delivery_id, claims, margin=margin))
        try:
            marked: set[int] = await self._parts.database.until_done(marking, "marking hand-overs")
        except (Busy, Stopped) as error:  # a stop too: what is with the relay already is still to be reported
            log.warning("not handed over", delivery_id=delivery_id, claims=len(claims), because=str(error))
            return set()
        return marked

    async def _try_and_report(
        self,
        compiled: Any,  # noqa: ANN401 - each channel's own
        one: _Asked,
        claimed: Claimed,
        until: float,
        stop: asyncio.Event,
    ) -> None:
        right = Right(self._hand_overs, claimed, until)
        verdict = await self._try(compiled, one.send, right)
        while isinstance(verdict, Failed) and verdict.waits:
            await self._give_back(claimed, in_hand=True)
            right.end()  # nobody is in doubt any more
            again = await self._claim_again(one, stop)
            if again is None:
                return
            claimed, until = again
            right = Right(self._hand_overs, claimed, until)
            verdict = await self._try(compiled, one.send, right)
        if isinstance(verdict, Withheld):
            await self._give_back(claimed)
        result = result_of(one.send, verdict, datetime.now(UTC))
        self._reports.add([Report(one.consumer, one.message, result, right.end)])

    async def _claim_again(self, one: _Asked, stop: asyncio.Event) -> tuple[Claimed, float] | None:
        """Claims an attempt that was given back, when the channel is ready again.

        So a pause, a stop or the end of the validity holds for those who wait too, and nobody loses an
        attempt. The message stays in hand: to publish its page again would double all that is queued.

        Returns:
            The claim, and until when it may be handed over. None if there is none: then the message is
            reported, or goes back to the queue because the process stops.
        """
        try:
            await self._reach(stop)
        except Stopped:
            return None
        send, token, begun = one.send, secrets.randbits(63), seconds_since_boot()
        wanted = {send.recipient: (send.attempt, address_key(send.address))}
        try:
            granted = await self._claim(send.delivery_id, wanted, token)
        except (Busy, Unstorable) as error:
            log.warning("claims refused", delivery_id=send.delivery_id, messages=1, because=str(error))
            granted = set()
        if send.recipient not in granted:
            self._metrics.sends_refused.labels(self._parts.channel_name).inc()
            self._reports.add([Report(one.consumer, one.message, None)])
            return None
        until = begun + _SAFE_SHARE * self._limits.claim_lease
        return Claimed(send.delivery_id, send.recipient, token), until

    async def _give_back(self, claimed: Claimed, *, in_hand: bool = False) -> None:
        """Undoes a claim, so that another sender can take it before its lease expires."""
        claims = {claimed.recipient: claimed.token}
        giving = Idempotent(
            lambda: self._parts.claims.give_back(claimed.delivery_id, claims, in_hand=in_hand)
        )
        with contextlib.suppress(Busy, Stopped):  # the lease expires by itself too
            await self._parts.database.until_done(giving, "giving a claim back")

    async def _try(self, compiled: Any, send: Send, right: HandOver) -> Verdict:  # noqa: ANN401 - as above
        if isinstance(compiled, ContentInvalid):
            return Failed("content", retryable=False, detail=str(compiled))
        if isinstance(compiled, Busy):
            return Failed("internal", retryable=True, detail=str(compiled))
        try:
            verdict = await self._parts.channel.send(compiled, send, right)
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


def _take_absent(by_delivery: dict[int, dict[int, _Asked]], sizes: Mapping[int, int | Busy]) -> list[Letter]:
    """Takes out the messages whose recipient does not exist, before each delivery has its turn.

    One by one, each cost a claim, a look-up and a confirm: behind a thousand, an honest message waited 4 s.
    """
    letters = []
    for delivery_id, asked in by_delivery.items():
        size = sizes[delivery_id]
        if not isinstance(size, Busy):  # else they are claimed and refused
            letters += [Letter(asked.pop(r).message, why_absent(size)) for r in list(asked) if r > size]
    return letters
