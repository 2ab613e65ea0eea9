"""The drawings of the console: what they show adds up."""

from __future__ import annotations

import itertools
import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.web.console.deliveries import time_line
from worker.web.console.drawing import (
    BAR_WIDTH,
    PARTS,
    Minute,
    account,
    bar,
    curve,
    gathered,
    rounded_up,
    widths,
)
from worker.web.console.rendering import span

START = datetime(2026, 11, 27, 9, 0, tzinfo=UTC)
COUNTS = st.integers(0, 10_000_000)
MINUTES = st.lists(
    st.tuples(st.integers(0, 5_000), COUNTS, COUNTS, COUNTS), max_size=40, unique_by=lambda each: each[0]
).map(lambda found: [Minute(START + timedelta(minutes=at), *each) for at, *each in sorted(found)])


@given(st.lists(COUNTS, min_size=1, max_size=9))
def test_the_parts_of_a_bar_fill_it_and_each_that_is_not_empty_is_seen(counts: list[int]) -> None:
    found = widths(counts)
    assert sum(found) == (BAR_WIDTH if any(counts) else 0)
    assert all((width > 0) == (count > 0) for width, count in zip(found, counts, strict=True))


def test_one_bounce_of_a_million_is_drawn() -> None:
    assert widths([999_999, 1]) == [996, 4]


@given(MINUTES, st.integers(3, 300))
def test_gathering_minutes_loses_nobody(minutes: list[Minute], most: int) -> None:
    points, step = gathered(minutes, most)
    assert len(points) <= most
    assert sum(p.sent for p in points) == sum(m.sent for m in minutes)
    assert sum(p.opened for p in points) == sum(m.opened for m in minutes)
    assert all(b.at - a.at == timedelta(minutes=step) for a, b in itertools.pairwise(points))


@given(st.floats(0, 1e12))
def test_the_top_of_a_curve_is_above_it_and_has_four_whole_quarters(value: float) -> None:
    top = rounded_up(value)
    assert top >= value
    assert top % 4 == 0
    assert top <= max(4, 2.5 * value)


def test_a_curve_of_one_minute_rises_and_falls() -> None:
    drawn = curve([Minute(START, 2_400, 0, 0)])
    assert drawn is not None
    (points,) = re.findall(r'polyline class="l-sent" points="([^"]+)"', drawn)
    assert [point.split(",")[1] for point in points.split()] == ["170.0", "68.0", "170.0"]
    assert "at most 4,000" in drawn


def test_a_curve_of_nothing_is_none() -> None:
    assert curve([]) is None


def test_a_line_of_nothing_is_not_drawn() -> None:
    drawn = curve([Minute(START, 5, 0, 0), Minute(START + timedelta(minutes=9), 5, 0, 0)])
    assert "l-sent" in str(drawn)
    assert "l-opened" not in str(drawn)
    assert "l-bounced" not in str(drawn)


def test_names_are_escaped() -> None:
    drawn = bar([("sent", "<b>", 1)], 'a "label"')
    assert "<b>" not in drawn
    assert "&#34;label&#34;" in drawn


def test_an_account_says_its_parts_to_those_who_do_not_see_it() -> None:
    row = dict.fromkeys((name for name, _ in PARTS), 0) | {"sent": 1_200, "unknown": 1}
    assert 'aria-label="1,200 sent, 1 unknown"' in account(row)
    assert 'aria-label="Nobody."' in account(dict.fromkeys((name for name, _ in PARTS), 0))


def test_the_time_line_is_in_the_order_of_time_with_waves_where_they_belong() -> None:
    def at(hours: int) -> datetime:
        return START + timedelta(hours=hours)

    row = {
        "prepared_at": at(0),
        "contact_date": at(3),
        "confirmed_at": at(1),
        "started_at": at(3),
        "cancelled_at": None,
        "finished_at": None,
        "valid_until": at(9),
        "purged_at": None,
        "as_of": at(4),
    }
    waves = [{"wave": 1, "due_at": at(2)}, {"wave": 2, "due_at": at(6)}, {"wave": 3, "due_at": None}]
    line = [(title, wave and wave["wave"]) for _, title, wave in time_line(row, waves)]
    assert line == [
        ("Prepared", None),
        ("Confirmed", None),
        ("Wave", 1),
        ("Contact date", None),
        ("Started", None),
        ("Wave", 2),
        ("May be sent until", None),
        ("Wave", 3),
    ]


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0.2, "1 s"),
        (59.6, "1 min"),
        (125, "2 min 5 s"),
        (7_500, "2 h 5 min"),
        (90_061, "1 d 1 h"),
        (3_600, "1 h"),
    ],
)
def test_how_long_something_takes_is_written_in_its_two_largest_units(seconds: float, written: str) -> None:
    assert span(timedelta(seconds=seconds)) == written
