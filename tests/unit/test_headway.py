"""How far the fan-out runs ahead: the mark follows the rate, and small deliveries go past it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.domain.headway import Headway


def at_rate(rate: int, *, most: int = 5_000, seconds: float = 0.1) -> Headway:
    """After a second in which the senders took so many messages; a tenth of a second's may wait."""
    headway = Headway(most, seconds)
    headway.looked(1, 10.0)
    headway.leased(rate, small=False)
    headway.published(rate, rate)
    headway.looked(1, 11.0)
    headway.looked(0, 11.1)
    return headway


@pytest.mark.parametrize(
    ("rate", "mark"), [(0, 100), (50, 100), (20_000, 2_000), (49_000, 4_900), (90_000, 5_000)]
)
def test_the_queue_may_hold_a_tenth_of_a_second_of_work(rate: int, mark: int) -> None:
    headway = at_rate(rate)
    assert (headway.mark, headway.room) == (mark, mark)


def test_without_a_time_the_number_alone_counts() -> None:
    assert at_rate(50, seconds=0).room == 5_000


def test_what_is_being_published_counts_as_waiting() -> None:
    headway = at_rate(20_000)
    headway.leased(1_000, small=False)
    assert headway.room == 1_000
    headway.published(1_000, 1_000)
    assert headway.room == 1_000
    headway.leased(1_000, small=False)
    headway.published(1_000, 0)  # nothing of it was confirmed
    assert headway.room == 1_000


def test_as_long_as_nobody_knows_how_many_wait_there_is_no_room() -> None:
    headway = Headway(5_000, 0.1)
    assert (headway.room, headway.small_first) == (0, False)
    headway.looked(0, 1.0)
    assert (headway.room, headway.small_first) == (100, True)
    headway.looked(None, 2.0)
    assert (headway.room, headway.small_first) == (0, False)


def test_a_queue_that_runs_empty_at_the_mark_gets_more_until_it_does_so_no_longer() -> None:
    """The senders take all that waits between two looks, however slowly these come."""
    headway = Headway(5_000, 0.1)
    headway.looked(0, 1.0)
    marks = []
    for step in range(8):
        headway.leased(headway.room, small=False)
        headway.published(headway.mark, headway.mark)
        headway.looked(0, 1.0 + step / 20)
        marks.append(headway.mark)
    assert marks == [200, 400, 800, 1_600, 3_200, 5_000, 5_000, 5_000]
    headway.looked(100, 2.0)  # the rate of the last second is measured here
    for step in range(10):
        headway.looked(100, 3.0 + step)
    assert headway.mark == 100


def test_a_queue_that_is_empty_because_nothing_is_left_does_not_raise_the_mark() -> None:
    headway = Headway(5_000, 0.1)
    for step in range(10):
        headway.looked(0, 1.0 + step / 20)
    assert headway.mark == 100


def test_small_deliveries_go_first_until_they_hold_up_the_others() -> None:
    headway = at_rate(20_000)
    for _ in range(10):
        assert headway.small_first
        headway.leased(100, small=True)
        headway.published(100, 100)
    assert not headway.small_first
    headway.leased(1_000, small=False)
    assert headway.small_first


@given(
    st.lists(st.tuples(st.integers(0, 3_000), st.integers(0, 10_000), st.booleans()), max_size=50),
    st.integers(1, 10_000),
)
def test_the_mark_stays_within_its_bounds(steps: list[tuple[int, int, bool]], most: int) -> None:
    headway = Headway(most, 0.1)
    for at, (published, waiting, small) in enumerate(steps):
        headway.leased(published, small=small)
        headway.published(published, published)
        headway.looked(waiting, 0.3 * at)
        assert min(most, 100) <= headway.mark <= most
        assert 0 <= headway.room <= headway.mark
