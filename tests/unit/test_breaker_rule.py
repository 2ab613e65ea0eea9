"""The breaker trips above a limit, at a limit never, and says by what."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from worker.domain.breaker import BreakerLimits, Refusing, Tally, judge, judge_domains, judge_end

COUNTS = st.integers(0, 5_000)
PERCENT = st.integers(0, 100)


@st.composite
def tallies(draw: st.DrawFn) -> Tally:
    hard, errors, refused, rest = draw(COUNTS), draw(COUNTS), draw(COUNTS), draw(COUNTS)
    return Tally(hard + errors + refused + rest, hard, errors, refused)


LIMITS = st.builds(BreakerLimits, st.integers(0, 10_000), PERCENT, PERCENT, PERCENT)


@given(tallies(), LIMITS)
def test_the_breaker_trips_if_and_only_if_a_share_is_above_its_limit(
    tally: Tally, limits: BreakerLimits
) -> None:
    above = [
        Fraction(count, tally.attempted) > Fraction(int(limit), 100)
        for count, limit in (
            (tally.bounced_hard, limits.hard_bounce_pct),
            (tally.errors, limits.error_pct),
            (tally.refused, limits.refused_pct),
        )
        if limit and tally.attempted
    ]
    ripe = 0 < limits.minimum <= tally.attempted
    tripped = judge(tally, limits)
    assert (tripped is not None) == (ripe and any(above))
    if tripped is not None:
        assert tripped.reason.count("limit") == sum(above)
        assert f"of {tally.attempted} attempted" in tripped.reason
        assert tripped.by_sender == ("blame the sender" in tripped.reason)


@given(tallies(), LIMITS, st.integers(1, 100))
def test_more_that_went_well_never_trips_the_breaker_once_enough_came(
    tally: Tally, limits: BreakerLimits, more: int
) -> None:
    assume(tally.attempted >= limits.minimum and judge(tally, limits) is None)
    assert (
        judge(Tally(tally.attempted + more, tally.bounced_hard, tally.errors, tally.refused), limits) is None
    )


def test_the_reason_holds_the_figures() -> None:
    tripped = judge(Tally(250, 31, 2, 3), BreakerLimits(100, 10, 20, 10))
    assert tripped is not None
    assert tripped.reason == (
        "The circuit breaker paused it: hard bounces 12.4 % of 250 attempted, limit 10 %."
    )
    assert tripped.figures.model_dump() == {
        "attempted": 250,
        "bounced_hard": 31,
        "errors": 2,
        "hard_bounce_pct": 12.4,
        "error_pct": 0.8,
        "hard_bounce_limit_pct": 10,
        "error_limit_pct": 20,
        "refused": 3,
        "refused_pct": 1.2,
        "refused_limit_pct": 10,
    }


def test_the_reason_names_every_share_above_its_limit_to_two_decimals() -> None:
    tripped = judge(Tally(300, 100, 200, 0), BreakerLimits(100, 10, 20.5, 10))
    assert tripped is not None
    assert tripped.reason == (
        "The circuit breaker paused it: hard bounces 33.33 % of 300 attempted, limit 10 %;"
        " errors 66.67 % of 300 attempted, limit 20.5 %."
    )


@pytest.mark.parametrize(
    ("tally", "trips"),
    [
        (Tally(99, 99, 0, 0), False),
        (Tally(100, 10, 20, 10), False),
        (Tally(100, 11, 0, 0), True),
        (Tally(100, 0, 21, 0), True),
        (Tally(100, 0, 0, 11), True),
    ],
)
def test_the_breaker_waits_for_its_minimum_trips_above_its_limits_and_is_off_at_0(
    tally: Tally, *, trips: bool
) -> None:
    assert (judge(tally, BreakerLimits(100, 10, 20, 10)) is not None) == trips
    assert judge(tally, BreakerLimits(0, 10, 20, 10)) is None
    assert judge(tally, BreakerLimits(100, 0, 0, 0)) is None


def test_the_reason_names_the_domains_that_refuse_us() -> None:
    tripped = judge(Tally(200, 0, 0, 90), BreakerLimits(100, 10, 20, 10))
    assert tripped is not None
    refusing = [Refusing("example.org", 90, 80), Refusing("example.net", 30, 10)]
    assert tripped.at_domains(refusing).reason == (
        "The circuit breaker paused it: refusals that blame the sender 45 % of 200 attempted, limit 10 %;"
        " most at example.org (80), example.net (10)."
    )
    assert tripped.at_domains([]) is tripped


@pytest.mark.parametrize(
    ("refusing", "words"),
    [
        ([Refusing("example.org", 100, 51)], "51 % of 100 attempted at example.org, limit 50 %."),
        ([Refusing("example.org", 100, 50)], None),
        ([Refusing("example.org", 99, 99)], None),
        (
            [
                Refusing("a.example", 200, 200),
                Refusing("b.example", 200, 100),
                Refusing("c.example", 100, 60),
            ],
            "100 % of 200 attempted at a.example, limit 50 %; refusals that blame the sender 60 % of 100",
        ),
        ([], None),
    ],
)
def test_a_domain_that_refuses_us_too_often_trips_the_breaker(
    refusing: list[Refusing], words: str | None
) -> None:
    tally, limits = Tally(5_000, 0, 0, 400), BreakerLimits(100, 10, 20, 10, 50)
    tripped = judge_domains(tally, limits, refusing)
    assert (tripped is not None) == (words is not None)
    if tripped is not None and words is not None:
        assert words in tripped.reason
        assert (tripped.by_sender, tripped.figures.refused) == (True, 400)
    assert judge_domains(tally, BreakerLimits(0, 10, 20, 10, 50), refusing) is None
    assert judge_domains(tally, BreakerLimits(100, 10, 20, 10, 0), refusing) is None


@pytest.mark.parametrize(
    ("tally", "pauses"),
    [
        (Tally(50, 0, 0, 26), True),
        (Tally(50, 0, 0, 25), False),
        (Tally(10, 0, 0, 10), True),
        (Tally(9, 0, 0, 9), False),
        (Tally(99, 99, 0, 0), False),
        (Tally(100, 0, 0, 11), True),
        (Tally(100, 50, 50, 0), False),
    ],
)
def test_at_its_end_a_delivery_pauses_only_for_those_who_can_still_be_tried(
    tally: Tally, *, pauses: bool
) -> None:
    assert (judge_end(tally, BreakerLimits(100, 10, 20, 10)) is not None) == pauses
    assert judge_end(tally, BreakerLimits(0, 10, 20, 10)) is None
    assert judge_end(tally, BreakerLimits(100, 10, 20, 0)) is None
