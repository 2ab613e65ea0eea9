"""How far two clocks may differ. Pure."""

from __future__ import annotations

from typing import Final

MOST_SECONDS: Final = 2.0
"""By which they may differ: more shows in every figure that compares two of them."""


def disagreement(ahead: float) -> str:
    """Returns what follows from a difference between our clock and the database's; empty for nothing.

    Args:
        ahead: By how many seconds this machine's is ahead; negative if behind.
    """
    if abs(ahead) <= MOST_SECONDS:
        return ""
    side = "ahead of" if ahead > 0 else "behind"
    return (
        f"This machine's clock is {abs(ahead):.1f} s {side} the database's: times of results, lags and"
        " the validity of"
        " tokens are wrong by that. Let both machines follow a time server (NTP)."
    )
