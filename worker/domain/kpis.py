"""The KPIs of a delivery from its counts; the view `deployment` states the same formulas in SQL."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def percentage(part: int, whole: int) -> float | None:
    """Returns `part` of `whole` in percent, rounded half up to two decimals; None of nothing."""
    if whole == 0:
        return None
    exact = Decimal(100 * part) / Decimal(whole)
    return float(exact.quantize(Decimal("0.01"), ROUND_HALF_UP))


def derive(counts: Mapping[str, int], to_deliver: int) -> dict[str, int | float | None]:
    """Derives what follows from the counts: bounced, pending and the percentages.

    Args:
        counts: sending, sent, bounced_hard, bounced_soft, bounced_ignored, errors, unknown, excluded_late,
            cancelled, retrying, opened, clicked, human_opened and human_clicked, in recipients.
        to_deliver: Recipients of the confirmed preparation.

    Returns:
        bounced, pending, sent_pct, bounce_error_pct, open_pct, click_pct, human_open_pct and human_click_pct,
        such that the account balances: to_deliver is the sum of sent, bounced, errors, unknown,
        excluded_late, cancelled, retrying, sending and pending.
    """
    bounced = counts["bounced_hard"] + counts["bounced_soft"] + counts["bounced_ignored"]
    settled = ("sent", "errors", "unknown", "excluded_late", "cancelled", "retrying", "sending")
    return {
        "bounced": bounced,
        "pending": to_deliver - bounced - sum(counts[k] for k in settled),
        "sent_pct": percentage(counts["sent"], to_deliver),
        "bounce_error_pct": percentage(
            bounced + counts["errors"], counts["sent"] + bounced + counts["errors"]
        ),
        "open_pct": percentage(counts["opened"], counts["sent"]),
        "click_pct": percentage(counts["clicked"], counts["sent"]),
        "human_open_pct": percentage(counts["human_opened"], counts["sent"]),
        "human_click_pct": percentage(counts["human_clicked"], counts["sent"]),
    }
