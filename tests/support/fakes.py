"""What a service works with, in memory: for the unit tests of its `handle`, beside those on real servers."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from prometheus_client import CollectorRegistry

from worker.amqp.messages import Incoming
from worker.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence

    from prometheus_client import Counter

    from worker.amqp.dead import Letter
    from worker.amqp.messages import Outgoing, Unroutable
    from worker.db.retrying import Idempotent
    from worker.domain.failures import Busy

T = TypeVar("T")


def incoming(body: bytes = b"", routing_key: str = "", **properties: Any) -> Incoming:
    """A message as a consumer delivers it."""
    absent = dict.fromkeys(("message_id", "correlation_id", "reply_to", "user_id"))
    defaults = {"exchange": "", "headers": {}, "tag": 1, "channel": None}
    return Incoming(body=body, routing_key=routing_key, **(absent | defaults | properties))


def metrics() -> Metrics:
    return Metrics.create(CollectorRegistry())


def counts(counter: Counter) -> dict[tuple[str, ...], float]:
    """What a counter came to, by the values of its labels: `()` where it has none."""
    (family,) = counter.collect()
    return {
        tuple(sample.labels.values()): sample.value
        for sample in family.samples
        if sample.name.endswith("_total") and sample.value
    }


class FakeConsumer:
    """Delivers some messages, and is stopped when they are all taken."""

    def __init__(self, messages: Iterable[Incoming] = (), queue: str = "a queue") -> None:
        self.queue = queue
        self.waiting = list(messages)
        self.acknowledged: list[Incoming] = []
        self.consuming = False

    async def start(self) -> None:
        self.consuming = True

    async def present(self) -> bool:
        return self.consuming

    async def batch(self, size: int, age: float = 0) -> list[Incoming]:  # noqa: ARG002
        taken, self.waiting = self.waiting[:size], self.waiting[size:]
        return taken

    def acknowledge(self, messages: Iterable[Incoming]) -> None:
        self.acknowledged += messages

    async def watch(self) -> None:
        await asyncio.Event().wait()

    async def stop(self) -> None:
        self.waiting = []

    async def close(self) -> None:
        self.consuming = False


@dataclass(frozen=True, slots=True)
class Published:
    """One message, and where it was published."""

    exchange: str
    routing_key: str
    message: Outgoing
    mandatory: bool


class FakePublisher:
    """Keeps what it is given, and confirms it."""

    connected = True
    blocked = False

    def __init__(self) -> None:
        self.published: list[Published] = []

    async def publish(
        self, exchange: str, routing_key: str, messages: Sequence[Outgoing], *, mandatory: bool = True
    ) -> None:
        self.published += [Published(exchange, routing_key, m, mandatory) for m in messages]


class SilentPublisher(FakePublisher):
    """Never confirms."""

    async def publish(self, *args: Any, **options: Any) -> None:
        await super().publish(*args, **options)
        await asyncio.Event().wait()


@dataclass(slots=True)
class FakeDead:
    """Keeps what is buried: the message, the reason, and the part of the body where it was but a part."""

    buried: list[Letter] = field(default_factory=list)
    calls: int = 0
    """With something to keep."""

    async def bury(self, *letters: Letter) -> None:
        self.calls += bool(letters)
        self.buried += letters

    @property
    def reasons(self) -> list[str]:
        return [reason for _, reason, _ in self.buried]


class FakeRetrying:
    """Carries transactions out at once.

    Args:
        fails: By what is being done, what is raised instead.
        times: How often each is carried out, as after an attempt that was cut off and committed all the same.
    """

    def __init__(self, fails: Mapping[str, Exception] | None = None, times: int = 1) -> None:
        self.fails = dict(fails or {})
        self.times = times
        self.done: list[str] = []

    async def until_done(self, transaction: Idempotent[T], doing: str) -> T:
        if doing in self.fails:
            raise self.fails[doing]
        self.done.append(doing)
        for _ in range(self.times - 1):
            await transaction.action()
        return await transaction.action()


class FakeDepth:
    """Tells how many messages wait in queues, by their full names; None for the others."""

    def __init__(self, waiting: Mapping[str, int] | None = None) -> None:
        self.waiting = dict(waiting or {})
        self.asked: list[str] = []

    async def ready(self, queue: str) -> int | None:
        self.asked.append(queue)
        return self.waiting.get(queue)


class FakeRoutes:
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.reported: list[Unroutable] = []

    def report(self, error: Unroutable) -> None:
        self.reported.append(error)


class FakeSizes:
    """Tells how many recipients deliveries have; for one that is given a Busy, that."""

    def __init__(self, sizes: Mapping[int, int | Busy], others: int = 0) -> None:
        self._sizes = sizes
        self._others = others
        self.calls = 0

    async def sizes(self, delivery_ids: Collection[int]) -> dict[int, int | Busy]:
        self.calls += 1
        return {number: self._sizes.get(number, self._others) for number in delivery_ids}


class FakeWakener:
    """Stops the service at its first wait."""

    def __init__(self) -> None:
        self.listens = False
        self.waited: list[float] = []

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        self.listens = True
        yield
        self.listens = False

    async def wait(self, stop: asyncio.Event, seconds: float) -> None:
        assert self.listens
        self.waited.append(seconds)
        stop.set()
