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
"""The largest share by which a delay is shortened or lengthened, so that recipients that failed together are
not retried together."""


@dataclass(frozen=True, slots=True)
class Retries:
    """The retries of an installation."""

    delays: tuple[float, ...]
    """Seconds after the first, second, … attempt; the last is used for all later ones. At least one."""
    max_attempts: int
    """Attempts for one recipient of a delivery that has no limit of its own; 1 for no retries."""

    def next_at(self, delivery_id: int, recipient: int, known: Facts) -> datetime | None:
        """Returns when a recipient is tried again, if the delivery's limits allow it.

        The spread is computed from the number of the attempt. So the same result gives the same time, even if
        it is recorded several times or by several processes.

        Args:
            delivery_id: The delivery.
            recipient: The recipient.
            known: The recipient's facts.

        Returns:
            None if the winning fact is final.
        """
        if not known.retryable:
            return None
        name = message_id(delivery_id, recipient, known.attempt).encode()
        return known.at + backoff(self.delays, known.attempt, zlib.crc32(name) / 2**32)


def backoff(delays: tuple[float, ...], attempt: int, place: float) -> timedelta:
    """Returns how long to wait after an attempt.

    Args:
        delays: Seconds after the first, second, … attempt; the last is used for all later ones.
        attempt: The attempt that failed, from 1.
        place: The place in the spread, from 0 for the shortest wait to 1 for the longest.
    """
    delay = delays[min(attempt, len(delays)) - 1]
    return timedelta(seconds=delay * (1 + SPREAD * (2 * place - 1)))
