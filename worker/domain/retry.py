"""When a recipient is tried again: a table of delays, each spread a little. Pure."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from contracts.sends import message_id

if TYPE_CHECKING:
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

    def delay(self, delivery_id: int, recipient: int, known: Facts) -> timedelta | None:
        """Returns how long after its record a recipient is tried again, where the delivery's limits allow it.

        The time itself is the database's: a sender's clock may be wrong. The spread is drawn from the number
        of the attempt, so that the same result leads to the same delay wherever it is recorded.

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
        return backoff(self.delays, known.attempt, zlib.crc32(name) / 2**32)


def backoff(delays: tuple[float, ...], attempt: int, place: float) -> timedelta:
    """Returns how long to wait after an attempt.

    Args:
        delays: Seconds after the first, second, … attempt; the last is used for all later ones.
        attempt: The attempt that failed, from 1.
        place: The place in the spread, from 0 for the shortest wait to 1 for the longest.
    """
    delay = delays[min(attempt, len(delays)) - 1]
    return timedelta(seconds=delay * (1 + SPREAD * (2 * place - 1)))
