"""The send service beside a lane that takes no more: its messages are put aside, and hold up nobody."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from contracts.sends import Send
from tests.support.fakes_send import ACCEPTED, RELAY, OpenConsumer, Setup, wanted
from tests.support.stack import until
from worker.domain.verdicts import Failed
from worker.lifecycle import beside
from worker.services import aside
from worker.services.aside import Aside
from worker.services.asked import Asked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import pytest

HELD = Failed("rate_limited", retryable=True, detail="the domain is busy", waits=True)


class FakeLane:
    """Takes so many at a time, and none before a time."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.claimed = 0
        self.opens_at = 0.0

    def room(self, now: float) -> int:
        return self.most - self.claimed if now >= self.opens_at else 0

    def enter(self) -> None:
        self.claimed += 1

    def leave(self, *, unused: bool = False) -> None:  # noqa: ARG002
        self.claimed -= 1


def is_true(condition: Callable[[], object]) -> Callable[[], Awaitable[object]]:
    async def look() -> object:
        return condition()

    return look


def slow(recipient: int, delivery: int = 1) -> str:
    return f"{delivery}-{recipient}@slow.example"


def setup_with(lane: FakeLane, consumer: OpenConsumer, concurrency: int = RELAY) -> Setup:
    setup = Setup(concurrency=concurrency)
    setup.consumers = [consumer]
    setup.channel.lanes["slow.example"] = lane
    return setup


async def test_what_is_over_the_share_is_not_claimed_and_the_others_go_on() -> None:
    lane = FakeLane(2)
    consumer = OpenConsumer([wanted(1, n, address=slow(n)) for n in range(1, 9)])
    setup = setup_with(lane, consumer, concurrency=8)
    setup.channel.answers.clear()
    async with beside(setup.run(), "send") as running:
        await until(is_true(lambda: len(setup.channel.tried) == 2))
        consumer.give(*(wanted(1, n) for n in range(11, 15)))
        await until(is_true(lambda: len(setup.channel.tried) == 6))
        assert {r for claim in setup.claims.asked for r in claim.asked} == {1, 2, 11, 12, 13, 14}
        setup.channel.answers.set()
        await until(is_true(lambda: len(consumer.acknowledged) == 12))
        setup.stop.set()
        await running
    assert len(setup.results) == 12
    order = [t.recipient for t in setup.channel.tried if t.recipient < 10]
    assert all(abs(place - n) <= 1 for place, n in enumerate(order, 1)), "first come, first served"
    assert lane.claimed == 0


async def test_what_waits_for_its_lane_is_given_back_and_put_aside() -> None:
    lane = FakeLane(5)
    consumer = OpenConsumer([wanted(1, 4, address=slow(4)), wanted(1, 5)])
    setup = setup_with(lane, consumer)
    setup.channel.told[4] = [HELD, ACCEPTED]
    loop = asyncio.get_running_loop()
    lane.opens_at = 0
    tried = setup.channel.send

    async def send(*args: object) -> object:
        lane.opens_at = loop.time() + 0.2
        return await tried(*args)  # type: ignore[arg-type]

    setup.channel.send = send  # type: ignore[assignment,method-assign]
    async with beside(setup.run(), "send") as running:
        await until(is_true(lambda: len(consumer.acknowledged) == 2))
        setup.stop.set()
        await running
    assert [(t.recipient, t.attempt) for t in setup.channel.tried if t.recipient == 4] == [(4, 1), (4, 1)]
    assert setup.claims.in_hand == [True]
    assert len(setup.results) == 2
    assert lane.claimed == 0


async def test_what_is_put_aside_at_a_stop_goes_back_to_the_queue() -> None:
    lane = FakeLane(0)
    consumer = OpenConsumer([wanted(1, 4, address=slow(4)), wanted(1, 5)])
    setup = setup_with(lane, consumer)
    async with beside(setup.run(), "send") as running:
        await until(is_true(lambda: consumer.acknowledged))
        setup.stop.set()
        await running
    assert [m.message_id for m in consumer.acknowledged] == ["1-5-1"]
    assert not consumer.consuming


async def test_what_is_not_granted_leaves_its_lane() -> None:
    lane = FakeLane(1)
    consumer = OpenConsumer([wanted(1, n, address=slow(n)) for n in range(1, 4)])
    setup = setup_with(lane, consumer)
    setup.claims.nobody |= {(1, 1), (1, 2)}
    async with beside(setup.run(), "send") as running:
        await until(is_true(lambda: len(consumer.acknowledged) == 3))
        setup.stop.set()
        await running
    assert [t.recipient for t in setup.channel.tried] == [3]
    assert lane.claimed == 0


def asked(recipient: int, lane: FakeLane | None, delivery: int = 1) -> Asked:
    consumer = OpenConsumer()
    message = wanted(delivery, recipient, address=slow(recipient))
    send = Send.model_validate_json(message.body)
    return Asked(send, consumer, message, lane)


def test_the_memory_is_bounded_and_the_longest_queue_gives_way() -> None:
    held, (long, short) = Aside(4), (FakeLane(0), FakeLane(0))
    for n in range(1, 5):
        assert held.put(asked(n, long), long, 0) == []
    assert [a.send.recipient for a in held.put(asked(9, short), short, 0)] == [4]
    assert [a.send.recipient for a in held.put(asked(5, long), long, 0)] == [5]
    long.most = short.most = 10
    assert [a.send.recipient for a in held.take(100, 0)] == [1, 2, 3, 9]
    assert held.take(100, 0) == []


def test_a_queue_that_gave_way_wholly_is_forgotten() -> None:
    held, (one, other) = Aside(1), (FakeLane(0), FakeLane(0))
    held.put(asked(1, one), one, 0)
    assert [a.send.recipient for a in held.put(asked(2, other), other, 0)] == [1]
    assert [a.send.recipient for a in held.expire(1_000)] == [2]


def test_deliveries_have_turns_in_a_lane() -> None:
    held, lane = Aside(10), FakeLane(1)
    for n in range(1, 4):
        held.put(asked(n, lane, delivery=1), lane, 0)
        held.put(asked(n, lane, delivery=2), lane, 0)
    order = []
    for _ in range(6):
        (one,) = held.take(5, 0)
        order.append((one.send.delivery_id, one.send.recipient))
        held.leave([one])
    assert order == [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3), (2, 3)]


def test_a_double_takes_the_place_of_the_message_that_is_held() -> None:
    held, lane = Aside(4), FakeLane(0)
    first, again = asked(1, lane), asked(1, lane)
    held.put(first, lane, 0)
    held.put(asked(1, lane, delivery=2), lane, 0)
    assert held.put(again, lane, 1) == [first]
    lane.most = 5
    taken = held.take(5, 1)
    assert [(a.send.delivery_id, a.send.recipient) for a in taken] == [(1, 1), (2, 1)]
    assert taken[0] is again
    assert lane.claimed == 2


def test_lanes_have_turns() -> None:
    held = Aside(10)
    one, other = FakeLane(5), FakeLane(5)
    for n in range(1, 4):
        held.put(asked(n, one), one, 0)
        held.put(asked(n + 10, other), other, 0)
    assert [held.take(1, 0)[0].send.recipient for _ in range(4)] == [1, 11, 2, 12]


def test_who_comes_later_waits_behind_those_of_its_lane() -> None:
    held, lane = Aside(10), FakeLane(1)
    held.put(asked(1, lane), lane, 0)
    entered, left = held.enter({2: asked(2, lane), 3: asked(3, None)}, 0)
    assert (list(entered), left, lane.claimed) == ([3], [], 0)


async def test_nothing_is_held_for_longer_than_the_broker_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "_LONGEST", 0.05)
    consumer = OpenConsumer([wanted(1, 4, address=slow(4))])
    setup = setup_with(FakeLane(0), consumer)
    async with beside(setup.run(), "send") as running:
        await until(is_true(lambda: consumer.acknowledged))
        setup.stop.set()
        await running
    assert (setup.claims.asked, setup.results) == ([], [])
