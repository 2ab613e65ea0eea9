"""The send service from its start to its end: a channel that is away, how much is claimed, and a stop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.fakes import FakeConsumer
from tests.support.fakes_send import RELAY, FakeClaims, OpenConsumer, Setup, wanted
from tests.support.stack import until
from worker.channels import reaching
from worker.channels.protocol import ChannelUnreachable
from worker.domain.failures import Failure, Stopped
from worker.lifecycle import beside

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

AWAY = ChannelUnreachable("The relay does not answer.")
REFUSED = ChannelUnreachable("The relay refused the login.", Failure.BROKEN)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaching, "_SHORTEST_PAUSE", 0.001)
    monkeypatch.setattr(reaching, "_LONGEST_PAUSE", 0.001)


def is_true(condition: Callable[[], object]) -> Callable[[], Awaitable[object]]:
    async def look() -> object:
        return condition()

    return look


def told(logged: list[Any]) -> list[str]:
    return [line["event"] for line in logged if line["log_level"] in ("info", "warning")]


@pytest.mark.parametrize(
    ("why", "sentence"),
    [(AWAY, "channel out of reach, waiting"), (REFUSED, "channel refuses us, waiting")],
    ids=["away", "refuses"],
)
async def test_a_channel_that_is_away_is_waited_for_before_anything_is_taken(
    why: ChannelUnreachable, sentence: str, logged: list[Any]
) -> None:
    setup = Setup(wanted(1, 4))
    setup.channel.away = [why]
    async with beside(setup.run(), "send") as running:
        await until(is_true(lambda: setup.channel.asked >= 3))
        assert setup.service.unreachable == str(why)
        assert setup.consumers == [setup.consumer], "none is opened"
        setup.channel.away = []
        await running
    assert setup.service.unreachable == ""
    assert setup.tried == [(1, 4, 1)]
    assert told(logged) == [sentence, "channel is back"], "once for an outage"


async def test_a_channel_that_goes_away_is_waited_for_before_anything_is_claimed() -> None:
    setup = Setup(wanted(1, 4), patience=3600)
    setup.channel.away = [None, AWAY]
    async with beside(setup.run(), "send") as running:
        await until(is_true(lambda: setup.channel.asked >= 4))
        assert (setup.claims.asked, setup.consumer.acknowledged) == ([], [])
        assert setup.service.unreachable == str(AWAY)
        assert not running.done()
        setup.channel.away = []
        await running
    assert setup.tried == [(1, 4, 1)]
    assert setup.service.unreachable == ""


async def test_beyond_its_patience_nothing_more_of_a_batch_is_claimed_or_settled() -> None:
    setup = Setup()
    setup.channel.away = [None, AWAY]
    batch = [wanted(1, 4), wanted(2, 4), wanted(3, 4)]
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        with pytest.raises(ChannelUnreachable, match=r"^The relay does not answer\.$"):
            await setup.service.handle(batch, setup.consumer, setup.stop, group)
    assert [claim.delivery_id for claim in setup.claims.asked] == [1]
    assert setup.consumer.acknowledged == []
    assert setup.service.unreachable == str(AWAY)


async def test_beyond_its_patience_the_consumer_is_closed_and_another_opened_when_the_channel_is_back(
    logged: list[Any],
) -> None:
    sent, unsent = wanted(1, 4), wanted(2, 4)
    setup = Setup(unsent, concurrency=RELAY)
    first = FakeConsumer([sent, unsent])
    setup.consumers.insert(0, first)
    setup.channel.away = [None, None, AWAY]
    setup.channel.answers.clear()
    async with beside(setup.run(), "send") as running:
        await until(is_true(lambda: setup.service.unreachable and setup.tried and not first.consuming))
        assert await setup.service.consuming() is False
        assert setup.consumers == [setup.consumer], "none is opened before the channel is back"
        setup.channel.away = []
        await until(is_true(lambda: len(setup.tried) == 2))
        setup.channel.answers.set()
        await running
    assert first.acknowledged == [sent], "by the consumer that it came from"
    assert setup.consumer.acknowledged == [unsent]
    assert setup.tried == [(1, 4, 1), (2, 4, 1)]
    assert told(logged) == [
        "channel out of reach, waiting",
        "the messages in hand go back to the queue",
        "channel is back",
    ]


async def test_a_stop_while_the_channel_is_away_waits_for_what_it_has_already() -> None:
    message = wanted(1, 4)
    setup = Setup(concurrency=RELAY)
    first = FakeConsumer([message, wanted(2, 4)])
    setup.consumers = [first]
    setup.channel.away = [None, None, AWAY]
    setup.channel.answers.clear()
    async with beside(setup.run(), "send") as running:
        await until(is_true(lambda: setup.service.unreachable and setup.tried and not first.consuming))
        setup.stop.set()
        setup.channel.answers.set()
        await running
    assert [(r.delivery_id, r.recipient) for r in setup.results] == [(1, 4)]
    assert first.acknowledged == [message]
    assert setup.channel.closed


async def test_it_consumes_while_its_consumer_does() -> None:
    consumer = OpenConsumer()
    setup = Setup()
    setup.consumers = [consumer]
    assert await setup.service.consuming() is False
    async with beside(setup.run(), "send") as running:
        await until(setup.service.consuming)
        consumer.consuming = False  # the broker is away
        assert await setup.service.consuming() is False
        setup.stop.set()
        await running


async def test_a_sender_claims_no_more_than_keeps_its_channel_busy() -> None:
    setup = Setup(*(wanted(1, recipient) for recipient in range(1, 6)), concurrency=1)
    setup.channel.answers.clear()

    def in_flight() -> float:
        (family,) = setup.metrics.sends_in_flight.collect()
        return family.samples[0].value

    async with beside(setup.run(), "send") as running:
        await until(is_true(lambda: setup.tried))
        assert [list(claim.asked) for claim in setup.claims.asked] == [[1, 2]]
        assert in_flight() == 2
        setup.channel.answers.set()
        await running
    assert [recipient for _, recipient, _ in setup.tried] == [1, 2, 3, 4, 5]
    assert in_flight() == 0


@pytest.mark.parametrize("hangs", [False, True], ids=["it does not answer", "it hangs"])
async def test_a_stop_waits_for_no_channel(monkeypatch: pytest.MonkeyPatch, *, hangs: bool) -> None:
    setup = Setup(wanted(1, 4))
    setup.channel.away = [AWAY]
    asked = asyncio.Event()

    async def never() -> None:
        asked.set()
        await asyncio.Event().wait()

    if hangs:
        monkeypatch.setattr(setup.channel, "ready", never)
    else:
        monkeypatch.setattr(reaching, "_LONGEST_PAUSE", 3600)
        monkeypatch.setattr(reaching, "_SHORTEST_PAUSE", 3600)
    async with beside(setup.run(), "send") as running:
        await until(is_true(lambda: asked.is_set() or setup.channel.asked))
        setup.stop.set()
        await running
    assert (setup.claims.asked, setup.consumers) == ([], [setup.consumer])
    assert setup.channel.closed


async def test_a_stop_between_two_deliveries_of_a_batch_claims_no_more_and_settles_no_more() -> None:
    class StoppedAtOne(FakeClaims):
        async def claim(self, delivery_id: int, *args: Any, **options: Any) -> set[int]:
            setup.stop.set()
            return await super().claim(delivery_id, *args, **options)

    first = wanted(1, 4)
    setup = Setup(first, wanted(2, 4), concurrency=RELAY, claims=StoppedAtOne())
    await setup.run()
    assert setup.tried == [(1, 4, 1)]
    assert setup.consumer.acknowledged == [first]


async def test_a_stop_while_the_database_is_away_sends_and_reports_what_is_claimed() -> None:
    class Away(FakeClaims):
        async def claim(self, delivery_id: int, *args: Any, **options: Any) -> set[int]:
            if delivery_id == 2:
                setup.stop.set()
                raise Stopped("The process stops while the database is away.")
            return await super().claim(delivery_id, *args, **options)

    first = wanted(1, 4)
    setup = Setup(first, wanted(2, 4), concurrency=RELAY, claims=Away())
    await setup.run()
    assert [(r.delivery_id, r.recipient) for r in setup.results] == [(1, 4)]
    assert setup.consumer.acknowledged == [first]


async def test_what_is_with_the_relay_at_a_stop_is_reported_and_settled() -> None:
    message = wanted(1, 4)
    consumer = OpenConsumer([message])
    setup = Setup(concurrency=RELAY)
    setup.consumers = [consumer]
    setup.channel.answers.clear()
    async with beside(setup.run(), "send") as running:
        await until(is_true(lambda: setup.tried))
        setup.stop.set()
        await until(is_true(lambda: consumer.stopped))
        assert (setup.results, consumer.acknowledged, setup.channel.closed) == ([], [], False)
        setup.channel.answers.set()
        await running
    assert [r.recipient for r in setup.results] == [4]
    assert consumer.acknowledged == [message]
    assert not consumer.consuming
    assert setup.channel.closed


async def test_a_mark_that_a_stop_cuts_off_costs_nothing_that_is_with_the_relay() -> None:
    consumer = OpenConsumer([wanted(1, 4)])
    setup = Setup(concurrency=RELAY)
    setup.consumers = [consumer]
    setup.channel.answers.clear()
    away = Stopped("The process stops while the database is away.")
    async with beside(setup.run(), "send") as running:
        await until(is_true(lambda: setup.tried))
        setup.retrying.fails = {"marking hand-overs": away, "giving a claim back": away}
        consumer.give(wanted(1, 5))
        await until(is_true(lambda: len(consumer.acknowledged) == 1))
        setup.stop.set()
        setup.channel.answers.set()
        await running
    assert setup.tried == [(1, 4, 1)]
    assert [r.recipient for r in setup.results] == [4]
    assert len(consumer.acknowledged) == 2
