"""The events service: what it publishes, what leaves the outbox and what stays there."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from contracts import routing
from contracts.events import DeliveryEvent, Event
from contracts.states import State
from tests.support.fakes import FakePublisher, FakeRetrying, FakeWakener, SilentPublisher, counts, metrics
from worker.domain.failures import Broken, Busy
from worker.services.events import EventsLimits, EventsParts, EventsService

if TYPE_CHECKING:
    from collections.abc import Sequence


def event(delivery_id: int, number: int, kind: Event = Event.STARTED) -> DeliveryEvent:
    name, at = f"{delivery_id}-{number}", datetime(2026, 1, 1, tzinfo=UTC)
    return DeliveryEvent(
        event_id=name, delivery_id=delivery_id, number=number, event=kind, state=State.IN_PROGRESS, at=at
    )


class FakeOutbox:
    """The outbox: of each delivery the oldest event is given away, once at a time."""

    def __init__(self, *events: DeliveryEvent) -> None:
        self.events = list(events)
        self.taken: set[str] = set()
        self.calls: list[str] = []

    async def take(self, limit: int, lease: float) -> list[DeliveryEvent]:  # noqa: ARG002
        self.calls.append("take")
        oldest: dict[int, DeliveryEvent] = {}
        for one in sorted(self.events, key=lambda e: e.number):
            oldest.setdefault(one.delivery_id, one)
        given = [e for e in oldest.values() if e.event_id not in self.taken][:limit]
        self.taken |= {e.event_id for e in given}
        return given

    async def drop(self, events: Sequence[DeliveryEvent]) -> None:
        self.calls.append("drop")
        self.events = [e for e in self.events if e not in events]

    async def release(self, events: Sequence[DeliveryEvent]) -> None:
        self.calls.append("release")
        self.taken -= {e.event_id for e in events}


class Setup:
    """A service on fakes."""

    def __init__(
        self,
        *events: DeliveryEvent,
        publisher: FakePublisher | None = None,
        retrying: FakeRetrying | None = None,
        lease: float = 60,
    ) -> None:
        self.outbox = FakeOutbox(*events)
        self.wakener = FakeWakener()
        self.publisher = publisher or FakePublisher()
        self.metrics = metrics()
        self.service = EventsService(
            EventsParts(
                outbox=self.outbox,
                wakener=self.wakener,
                retrying=retrying or FakeRetrying(),
                publisher=self.publisher,
                names=routing.Names("p"),
                metrics=self.metrics,
            ),
            EventsLimits(idle=7, lease=lease),
        )

    @property
    def published(self) -> list[str | None]:
        return [p.message.message_id for p in self.publisher.published]


async def test_the_oldest_event_of_each_delivery_is_published_and_leaves_the_outbox() -> None:
    setup = Setup(event(1, 5), event(1, 4, Event.CONFIRMED), event(2, 9))
    assert await setup.service.handle() == 2
    assert sorted(map(str, setup.published)) == ["1-4", "2-9"]
    assert setup.outbox.events == [event(1, 5)]
    assert counts(setup.metrics.events_published) == {(): 2}


async def test_an_event_is_published_under_its_own_key_and_need_not_be_heard() -> None:
    told = event(1, 4, Event.PAUSED)
    setup = Setup(told)
    await setup.service.handle()
    (published,) = setup.publisher.published
    assert published.exchange == routing.Names("p").exchange(routing.EVENTS)
    assert (published.routing_key, published.message.type) == ("delivery.paused", "delivery.paused")
    assert not published.mandatory
    assert DeliveryEvent.model_validate_json(published.message.body) == told


async def test_an_empty_outbox_publishes_nothing() -> None:
    setup = Setup()
    assert await setup.service.handle() == 0
    assert (setup.published, setup.outbox.calls) == ([], ["take"])


async def test_what_the_broker_does_not_confirm_is_given_back() -> None:
    setup = Setup(event(1, 4), event(2, 9), publisher=SilentPublisher(), lease=0.02)
    assert await setup.service.handle() == 0
    assert (len(setup.outbox.events), setup.outbox.taken) == (2, set())
    assert counts(setup.metrics.events_published) == {}


async def test_a_busy_database_leaves_all_in_the_outbox() -> None:
    busy = FakeRetrying(fails={"publishing events": Busy("too busy")})
    setup = Setup(event(1, 4), retrying=busy)
    assert await setup.service.handle() == 0
    assert (setup.published, setup.outbox.events) == ([], [event(1, 4)])


async def test_a_broken_database_ends_the_service() -> None:
    setup = Setup(event(1, 4), retrying=FakeRetrying(fails={"publishing events": Broken("forbidden")}))
    with pytest.raises(Broken):
        await setup.service.run(asyncio.Event())


async def test_a_publisher_that_dies_leaves_the_events_in_the_outbox() -> None:
    class Dying(FakePublisher):
        async def publish(self, *_: object, **__: object) -> None:
            raise Broken("no exchange")

    setup = Setup(event(1, 4), publisher=Dying())
    with pytest.raises(ExceptionGroup) as died:
        await setup.service.handle()
    assert died.group_contains(Broken)
    assert setup.outbox.events == [event(1, 4)]


async def test_it_publishes_until_the_outbox_is_empty_and_only_then_waits() -> None:
    setup = Setup(*(event(1, number) for number in (1, 2, 3)))
    await setup.service.run(asyncio.Event())
    assert setup.published == ["1-1", "1-2", "1-3"]
    assert (setup.wakener.waited, setup.wakener.listens) == ([7], False)
    assert counts(setup.metrics.events_published) == {(): 3}


async def test_once_stopped_it_takes_nothing() -> None:
    setup = Setup(event(1, 4))
    stop = asyncio.Event()
    stop.set()
    await setup.service.run(stop)
    assert (setup.published, setup.outbox.taken) == ([], set())
