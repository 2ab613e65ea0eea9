"""Counts a consumer's unacknowledged messages, and finds how to acknowledge them with few frames."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Ledger:
    """Counts the delivery tags of one AMQP channel."""

    def __init__(self, gap_limit: int) -> None:
        """Takes the number of handled messages that may wait behind one that is not handled."""
        self._gap_limit = gap_limit
        self._open: deque[int] = deque()
        self._settled: set[int] = set()

    def delivered(self, tags: Iterable[int]) -> None:
        """Notes messages of `basic.deliver`, in their order."""
        self._open.extend(tags)

    def handled(self, tags: Iterable[int]) -> None:
        """Notes messages that were handled, in any order."""
        self._settled.update(tags)

    def due(self, *, everything: bool = False) -> tuple[int, list[int]]:
        """Takes out the tags that must be acknowledged now.

        Args:
            everything: Whether all handled messages must be acknowledged now.

        Returns:
            The tag up to which all are acknowledged together, 0 for none, and the tags to acknowledge one by
            one. Without the latter, one slow message would keep the prefetch window full.
        """
        upto = 0
        while self._open and self._open[0] in self._settled:
            upto = self._open.popleft()
            self._settled.discard(upto)
        if not self._settled or not (everything or len(self._settled) > self._gap_limit):
            return upto, []
        alone = [tag for tag in self._open if tag in self._settled]
        self._open = deque(tag for tag in self._open if tag not in self._settled)
        self._settled.clear()
        return upto, alone
