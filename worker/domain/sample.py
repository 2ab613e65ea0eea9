"""Picks recipients of a file to try a content with: the first, some of the whole file, and the longest."""

from __future__ import annotations

import heapq
import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.domain.audience import Target

_FIRST: Final = 20
_SPREAD: Final = 100
"""Recipients from the whole file; twice as many while it is read."""
_LONGEST: Final = 20
"""Recipients with the longest values: they reach a limit first."""


class Sample:
    """Picks recipients while a file is read, in constant memory."""

    def __init__(self) -> None:
        """Starts empty."""
        self._first: list[Target] = []
        self._spread: list[Target] = []
        self._longest: list[tuple[int, int, Target]] = []
        """A heap: the length of the values, the line, and the target."""

    def pick(self, rows: Iterator[Target]) -> Iterator[Target]:
        """Yields all rows, and keeps some of those that are not left out."""
        apart, due, number = 1, 0, 0
        enough = -1
        for row in rows:
            if row.variables is not None:
                if len(row.variables) > enough:
                    enough = self._keep_long(row)
                if number < _FIRST:
                    self._first.append(row)
                if number == due:
                    self._spread.append(row)
                    if len(self._spread) > 2 * _SPREAD:
                        del self._spread[1::2]
                        apart *= 2
                    due += apart
                number += 1
            yield row

    def _keep_long(self, row: Target) -> int:
        """Returns the length above which the next row is kept."""
        entry = (len(row.variables or ""), row.line, row)
        if len(self._longest) < _LONGEST:
            heapq.heappush(self._longest, entry)
            return -1 if len(self._longest) < _LONGEST else self._longest[0][0]
        heapq.heapreplace(self._longest, entry)
        return self._longest[0][0]

    def recipients(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields each kept recipient once, by line: the line, and the values of its columns."""
        rows = {row.line: row for row in (*self._first, *self._spread, *(row for *_, row in self._longest))}
        for line in sorted(rows):
            yield line, json.loads(rows[line].variables or "{}") | {"address": rows[line].address}
