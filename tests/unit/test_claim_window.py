"""The window of claims: by the rate, within its limits, and never in small change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.domain.window import ClaimWindow


def after(window: ClaimWindow, seconds: float, rate: float) -> float:
    """Lets the channel send at a rate; returns the time then."""
    now = 0.0
    window.free(0, now)
    while now < seconds:
        now += 0.1
        for _ in range(round(rate * 0.1)):
            window.done()
        window.free(0, now)
    return now


@pytest.mark.parametrize(("rate", "size"), [(0, 20), (100, 30), (2_000, 220), (90_000, 500)])
def test_the_window_is_a_tenth_of_a_second_beyond_what_keeps_the_channel_busy(rate: float, size: int) -> None:
    window = ClaimWindow(20, 500)
    assert window.free(0, after(window, 1, rate)) == pytest.approx(size, abs=1)


def test_the_window_shrinks_when_the_channel_sends_no_more() -> None:
    window = ClaimWindow(20, 500)
    now = after(window, 1, 2_000)
    assert window.free(0, now + 60) == 20


def test_where_nothing_is_sent_nothing_is_claimed_ahead() -> None:
    window = ClaimWindow(20, 500)
    assert [window.free(0, tenths / 10) for tenths in range(5)] == [20] * 5


def test_the_window_waits_until_half_of_it_is_free() -> None:
    window = ClaimWindow(20, 500)
    assert [window.free(claimed, 0) for claimed in (0, 9, 10, 11, 20)] == [20, 11, 10, 0, 0]


def test_a_small_limit_wins_and_even_one_claim_at_a_time_goes_on() -> None:
    assert [ClaimWindow(20, most).free(0, 0) for most in (1, 5)] == [1, 5]


@given(
    least=st.integers(1, 1000),
    most=st.integers(1, 1000),
    steps=st.lists(st.tuples(st.floats(0, 10), st.integers(0, 5000), st.integers(0, 1000)), max_size=20),
)
def test_no_more_than_the_limit_is_ever_claimed(
    least: int, most: int, steps: list[tuple[float, int, int]]
) -> None:
    window, now = ClaimWindow(least, most), 0.0
    for seconds, done, claimed in steps:
        now += seconds
        for _ in range(done):
            window.done()
        assert 0 <= window.free(claimed, now) <= max(0, most - claimed)
        assert window.free(0, now) >= 1
