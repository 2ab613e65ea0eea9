"""How many recipients a sender may have claimed at once.

What is claimed and not sent yet becomes unknown if the process dies, so there should be little of it; but
claims and results are cheap only by the dozen: with twenty at a time, a recipient cost two to four times the
processor time. So the window follows the rate: what the channel sends in a tenth of a second, on top of what
keeps it busy at all.
"""

from __future__ import annotations

from typing import Final

_SECONDS_AHEAD: Final = 0.1
"""Seconds of sending that are claimed ahead, and over which the rate is measured."""


class ClaimWindow:
    """The window of one sender; it grows and shrinks with the rate at which sends end."""

    def __init__(self, least: int, most: int) -> None:
        """Begins at its least.

        Args:
            least: Claims that keep the channel busy.
            most: Claims that may be open at all; wins over `least`.
        """
        self._least = min(least, most)
        self._most = most
        self._size = self._least
        self._done = 0
        self._since = float("-inf")

    def done(self) -> None:
        """Counts a send that ended."""
        self._done += 1

    def free(self, claimed: int, now: float) -> int:
        """Says how many more may be claimed.

        Args:
            claimed: How many are open.
            now: Seconds by a clock that never goes back.

        Returns:
            0 while more than half of the window is in use, so that claims are made many at a time.
        """
        elapsed = now - self._since
        if elapsed >= _SECONDS_AHEAD:
            ahead = int(self._done / elapsed * _SECONDS_AHEAD)
            self._size = min(self._most, self._least + ahead)
            self._since, self._done = now, 0
        return self._size - claimed if claimed <= self._size // 2 else 0
