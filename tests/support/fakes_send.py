"""What a sender works with, in memory: for its unit tests, beside those on real servers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from contracts import results
from contracts.sends import Send, message_id
from tests.support.fakes import (
    FakeConsumer,
    FakeDead,
    FakePublisher,
    FakeRetrying,
    FakeSizes,
    incoming,
    metrics,
)
from worker.channels.protocol import HeldLane
from worker.domain.content import ContentInvalid
from worker.domain.verdicts import Accepted, Withheld
from worker.services.send import SendLimits, SendParts, SendService

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from worker.amqp.messages import Incoming
    from worker.channels.protocol import ChannelUnreachable, HandOver, Share, Want
    from worker.domain.failures import Busy
    from worker.domain.verdicts import Verdict

LIMITS = SendLimits(batch=100, age=0, claim_lease=10, result_lease=700, patience=0)
RELAY = 50
"""A concurrency with which a whole batch is claimed at once."""
ACCEPTED = Accepted("250 fine", "4F6B")


def wanted(delivery_id: int, recipient: int, attempt: int = 1, address: str = "Ana@example.org") -> Incoming:
    """A send message."""
    send = Send(
        delivery_id=delivery_id,
        recipient=recipient,
        attempt=attempt,
        channel="email",
        address=address,
        variables={},
    )
    number = message_id(delivery_id, recipient, attempt)
    return incoming(send.model_dump_json().encode(), "email", message_id=number)


class DrainedConsumer(FakeConsumer):
    """Sets `stop` once all its messages are taken."""

    def __init__(self, messages: Iterable[Incoming], stop: asyncio.Event) -> None:
        super().__init__(messages)
        self._stop = stop

    async def batch(self, size: int, age: float = 0) -> list[Incoming]:
        if not self.waiting:
            self._stop.set()
        return await super().batch(size, age)


class OpenConsumer(FakeConsumer):
    """Waits for more messages until it is stopped, as a real one does."""

    def __init__(self, messages: Iterable[Incoming] = ()) -> None:
        super().__init__(messages)
        self.stopped = False
        self._wake = asyncio.Event()

    def give(self, *messages: Incoming) -> None:
        self.waiting += messages
        self._wake.set()

    async def batch(self, size: int, age: float = 0) -> list[Incoming]:
        while not (self.waiting or self.stopped):
            self._wake.clear()
            await self._wake.wait()
        return await super().batch(size, age)

    async def stop(self) -> None:
        await super().stop()
        self.stopped = True
        self._wake.set()


class Claim(NamedTuple):
    """One question for claims."""

    delivery_id: int
    asked: dict[int, tuple[int, str]]
    token: int
    lease: float
    handed_over: bool


class FakeClaims:
    """Grants a recipient to one token; raises what a delivery is given."""

    def __init__(self) -> None:
        self.asked: list[Claim] = []
        self.held: dict[tuple[int, int], int] = {}
        self.nobody: set[tuple[int, int]] = set()
        self.refusing: dict[int, Exception] = {}
        self.marked: list[tuple[int, dict[int, int], float]] = []
        self.given_back: list[tuple[int, dict[int, int]]] = []
        self.in_hand: list[bool] = []
        """Of each time that claims were given back, whether their messages stay in hand."""

    async def claim(
        self,
        delivery_id: int,
        asked: Mapping[int, tuple[int, str]],
        token: int,
        *,
        lease: float,
        handed_over: bool = False,
    ) -> set[int]:
        self.asked.append(Claim(delivery_id, dict(asked), token, lease, handed_over))
        if delivery_id in self.refusing:
            raise self.refusing[delivery_id]
        there = [r for r in asked if (delivery_id, r) not in self.nobody]
        return {r for r in there if self.held.setdefault((delivery_id, r), token) == token}

    async def hand_over(self, delivery_id: int, claims: Mapping[int, int], *, margin: float) -> set[int]:
        self.marked.append((delivery_id, dict(claims), margin))
        return {r for r, token in claims.items() if self.held.get((delivery_id, r)) == token}

    async def give_back(self, delivery_id: int, claims: Mapping[int, int], *, in_hand: bool = False) -> int:
        self.given_back.append((delivery_id, dict(claims)))
        self.in_hand.append(in_hand)
        return sum(self.held.pop((delivery_id, r), None) is not None for r in claims)


class FakeContents:
    """Every delivery has a content that names it; raises what a delivery is given, once."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self.changed: dict[int, dict[str, Any]] = {}
        self.raising: dict[int, Exception] = {}

    async def content(self, delivery_id: int) -> tuple[str, dict[str, Any]] | None:
        self.read.append(delivery_id)
        if delivery_id in self.raising:
            raise self.raising.pop(delivery_id)
        return "email", self.changed.get(delivery_id, {"text": f"of {delivery_id}"})

    async def seconds_since_due(self, delivery_id: int) -> float | None:  # noqa: ARG002
        return 3.0


class Tried(NamedTuple):
    """One message that the other side may have."""

    delivery_id: int
    recipient: int
    attempt: int
    text: str
    expired: bool


class FakeLane:
    """Takes so many at a time, and none before a time."""

    def __init__(self, most: int = 1_000_000) -> None:
        self.most = most
        self.waiting = self.claimed = 0
        self.opens_at = 0.0
        self.own = True
        """Whether it is full for a reason of its own."""

    def room(self, now: float) -> int:
        return self.most - self.claimed if now >= self.opens_at else 0

    def held(self, now: float) -> HeldLane | None:
        held = self.own and not self.room(now)
        return HeldLane("relay", "lane", self.most, 0, self.opens_at, "it is busy") if held else None

    def wait(self) -> None:
        self.waiting += 1

    def drop(self, count: int = 1) -> None:
        self.waiting -= count

    def enter(self, count: int = 1) -> None:
        self.waiting -= count
        self.claimed += count

    def leave(self, *, unused: bool = False) -> None:  # noqa: ARG002
        self.claimed -= 1


class FakeLanes(dict[str, FakeLane]):
    """Lanes by domain; all others have one without a limit."""

    def of(self, address: str) -> FakeLane:
        return self.setdefault(address.rpartition("@")[2], FakeLane())

    def held(self, now: float) -> list[HeldLane]:  # noqa: ARG002
        return []

    def wants(self) -> list[Want]:
        return []

    def shares(self) -> list[Share]:
        return []

    def grant(self, granted: Mapping[str, int], now: float) -> None:  # noqa: ARG002
        raise AssertionError


class FakeChannel:
    """Accepts every recipient, or does as it was told: a verdict, or an exception.

    With a concurrency it is a relay: it marks the hand-over, and answers while `answers` is set.
    """

    def __init__(self, concurrency: int | None = None) -> None:
        self.concurrency = concurrency
        self.told: dict[int, Verdict | Exception | list[Verdict]] = {}
        self.away: list[ChannelUnreachable | None] = []
        """For each question whether it is ready: what it says; the last for ever, none for ready."""
        self.asked = 0
        """How often whether it is ready."""
        self.prepared: list[dict[str, Any]] = []
        self.tried: list[Tried] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.closed = self.hurried = False
        self.lanes: FakeLanes | None = None

    async def ready(self) -> None:
        self.asked += 1
        away = self.away.pop(0) if len(self.away) > 1 else next(iter(self.away), None)
        if away is not None:
            raise away

    def prepare(self, content: Mapping[str, Any]) -> str:
        self.prepared.append(dict(content))
        if "broken" in content:
            raise ContentInvalid(content["broken"])
        return str(content["text"])

    async def send(self, compiled: str, send: Send, hand_over: HandOver) -> Verdict:
        # As over a second connection: begun again, and both answers are awaited.
        if self.concurrency and not all(await asyncio.gather(hand_over.begin(), hand_over.begin())):
            return Withheld()
        self.tried.append(Tried(send.delivery_id, send.recipient, send.attempt, compiled, hand_over.expired))
        if self.concurrency:
            await self.answers.wait()
        verdict = self.told.get(send.recipient, ACCEPTED)
        if isinstance(verdict, Exception):
            raise verdict
        if isinstance(verdict, list):
            return verdict.pop(0) if len(verdict) > 1 else verdict[0]
        return verdict

    def stop_waiting(self) -> None:
        self.hurried = True

    async def close(self) -> None:
        self.closed = True


class Setup:
    """A sender on fakes; it is stopped when all messages are taken."""

    def __init__(
        self,
        *messages: Incoming,
        concurrency: int | None = None,
        publisher: FakePublisher | None = None,
        fails: Mapping[str, Exception] | None = None,
        times: int = 1,
        claims: FakeClaims | None = None,
        patience: float = 0,
        sizes: Mapping[int, int | Busy] | None = None,
    ) -> None:
        self.stop = asyncio.Event()
        self.consumer = DrainedConsumer(messages, self.stop)
        self.consumers: list[FakeConsumer] = [self.consumer]
        """Those that are opened, in their order."""
        self.channel = FakeChannel(concurrency)
        self.publisher = publisher or FakePublisher()
        self.dead = FakeDead()
        self.claims = claims or FakeClaims()
        self.sizes = FakeSizes(sizes or {}, others=1_000)
        self.contents = FakeContents()
        self.retrying = FakeRetrying(fails, times)
        self.metrics = metrics()
        parts = SendParts(
            channel_name="email",
            channel=self.channel,
            open_consumer=lambda: self.consumers.pop(0),
            publisher=self.publisher,
            exchange="p.results",
            dead=self.dead,
            claims=self.claims,
            sizes=self.sizes,
            contents=self.contents,
            database=self.retrying,
            metrics=self.metrics,
        )
        self.service = SendService(parts, replace(LIMITS, patience=patience))

    async def run(self) -> None:
        async with asyncio.timeout(10):
            await self.service.run(self.stop)

    @property
    def results(self) -> list[Any]:
        return [
            result
            for p in self.publisher.published
            for result in results.decode(p.routing_key, p.message.body).results
        ]

    @property
    def tried(self) -> list[tuple[int, int, int]]:
        """The delivery, the recipient and the attempt of each that the other side may have."""
        return [tried[:3] for tried in self.channel.tried]
