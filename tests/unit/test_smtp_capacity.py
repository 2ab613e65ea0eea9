"""What a server takes: the pool shrinks to it, pauses, and steps up again."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.results import BounceKind, BounceReason, Fault
from worker.channels.email import capacity
from worker.channels.email.capacity import Connections, Pace
from worker.channels.email.envelope import Offers, enveloped
from worker.channels.email.patience import ROUNDS, ROUNDS_OF_LANE, Patience, blames_the_client, defers
from worker.channels.email.slots import Slots
from worker.domain.bounces import classify
from worker.domain.verdicts import Accepted, Bounced, Failed, Unsure


def test_the_pool_shrinks_to_what_is_taken_and_tries_one_more_ever_later() -> None:
    connections = Connections(10)
    assert connections.allowed(0) == 10
    assert connections.refused(3, 0)
    assert [connections.allowed(at) for at in (0, 4.9, 5)] == [3, 3, 4]
    assert not connections.refused(3, 5), "no news"
    assert [connections.allowed(at) for at in (14.9, 15)] == [3, 4]
    connections.took(4, 15)
    assert [connections.allowed(at) for at in (15.9, 16)] == [4, 5]
    connections.refused(4, 16)
    assert [connections.allowed(at) for at in (20.9, 21)] == [4, 5]


def test_connections_that_are_refused_together_are_one_refusal() -> None:
    connections = Connections(10)
    for held in (1, 2, 3, 3, 3):
        connections.refused(held, 0)
        connections.took(held + 1, 0)
    assert connections.limit == 4
    assert connections.next_try <= 5


@given(
    most=st.integers(1, 20),
    events=st.lists(st.tuples(st.booleans(), st.integers(0, 25), st.floats(0, 50)), max_size=40),
)
def test_there_is_always_room_for_one_and_never_for_more_than_wanted(
    most: int, events: list[tuple[bool, int, float]]
) -> None:
    connections, now = Connections(most), 0.0
    for refused, held, later in events:
        now += later
        (connections.refused if refused else connections.took)(held, now)
        assert 1 <= connections.limit <= most
        assert 1 <= connections.allowed(now) <= most
        assert connections.next_try <= now + capacity.LONGEST_REST
    assert connections.allowed(now + capacity.LONGEST_REST) == min(most, connections.limit + 1)


def test_each_refusal_for_speed_doubles_the_pause_and_a_success_ends_it() -> None:
    pace, now = Pace(), 100.0
    for pause in (1, 2, 4, 8, 16, 32, 60, 60):
        pace.slow_down("450 too fast", now)
        pace.slow_down("450 so was this one, at the same time", now + pause / 2)
        assert pace.until == now + pause
        assert pace.feeling
        pace.went_well(now)
        assert pace.feeling, "it was under way before the pause"
        now = pace.until
    pace.went_well(now)
    assert not pace.feeling
    pace.slow_down("450 too fast", now)
    assert pace.until == now + 1


async def test_after_a_pause_one_at_a_time_finds_out_and_then_all_go_on() -> None:
    slots, loop = Slots(3), asyncio.get_running_loop()
    slots.pace.slow_down("450 too fast", loop.time() - 2)
    assert slots.because == "450 too fast"
    await slots.take(loop.time())
    with pytest.raises(TimeoutError):
        await slots.take(loop.time())
    others = [asyncio.create_task(slots.take(loop.time() + 10)) for _ in range(2)]
    await asyncio.sleep(0)
    slots.pace.went_well(loop.time())
    slots.wake()
    async with asyncio.timeout(5):
        await asyncio.gather(*others)
    assert slots.because == ""


async def test_a_place_that_is_given_back_goes_to_one_who_waits_even_if_the_first_gives_up() -> None:
    slots, loop = Slots(1), asyncio.get_running_loop()
    await slots.take(loop.time())
    first, second = [asyncio.create_task(slots.take(loop.time() + 10)) for _ in range(2)]
    await asyncio.sleep(0)
    slots.give()
    first.cancel()
    async with asyncio.timeout(5):
        await second
    assert first.cancelled()


async def test_who_waits_goes_on_when_the_pause_is_over_and_when_one_more_may_be_tried() -> None:
    slots, loop = Slots(2), asyncio.get_running_loop()
    slots.connections.refused(1, loop.time() - capacity.SHORTEST_REST + 0.05)
    await slots.take(loop.time())
    async with asyncio.timeout(5):
        await slots.take(loop.time() + 5)


async def test_each_who_waits_gives_up_at_its_own_time_and_the_others_wait_on() -> None:
    slots, loop = Slots(1), asyncio.get_running_loop()
    await slots.take(loop.time())
    now = loop.time()
    patient, late, soon = [asyncio.create_task(slots.take(now + seconds)) for seconds in (60, 0.05, 0.01)]
    async with asyncio.timeout(5):
        for impatient in (soon, late):
            with pytest.raises(TimeoutError):
                await impatient
    assert loop.time() >= now + 0.05
    assert not patient.done()
    slots.give()
    async with asyncio.timeout(5):
        await patient


async def test_whose_message_was_begun_waits_for_its_session_and_for_no_other_place() -> None:
    slots, loop = Slots(2), asyncio.get_running_loop()
    slots.connections.refused(1, loop.time() - capacity.SHORTEST_REST + 0.05)
    await slots.take(loop.time())
    mail = enveloped("news@example.org", "ana@example.net", b"", smtputf8=False, dsn=None)
    begun, other = [asyncio.create_task(slots.take(loop.time() + 60, one)) for one in (mail, None)]
    await asyncio.sleep(0)
    waiter = slots.begin_next(Offers(pipelining=True, size=True, smtputf8=True, dsn=True))
    assert waiter is not None
    assert waiter.enveloped is mail
    slots.wake()
    async with asyncio.timeout(5):
        await other
    assert not begun.done()
    slots.give()
    await asyncio.sleep(0)
    assert not begun.done()
    begun.cancel()


async def test_when_the_process_stops_nobody_waits_and_who_need_not_wait_goes_on() -> None:
    slots, loop = Slots(1), asyncio.get_running_loop()
    await slots.take(loop.time())
    waiting = asyncio.create_task(slots.take(loop.time() + 60))
    await asyncio.sleep(0)
    slots.stop_waiting()
    async with asyncio.timeout(5):
        with pytest.raises(TimeoutError):
            await waiting
    slots.give()
    await slots.take(loop.time() + 60)


RATE = Bounced(BounceKind.SOFT, BounceReason.RATE_LIMITED, "4.7.1", "450 too much mail", Fault.SENDER)


@pytest.mark.parametrize(
    ("verdict", "blamed"),
    [
        (RATE, True),
        (Bounced(BounceKind.SOFT, BounceReason.RATE_LIMITED, "5.0.0", "550 slow", Fault.SENDER), True),
        (Bounced(BounceKind.SOFT, BounceReason.RATE_LIMITED, "4.2.1", "450 her", Fault.SENDER), False),
        (Bounced(BounceKind.SOFT, BounceReason.GREYLISTED, "4.7.1", "450 grey", None), False),
        (Failed("authentication", retryable=True, detail="530"), True),
        (Failed("protocol", retryable=False, detail="500"), False),
        (Accepted("250"), False),
        (Unsure("?"), False),
    ],
)
def test_a_limit_of_the_client_is_told_from_one_of_the_recipient(
    verdict: Bounced | Failed | Accepted | Unsure, *, blamed: bool
) -> None:
    assert blames_the_client(verdict) is blamed


@pytest.mark.parametrize(
    ("code", "text", "later"),
    [
        (451, "4.7.1 Please try again later", True),
        (450, "try later", True),
        (451, "4.7.500 Server busy. Please try again later", True),
        (450, "4.7.1 Service unavailable; Client host blocked using zen.spamhaus.org", True),
        (451, "4.7.1 Greylisting in action, please come back in 00:05:00", False),
        (452, "4.2.2 mailbox full", False),
        (550, "5.7.1 blocked", False),
        (554, "5.3.0 try again later", False),
    ],
)
def test_what_may_meet_all_messages_of_a_domain_is_told_from_what_meets_one(
    code: int, text: str, *, later: bool
) -> None:
    meaning = classify(code, text)
    verdict = Bounced(meaning.kind, meaning.reason, meaning.status, text, meaning.fault)
    assert defers(verdict) is later


def test_a_message_waits_as_long_as_nobody_passes_and_a_few_times_while_others_do() -> None:
    patience = Patience()
    assert all(patience.put_off("ana@example.net", 0, own=False) for _ in range(100))
    rounds = 1
    while patience.put_off("ana@example.net", rounds, own=False):
        patience.passed("bea@example.net")
        rounds += 1
    assert rounds == ROUNDS
    patience.put_off("ana@example.net", rounds, own=False)
    patience.passed("ana@example.net")
    assert not patience._put_off  # noqa: SLF001 - who got through is forgotten


def test_a_message_whose_lane_takes_none_waits_longer_and_not_for_ever() -> None:
    patience = Patience()
    rounds = 0
    while patience.put_off("ana@example.net", 0, own=False):
        patience.passed("bea@example.org")
        rounds += 1
    assert rounds == ROUNDS_OF_LANE > ROUNDS
    alone, rounds = Patience(), 0
    while alone.put_off("ana@example.net", 0, own=True):
        rounds += 1
    assert rounds == ROUNDS_OF_LANE, "it is known as the lane's own, though nobody passes"


def test_no_more_recipients_are_remembered_than_is_sensible() -> None:
    patience = Patience()
    for number in range(10_100):
        patience.put_off(f"{number}@example.net", 0, own=False)
    assert len(patience._put_off) == 10_000  # noqa: SLF001
