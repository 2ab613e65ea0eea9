"""How fast a delivery goes, by counts of the last seconds. Pure."""

from __future__ import annotations

from collections import deque
from datetime import timedelta
from typing import Final

_RATE_SECONDS: Final = 5.0


class Pace:
    """How many recipients get an outcome per second, over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, at: float, settled: int) -> None:
        """Notes how many recipients had an outcome at a moment, in seconds of a monotonic clock."""
        self._seen.append((at, settled))
        while len(self._seen) > 2 and at - self._seen[1][0] >= _RATE_SECONDS:  # noqa: PLR2004 - a first and a last
            self._seen.popleft()

    @property
    def rate(self) -> float | None:
        """Recipients per second; None until there are two counts to compare."""
        if len(self._seen) < 2:  # noqa: PLR2004
            return None
        (since, before), (at, settled) = self._seen[0], self._seen[-1]
        return (settled - before) / (at - since) if at > since else None

    def left(self, remaining: int) -> timedelta | None:
        """Returns how long `remaining` recipients take at this pace; None if it is not known."""
        rate = self.rate
        return timedelta(seconds=round(remaining / rate)) if rate and rate > 0 else None
