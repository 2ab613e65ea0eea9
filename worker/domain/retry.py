"""When a recipient is tried again: a table of delays, each spread a little. Pure."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from contracts.sends import message_id

if TYPE_CHECKING:
    from datetime import datetime

    from worker.domain.outcomes import Facts

SPREAD: Final = 0.2
"""By which share a delay is shortened or lengthened at most: who failed together comes back one by one."""


@dataclass(frozen=True, slots=True)
class Retries:
    """The retries of an installation."""

    delays: tuple[float, ...]
    """Seconds after the first, second, … attempt; the last holds for all further ones. At least one."""
    max_attempts: int
    """Attempts for one recipient of a delivery that has no limit of its own; 1 for no retries."""

    def next_at(self, delivery_id: int, recipient: int, known: Facts) -> datetime | None:
        """Returns when a recipient would be tried again, were the delivery's limits to allow it.

        The spread is drawn from the number of the attempt, so that the same result, recorded anywhere and
        however often, leads to the same time.

        Args:
            delivery_id: The delivery.
            recipient: The recipient.
            known: What stands for them.

        Returns:
            None if what stands is final.
        """
        if not known.retryable:
            return None
        name = message_id(delivery_id, recipient, known.attempt).encode()
        return known.at + backoff(self.delays, known.attempt, zlib.crc32(name) / 2**32)


def backoff(delays: tuple[float, ...], attempt: int, place: float) -> timedelta:
    """Returns how long to wait after an attempt.

    Args:
        delays: Seconds after the first, second, … attempt; the last holds for all further ones.
        attempt: The attempt that failed, from 1.
        place: Where in the spread, from 0 for the shortest wait to 1 for the longest.
    """
    delay = delays[min(attempt, len(delays)) - 1]
    return timedelta(seconds=delay * (1 + SPREAD * (2 * place - 1)))
