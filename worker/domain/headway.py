"""How far the fan-out runs ahead of a channel's senders. Pure.

What waits in the send queue delays every delivery that comes later: at 20,000 messages a second, 5,000 that
wait are a quarter of a second. With too few, senders wait for the fan-out. So a page is
published only while fewer wait than the senders take in a moment, and small deliveries go past that mark.

The rate alone would hold itself down where this process is slow to look, as on a busy machine: measured
there, it took half of the throughput. So a queue that runs empty though the mark was reached doubles the
mark, and half a second without that halves it again.
"""

from __future__ import annotations

from typing import Final

_MEASURED_SECONDS: Final = 0.5
"""Seconds over which the rate is measured: pages of a thousand messages make shorter ones too rough."""

_LEAST: Final = 100
"""Messages that may wait whatever the rate is, so that slow senders find their next ones."""

_EXPRESS_MESSAGES: Final = 1_000
"""Messages of small deliveries that go first, until a page of another delivery had its turn."""


class Headway:
    """The mark of one channel, for one fan-out.

    Several fan-outs measure their own share of the rate each. Their marks are lower then, and each publishes
    a page at a time at least.
    """

    def __init__(self, most: int, seconds: float) -> None:
        """Begins with the lowest mark.

        Args:
            most: The most messages that may wait.
            seconds: The seconds of work that may wait; 0 to let `most` wait at any rate.
        """
        self._most = most
        self._seconds = seconds
        self._since: float | None = None
        self._before = 0
        self._published = 0
        self._rate = 0.0
        self._factor = 1
        self._reached = False
        self._ran_empty = False
        self._waiting: int | None = None
        self._under_way = 0
        self._express = 0

    @property
    def mark(self) -> int:
        """The most messages that may wait now."""
        if not self._seconds:
            return self._most
        return min(self._most, max(_LEAST, int(self._rate * self._seconds)) * self._factor)

    @property
    def room(self) -> int:
        """How many more messages may be published now; none as long as nobody knows how many wait."""
        return 0 if self._waiting is None else max(self.mark - self._waiting - self._under_way, 0)

    @property
    def small_first(self) -> bool:
        """Whether small deliveries go past the mark and before others: not if these wait too long already."""
        return self._waiting is not None and self._express < _EXPRESS_MESSAGES

    def looked(self, waiting: int | None, now: float) -> None:
        """Takes how many messages wait in the queue.

        Args:
            waiting: The number; None if nobody knows.
            now: Seconds of a monotonic clock.
        """
        self._waiting = waiting
        if waiting is None:
            self._since = None
            return
        if self._reached and not waiting and self.mark < self._most:
            self._factor *= 2
            self._ran_empty = True
        self._reached = False
        if self._since is not None and now - self._since < _MEASURED_SECONDS:
            return
        if self._since is not None:
            taken = self._before + self._published - waiting
            self._rate = max(taken, 0) / (now - self._since)
        if not self._ran_empty:
            self._factor = max(self._factor // 2, 1)
        self._since, self._before, self._published, self._ran_empty = now, waiting, 0, False

    def leased(self, messages: int, *, small: bool) -> None:
        """Takes a page that will be published now."""
        self._under_way += messages
        self._reached |= not self.room
        self._express = self._express + messages if small else 0

    def published(self, messages: int, confirmed: int) -> None:
        """Takes the end of that.

        Args:
            messages: As many as were leased.
            confirmed: How many of them the broker has.
        """
        self._under_way -= messages
        self._published += confirmed
        if self._waiting is not None:
            self._waiting += confirmed
