"""The accounts of a consumer: which deliveries are open, and how to acknowledge with few frames."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Ledger:
    """Counts the deliveries of one channel."""

    def __init__(self, gap_limit: int) -> None:
        """Takes how many deliveries may wait, settled, behind one that is not."""
        self._gap_limit = gap_limit
        self._open: deque[int] = deque()
        self._settled: set[int] = set()

    def delivered(self, tags: Iterable[int]) -> None:
        """Notes deliveries, in their order."""
        self._open.extend(tags)

    def handled(self, tags: Iterable[int]) -> None:
        """Notes what was dealt with, in any order."""
        self._settled.update(tags)

    def due(self, *, everything: bool = False) -> tuple[int, list[int]]:
        """Takes out what is to be acknowledged now.

        Args:
            everything: Whether nothing that is settled may wait any longer.

        Returns:
            The tag up to which all are acknowledged together, 0 for none, and those acknowledged one by one:
            one slow message must not hold the window shut behind it.
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
