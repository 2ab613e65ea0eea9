"""How many recipients a sender may have claimed at once.

If the process dies, its recipients that were not handed over wait until the lease expires, and those that
were handed over become unknown. So there should be few of them. But claims and results are cheap only in
large batches: with twenty at a time, a recipient cost two to four times the processor time. So the window
follows the rate: the number that the channel sends in a tenth of a second, and the number that keeps it
busy.
"""

from __future__ import annotations

from typing import Final

_SECONDS_AHEAD: Final = 0.1
"""Seconds of sending that are claimed ahead. The rate is measured over the same time."""


class ClaimWindow:
    """The window of one sender. It grows and shrinks with the rate of finished sends."""

    def __init__(self, least: int, most: int) -> None:
        """Starts with the smallest window.

        Args:
            least: Claims that keep the channel busy.
            most: The most open claims; it wins over `least`.
        """
        self._least = min(least, most)
        self._most = most
        self._size = self._least
        self._done = 0
        self._since = float("-inf")

    def done(self) -> None:
        """Counts a finished send."""
        self._done += 1

    def free(self, claimed: int, now: float) -> int:
        """Returns how many more recipients may be claimed.

        Args:
            claimed: The number of open claims.
            now: Seconds of a monotonic clock.

        Returns:
            0 while more than half of the window is in use, so that claims are made in batches.
        """
        elapsed = now - self._since
        if elapsed >= _SECONDS_AHEAD:
            ahead = int(self._done / elapsed * _SECONDS_AHEAD)
            self._size = min(self._most, self._least + ahead)
            self._since, self._done = now, 0
        return self._size - claimed if claimed <= self._size // 2 else 0
