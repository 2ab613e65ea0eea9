"""Retries: which facts lead to one, and when."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.results import Bounce, BounceKind, BounceReason, Error, Sent
from tests.support.reports import NOON, bounce, sent
from worker.domain.outcomes import fold
from worker.domain.retry import SPREAD, Retries, backoff, hinted

RETRIES = Retries((60, 300, 1_800), 4)


def error(attempt: int = 1, *, retryable: bool) -> Error:
    return Error(delivery_id=1, recipient=1, attempt=attempt, at=NOON, reason="x", retryable=retryable)


@pytest.mark.parametrize(
    ("results", "again"),
    [
        ([bounce(BounceKind.SOFT)], True),
        ([error(retryable=True)], True),
        ([bounce(BounceKind.SOFT), sent()], True),  # what was taken first came back later
        ([error(retryable=True), sent()], False),
        ([error(retryable=True), error(retryable=False)], False),
        ([bounce(BounceKind.SOFT), bounce(BounceKind.HARD)], False),
        ([bounce(BounceKind.SOFT), sent(attempt=2)], False),
        ([sent(), bounce(BounceKind.SOFT, attempt=2)], True),
        ([bounce(BounceKind.IGNORED)], False),
        ([sent()], False),
    ],
)
def test_a_retry_hangs_on_what_stands(results: list[Sent | Bounce | Error], *, again: bool) -> None:
    for order in (results, results[::-1]):
        known = fold(order)[1, 1]
        assert known.retryable is again
        assert (RETRIES.delay(1, 1, known) is not None) is again


@given(
    st.lists(st.floats(0.001, 1e6), min_size=1, max_size=6).map(tuple), st.integers(1, 50), st.floats(0, 1)
)
def test_a_delay_is_that_of_the_table_give_or_take_its_spread(
    delays: tuple[float, ...], attempt: int, place: float
) -> None:
    delay = delays[attempt - 1] if attempt <= len(delays) else delays[-1]
    wait = backoff(delays, attempt, place)
    tick = timedelta(microseconds=1)
    assert (
        timedelta(seconds=delay * (1 - SPREAD)) - tick
        <= wait
        <= timedelta(seconds=delay * (1 + SPREAD)) + tick
    )


def test_the_place_in_the_spread_goes_from_the_shortest_wait_to_the_longest() -> None:
    waits = [backoff((100.0,), 1, place).total_seconds() for place in (0, 0.25, 0.5, 0.75, 1)]
    assert waits == [80, 90, 100, 110, 120]


def test_who_failed_together_is_spread_over_the_whole_of_it_and_each_always_alike() -> None:
    known = fold([bounce(BounceKind.SOFT)])[1, 1]
    delays = [RETRIES.delay(1, recipient, known) for recipient in range(1, 1_001)]
    assert delays == [RETRIES.delay(1, recipient, known) for recipient in range(1, 1_001)]
    waits = sorted(after.total_seconds() for after in delays if after is not None)
    assert len(waits) == 1_000
    assert 48 <= waits[0] < 49
    assert 71 < waits[-1] <= 72
    assert max(later - earlier for earlier, later in pairwise(waits)) < 0.5


@pytest.mark.parametrize(
    ("reply", "seconds"),
    [
        (
            "450 4.2.0 <a@example.net>: Recipient address rejected: Greylisted",
            None,
        ),
        ("450 4.2.0 Greylisted, try again in 300 seconds", 300),
        ("451 4.7.1 Greylisting in action, please come back in 00:05:00", 300),
        ("450 4.7.1 Greylisted, please retry in 4 min.", 240),
        ("451 Greylisted for 1 hour", 3_600),
        ("451 Greylisted, come back in 0 seconds", None),
        ("451 Greylisted for 99999 hours", None),
        ("451 greylisted 10.20.30.40 300s", 300),
    ],
)
def test_the_hint_of_a_server_that_greylists(reply: str, seconds: int | None) -> None:
    assert hinted(reply) == seconds


def test_greylisting_waits_as_the_reply_hints_and_never_less() -> None:
    retries, reply = Retries((7_200,), 4), "450 4.2.0 busy for 300 seconds"
    for reason, least, most in ((BounceReason.GREYLISTED, 300, 360), (BounceReason.REFUSED, 5_760, 8_640)):
        for recipient in range(1, 50):
            known = fold(
                [
                    Bounce(
                        delivery_id=1,
                        recipient=recipient,
                        attempt=1,
                        at=NOON,
                        kind=BounceKind.SOFT,
                        reason=reason,
                        status="4.2.0",
                        reply=reply,
                    )
                ]
            )[1, recipient]
            delay = retries.delay(1, recipient, known)
            assert delay is not None
            assert least <= delay.total_seconds() <= most
