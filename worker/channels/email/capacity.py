"""What a server takes: how many connections, and how fast. Pure: the caller gives the time.

Servers limit both, and say so only by a refusal. So a limit is found by meeting it, and tried again later.
"""

from __future__ import annotations

from typing import Final

STEP_SECONDS: Final = 1.0
"""After a connection beyond the known limit was taken, the next is tried so much later."""
SHORTEST_REST: Final = 5.0
LONGEST_REST: Final = 300.0
"""Seconds until one more connection is tried after a refusal; each refusal in a row doubles them."""
SHORTEST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
"""Seconds until the next message after a refusal for speed; each refusal in a row doubles them."""


class Connections:
    """How many connections a server takes. It shrinks to what the server took, and steps up again."""

    def __init__(self, most: int) -> None:
        """Begins with the most that are wanted."""
        self.most: Final = most
        self.limit = most
        """How many the server takes, as far as we know."""
        self.next_try = 0.0
        """When one more than the limit may be tried."""
        self._rest = SHORTEST_REST

    def allowed(self, now: float) -> int:
        """Returns how many there may be now."""
        return self.limit + (self.limit < self.most and now >= self.next_try)

    def refused(self, held: int, now: float) -> bool:
        """Notes that the server refused one more.

        Args:
            held: How many the server has taken and not closed.
            now: The time.

        Returns:
            Whether that is news: a lower limit than before.
        """
        before, self.limit = self.limit, max(1, min(held, self.limit))
        if now >= self.next_try:  # else several were tried at the same time: one refusal in all
            self.next_try = now + self._rest
            self._rest = min(2 * self._rest, LONGEST_REST)
        return self.limit < before

    def took(self, held: int, now: float) -> None:
        """Notes that the server took a connection, and has now so many."""
        if held > self.limit:
            self.limit = min(held, self.most)
            self.next_try = now + STEP_SECONDS
            self._rest = SHORTEST_REST


class Pace:
    """How long to wait before the next message, after the server said that it is too fast."""

    def __init__(self) -> None:
        """Begins without a pause."""
        self.until = 0.0
        """When the next message may be sent."""
        self.because = ""
        """The server's words."""
        self._pause = 0.0

    @property
    def feeling(self) -> bool:
        """Whether no message went well since the last pause. Then one at a time is enough to find out."""
        return self._pause > 0

    def slow_down(self, because: str, now: float, asked: float = 0.0) -> None:
        """Notes a refusal for speed.

        Args:
            because: The server's words.
            now: The time.
            asked: For how many seconds the server asks us to wait, if it says that.
        """
        self.because = because
        if now >= self.until:  # else several were refused at the same time: one refusal in all
            self._pause = min(max(2 * self._pause, SHORTEST_PAUSE), LONGEST_PAUSE)
            self.until = now + self._pause
        self.until = max(self.until, now + asked)

    def went_well(self, now: float) -> None:
        """Notes that the server took a message."""
        if now >= self.until:
            self._pause = 0.0
