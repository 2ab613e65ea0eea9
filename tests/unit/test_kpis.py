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
