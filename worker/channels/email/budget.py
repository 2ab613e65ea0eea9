"""Limits that all processes share: what this process may have of them by its last lease. Pure."""

from __future__ import annotations

from typing import Final

from worker.channels.protocol import Share, Want

LEASE_SECONDS: Final = 2.0
"""Seconds for which leased messages may be begun. Then they are lost, so that nobody saves up for a burst."""


class Part:
    """The connections of one limit that this process has leased."""

    def __init__(self, name: str, most: int) -> None:
        """Begins with none."""
        self.name = name
        self.most = most
        self._granted = 0
        self._until = float("-inf")

    def connections(self, now: float) -> int:
        """Returns how many this process may have."""
        return self._granted if now < self._until else 0

    @property
    def share(self) -> Share:
        """What to ask for."""
        return Share(self.name, self.most)

    def grant(self, count: int, now: float) -> None:
        """Takes a new lease."""
        self._granted, self._until = count, now + LEASE_SECONDS


class Budget:
    """The messages of one limit that this process has leased."""

    def __init__(self, name: str, per_minute: int) -> None:
        """Begins with nothing leased."""
        self.name = name
        self.per_minute = per_minute
        self.hungry = False
        """Whether messages wait for it."""
        self._left = 0
        self._until = float("-inf")

    def room(self, now: float) -> int:
        """Returns how many messages may be begun now."""
        if self._left > 0 and now < self._until:
            return self._left
        self.hungry = True
        return 0

    def take(self, count: int) -> None:
        """Notes that some are begun."""
        self._left -= count

    def give_back(self) -> None:
        """Notes that one was not tried after all."""
        self._left += 1

    @property
    def because(self) -> str:
        """Why messages wait for it, in words for a sentence."""
        return f"it may have {self.per_minute} messages a minute"

    @property
    def want(self) -> Want:
        """What to ask for: the messages of a second."""
        return Want(self.name, self.per_minute, -(-self.per_minute // 60))

    def grant(self, count: int, now: float) -> None:
        """Takes a new lease; what is left of the one before is lost."""
        self._left, self._until = count, now + LEASE_SECONDS
        self.hungry = False
