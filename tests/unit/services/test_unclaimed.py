"""The send service beside a lane that takes no more: its messages stay unclaimed, and hold up nobody."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from contracts.sends import Send
from tests.support.fakes_send import ACCEPTED, RELAY, FakeLane, FakeLanes, OpenConsumer, Setup, wanted
from tests.support.stack import until
from worker.domain.verdicts import Failed
from worker.lifecycle import beside
from worker.services.asked import Asked
from worker.services.unclaimed import Unclaimed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

HELD = Failed("rate_limited", retryable=True, detail="the domain is busy", waits=True)


def is_true(condition: Callable[[], object]) -> Callable[[], Awaitable[object]]:
    async def look() -> object:
        return condition()

    return look


def slow(recipient: int, delivery: int = 1) -> str:
    return f"{delivery}-{recipient}@slow.example"


def setup_with(lane: FakeLane, consumer: OpenConsumer, concurrency: int = RELAY) -> Setup:
    setup = Setup(concurrency=concurrency)
    setup.consumers = [consumer]
    setup.channel.lanes = FakeLanes({"slow.example": lane})
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


async def test_what_waits_for_its_lane_is_given_back_and_claimed_when_the_lane_opens() -> None:
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


async def test_what_is_unclaimed_at_a_stop_goes_back_to_the_queue() -> None:
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


async def test_a_lane_that_is_refused_again_and_again_leaves_the_window_to_the_others() -> None:
    lane = FakeLane(1)
    consumer = OpenConsumer([wanted(1, n, address=slow(n)) for n in range(1, 41)])
    setup = setup_with(lane, consumer, concurrency=4)
    setup.channel.told |= dict.fromkeys(range(1, 41), HELD)
    async with beside(setup.run(), "send") as running:
        consumer.give(*(wanted(1, n) for n in range(101, 161)))
        await until(is_true(lambda: len(setup.results) == 60))
        setup.stop.set()
        await running
    assert {r.recipient for r in setup.results} == set(range(101, 161))
    assert (lane.claimed, lane.waiting) == (0, 40)


def asked(recipient: int, lane: FakeLane | None, delivery: int = 1, since: float = 0.0) -> Asked:
    consumer = OpenConsumer()
    message = wanted(delivery, recipient, address=slow(recipient))
    send = Send.model_validate_json(message.body)
    return Asked(send, consumer, message, lane, since)


def numbers(messages: Iterable[Asked]) -> list[int]:
    return [one.send.recipient for one in messages]


def taken(held: Unclaimed, most: int = 100) -> list[tuple[int, int]]:
    """Takes a turn; returns the deliveries and the recipients."""
    found = held.take(most, 0)
    return [(found[0], recipient) for recipient in found[1]] if found else []


def test_the_memory_is_bounded_and_the_longest_queue_gives_way() -> None:
    held, (long, short, free) = Unclaimed(4), (FakeLane(0), FakeLane(0), FakeLane(9))
    held.add([asked(n, long) for n in range(1, 5)])
    assert (held.surplus(5), held.full) == ([], False)
    held.add([asked(9, short), *(asked(n, free) for n in range(20, 26))])
    assert held.full
    assert numbers(held.surplus(5)) == [2, 3, 4, 1, 9], "never one that may go on"
    assert (long.waiting, short.waiting, free.waiting, len(held)) == (0, 0, 6, 6)
    assert taken(held) == [(1, n) for n in range(20, 26)]
    assert (taken(held), len(held)) == ([], 0)


def test_the_last_that_came_give_way_first() -> None:
    held, lane = Unclaimed(4), FakeLane(0)
    held.add([asked(n, lane) for n in range(1, 7)])
    assert numbers(held.surplus(5)) == [5, 6]
    lane.most = 10
    assert taken(held) == [(1, 1), (1, 2), (1, 3), (1, 4)]


def test_a_lane_that_is_full_for_a_moment_keeps_its_messages() -> None:
    held, lane = Unclaimed(4), FakeLane(0)
    held.add([asked(n, lane, since=5) for n in range(1, 7)])
    assert (held.surplus(5.9), held.full) == ([], True)
    lane.own = False
    assert (held.surplus(7), held.full) == ([], True), "the relay takes none: nobody waits for this lane"
    lane.own = True
    assert numbers(held.surplus(7)) == [5, 6]


def test_while_hardly_anything_else_goes_on_few_give_way() -> None:
    held, lane = Unclaimed(1), FakeLane(0)
    held.add([asked(n, lane) for n in range(1, 4)])
    assert numbers(held.surplus(5)) == [2, 3]
    held.add([asked(n, lane) for n in range(4, 24)])
    assert held.surplus(5.5) == []
    held.add([asked(100, None), asked(101, None)])
    assert taken(held) == [(1, 100), (1, 101)]
    assert len(held.surplus(5.5)) == 20, "others profit"
    held.add([asked(n, lane) for n in range(30, 50)])
    assert held.surplus(5.6) == []
    assert len(held.surplus(6.5)) == 20


def test_deliveries_have_turns_in_a_lane() -> None:
    held, lane = Unclaimed(10), FakeLane(1)
    for delivery in (1, 2):
        held.add([asked(n, lane, delivery) for n in range(1, 4)])
    order = []
    for _ in range(6):
        order += taken(held)
        lane.leave()
    assert order == [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3), (2, 3)]


def test_the_delivery_with_the_fewest_messages_has_its_first_turn_first() -> None:
    held, lane = Unclaimed(100), FakeLane(1)
    held.add([asked(n, lane, 1) for n in range(1, 9)])
    held.add([asked(n, lane, 2) for n in range(1, 4)])
    held.add([asked(1, lane, 3)])
    order = []
    for _ in range(8):
        order += taken(held)
        lane.leave()
    assert [delivery for delivery, _ in order] == [3, 2, 1, 2, 1, 2, 1, 1]
    held.add([asked(1, lane, 4)])
    assert taken(held) == [(4, 1)], "a new one goes before one that had its turn"


def test_no_number_of_small_deliveries_holds_up_a_large_one() -> None:
    held, lane = Unclaimed(100), FakeLane(1)
    held.add([asked(n, lane, 1) for n in range(1, 50)])
    order = []
    for delivery in range(2, 60):
        held.add([asked(1, lane, delivery)])
        order += taken(held)
        lane.leave()
    turns = [place for place, (delivery, _) in enumerate(order) if delivery == 1]
    assert turns == [10, 21, 32, 43, 54]


def test_a_new_delivery_whose_lane_takes_none_has_turns_with_the_rest() -> None:
    held, (shut, open_) = Unclaimed(100), (FakeLane(0), FakeLane(9))
    held.add([asked(1, shut, 1)])
    held.add([asked(1, open_, 2), asked(2, open_, 2)])
    assert taken(held, 1) == [(2, 1)]
    shut.most = 1
    assert taken(held, 1) == [(1, 1)]
    assert (taken(held, 1), len(held)) == ([(2, 2)], 0)


def test_a_double_takes_the_place_of_the_message_that_is_held() -> None:
    held, lane = Unclaimed(4), FakeLane(5)
    first, again = asked(1, lane), asked(1, lane)
    assert held.add([first, asked(2, lane)]) == []
    assert held.add([again]) == [first]
    found = held.take(5, 0)
    assert found
    assert (list(found[1]), found[1][1] is again, lane.claimed, lane.waiting) == ([1, 2], True, 2, 0)


def test_lanes_have_turns() -> None:
    held = Unclaimed(10)
    one, other = FakeLane(5), FakeLane(5)
    held.add([asked(n, one) for n in (1, 2)] + [asked(n, other) for n in (11, 12)])
    assert [taken(held, 1) for _ in range(4)] == [[(1, 1)], [(1, 11)], [(1, 2)], [(1, 12)]]


def test_it_is_looked_at_when_a_pause_ends_and_often() -> None:
    held, lane = Unclaimed(10), FakeLane()
    assert held.look_at(100) is None
    lane.opens_at = 100.1
    held.add([asked(1, lane), asked(2, None)])
    assert held.look_at(100) == 100.1
    assert held.look_at(100.2) == 100.45
    held.clear()
    assert (held.look_at(100), lane.waiting, len(held)) == (None, 0, 0)


def test_nothing_is_held_for_longer_than_the_broker_allows() -> None:
    held, lane = Unclaimed(10), FakeLane(0)
    held.add([asked(1, lane), asked(2, lane, since=500)])
    assert held.surplus(0) == []
    assert numbers(held.surplus(700)) == [1]
    assert numbers(held.surplus(1_200)) == [2]
    assert not len(held)


_STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "take", "leave", "surplus"]), st.integers(0, 2), st.integers(1, 6)),
    max_size=50,
)


@given(_STEPS)
def test_no_message_is_lost_and_no_lane_counts_wrong(steps: list[tuple[str, int, int]]) -> None:
    """Each message that came is held, was taken, or was given out to be acknowledged."""
    held, lanes = Unclaimed(5), [FakeLane(n) for n in range(3)]
    came = gone = 0
    for what, place, count in steps:
        lane = lanes[place]
        match what:
            case "add":
                came += count
                gone += len(
                    held.add([asked(100 * place + n, lane, 1 + count % 2) for n in range(1, 1 + count)])
                )
            case "take":
                ready = held.ready(0)
                found = held.take(count, 0)
                assert (found is not None) is ready
                gone += len(found[1]) if found else 0
                assert len(found[1] if found else ()) <= count
            case "leave" if lane.claimed:
                lane.leave()
            case "surplus":
                gone += len(held.surplus(5))
        assert came - gone == len(held) == sum(one.waiting for one in lanes)
        assert all(one.claimed <= one.most for one in lanes)
