"""The KPIs of a delivery: an account that balances, and percentages of what they are shares of."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.domain.kpis import derive, percentage

_PARTS = (
    "sending", "sent", "bounced_hard", "bounced_soft", "bounced_ignored", "errors", "unknown",
    "excluded_late", "cancelled", "retrying",
)  # fmt: skip

_TRACKED = ("opened", "clicked", "human_opened", "human_clicked")


def test_a_percentage_of_nothing_is_null() -> None:
    assert percentage(0, 0) is None
    assert percentage(0, 3) == 0


def test_percentages_are_rounded_half_up_to_two_decimals() -> None:
    assert percentage(1, 3) == 33.33
    assert percentage(2, 3) == 66.67
    assert percentage(1, 800) == 0.13


@given(
    st.dictionaries(st.sampled_from(_PARTS), st.integers(0, 10**9)),
    st.integers(0, 10**9),
    st.integers(0, 10**9),
)
def test_the_account_balances(some: dict[str, int], opened: int, pending: int) -> None:
    counts = dict.fromkeys(_PARTS, 0) | some | dict.fromkeys(_TRACKED, opened)
    to_deliver = sum(counts[p] for p in _PARTS) + pending
    derived = derive(counts, to_deliver)
    assert derived["pending"] == pending
    settled = counts["sent"] + counts["errors"] + (derived["bounced"] or 0)
    assert derived["bounce_error_pct"] == percentage(int(settled - counts["sent"]), int(settled))


def test_each_percentage_is_a_share_of_its_own_whole() -> None:
    counts = dict.fromkeys(_PARTS, 0)
    counts |= {"sent": 400, "bounced_hard": 30, "bounced_soft": 20, "bounced_ignored": 10, "errors": 40}
    counts |= {"opened": 100, "clicked": 50, "human_opened": 80, "human_clicked": 20}
    assert derive(counts, 1_000) == {
        "bounced": 60,
        "pending": 500,
        "sent_pct": 40.0,
        "bounce_error_pct": 20.0,
        "open_pct": 25.0,
        "click_pct": 12.5,
        "human_open_pct": 20.0,
        "human_click_pct": 5.0,
    }
