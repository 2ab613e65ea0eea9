"""Reports of a sender: what is published together, and when messages are settled."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from contracts import results, routing
from tests.support.fakes import FakeConsumer, FakePublisher, SilentPublisher, incoming
from tests.support.stack import until
from worker.amqp import buffer
from worker.amqp import reports as reporting
from worker.amqp.messages import Unroutable
from worker.amqp.reports import Report, Reports
from worker.lifecycle import beside

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from worker.amqp.reports import Result

AT = datetime(2026, 11, 23, 10, tzinfo=UTC)
COMMON: dict[str, Any] = {"delivery_id": 1, "attempt": 1, "at": AT}


class Setup:
    """Reports on fakes."""

    def __init__(self, publisher: FakePublisher | None = None, enough: int = 1) -> None:
        self.publisher = publisher or FakePublisher()
        self.consumer = FakeConsumer()
        self.counted: list[tuple[str, int]] = []
        self.reports = Reports(
            self.publisher, "p.results", lambda *count: self.counted.append(count), enough=enough
        )

    def report(self, result: Result | None, consumer: FakeConsumer | None = None) -> Report:
        return Report(consumer or self.consumer, incoming(), result)

    @property
    def told(self) -> list[tuple[str, list[int]]]:
        """By body, the routing key and the recipients."""
        return [
            (p.routing_key, [r.recipient for r in results.decode(p.routing_key, p.message.body).results])
            for p in self.publisher.published
        ]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.timeout(10), beside(self.reports.run(), "reports"):
            yield


def taken(recipient: int) -> results.Taken:
    return results.Taken(1, recipient, 1, AT)


async def test_results_of_a_kind_are_one_message_and_then_their_messages_are_settled() -> None:
    setup = Setup()
    reports = [setup.report(taken(recipient)) for recipient in (4, 3)]
    async with setup.running():
        setup.reports.add(reports)
        await setup.reports.flush()
    assert setup.told == [(routing.SENT, [4, 3])]
    (published,) = setup.publisher.published
    assert (published.exchange, published.message.type) == ("p.results", routing.SENT)
    assert setup.consumer.acknowledged == [report.message for report in reports]
    assert setup.counted == [(routing.SENT, 2)]


async def test_each_kind_has_its_routing_key_and_none_waits_for_another() -> None:
    setup = Setup(SilentPublisher())
    bounce = results.Bounce(**COMMON, recipient=2, kind=results.BounceKind.SOFT)
    error = results.Error(**COMMON, recipient=3, reason="internal", retryable=True)

    async def all_published() -> bool:
        return len(setup.publisher.published) == 3

    async with setup.running():
        setup.reports.add([setup.report(result) for result in (taken(1), bounce, error)])
        await until(all_published)
    assert sorted(setup.told) == [(routing.BOUNCE, [2]), (routing.ERROR, [3]), (routing.SENT, [1])]


async def test_nothing_is_settled_or_counted_before_the_broker_has_confirmed() -> None:
    setup = Setup(SilentPublisher())

    async def published() -> bool:
        return bool(setup.publisher.published)

    async with setup.running(), beside(setup.reports.flush(), "flush") as flushing:
        setup.reports.add([setup.report(taken(1)), setup.report(None)])
        await until(published)
        assert not flushing.done()
    assert (setup.consumer.acknowledged, setup.counted) == ([], [])


async def test_what_is_told_while_others_are_published_leaves_together_and_is_flushed_too() -> None:
    class Held(FakePublisher):
        confirms = asyncio.Event()

        async def publish(self, *args: Any, **options: Any) -> None:
            await super().publish(*args, **options)
            await self.confirms.wait()

    setup = Setup(publisher := Held())

    async def published() -> bool:
        return bool(publisher.published)

    async with setup.running():
        setup.reports.add([setup.report(taken(1))])
        await until(published)
        for recipient in (2, 3):
            setup.reports.add([setup.report(taken(recipient))])
        publisher.confirms.set()
        await setup.reports.flush()
    assert setup.told == [(routing.SENT, [1]), (routing.SENT, [2, 3])]
    assert len(setup.consumer.acknowledged) == 3


async def test_what_comes_one_by_one_leaves_together_when_it_is_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reporting, "_AGE", 120)
    setup = Setup(enough=3)
    async with setup.running():
        for recipient in (1, 2, 3):
            setup.reports.add([setup.report(taken(recipient))])
            await asyncio.sleep(0)
        await setup.reports.flush()
    assert setup.told == [(routing.SENT, [1, 2, 3])]


async def test_what_is_not_enough_leaves_when_no_more_comes() -> None:
    setup = Setup(enough=3)
    async with setup.running():
        for recipient in (1, 2):
            setup.reports.add([setup.report(taken(recipient))])
        await setup.reports.flush()
    assert len(setup.consumer.acknowledged) == 2


async def test_what_comes_after_a_calm_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "_AGE", 120)
    monkeypatch.setattr(buffer, "CALM", 0)
    setup = Setup(enough=3)
    async with setup.running():
        setup.reports.add([setup.report(taken(1))])
        await setup.reports.flush()
    assert setup.told == [(routing.SENT, [1])]


async def test_a_message_holds_1000_results_at_most() -> None:
    setup = Setup()
    async with setup.running():
        setup.reports.add([setup.report(taken(recipient)) for recipient in range(1, 1_002)])
        await setup.reports.flush()
    assert [(key, len(recipients)) for key, recipients in setup.told] == [
        (routing.SENT, 1_000),
        (routing.SENT, 1),
    ]
    assert setup.counted == [(routing.SENT, 1_001)]


async def test_a_message_of_which_nothing_is_said_is_settled_and_nothing_published() -> None:
    setup = Setup()
    async with setup.running():
        setup.reports.add([setup.report(None)])
        await setup.reports.flush()
    assert (len(setup.consumer.acknowledged), setup.publisher.published) == (1, [])


async def test_each_consumer_settles_what_came_from_it() -> None:
    setup = Setup()
    other = FakeConsumer()
    reports = [setup.report(taken(1)), setup.report(taken(2), other), setup.report(None)]
    async with setup.running():
        setup.reports.add(reports)
        await setup.reports.flush()
    assert setup.consumer.acknowledged == [reports[0].message, reports[2].message]
    assert other.acknowledged == [reports[1].message]


async def test_there_is_nothing_to_flush_where_nothing_was_told() -> None:
    setup = Setup()
    setup.reports.add([])
    await asyncio.wait_for(setup.reports.flush(), 10)


async def test_a_broker_that_refuses_ends_it_and_nothing_is_settled() -> None:
    class Refusing(FakePublisher):
        async def publish(self, *args: Any, **options: Any) -> None:  # noqa: ARG002
            raise Unroutable("no queue")

    setup = Setup(Refusing())
    setup.reports.add([setup.report(taken(1)), setup.report(None)])
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(setup.reports.run(), 10)
    assert caught.group_contains(Unroutable)
    assert (setup.consumer.acknowledged, setup.counted) == ([], [])
