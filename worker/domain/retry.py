"""When a recipient is tried again: a table of delays, each spread a little. Pure."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from contracts.results import BounceReason
from contracts.sends import message_id

if TYPE_CHECKING:
    from worker.domain.outcomes import Facts

SPREAD: Final = 0.2
"""The largest share by which a delay is shortened or lengthened, so that recipients that failed together are
not retried together."""
_HINT: Final = re.compile(
    r"\b(?:(\d{1,2}):(\d{2}):(\d{2})|(\d{1,5}) ?(s|secs?|seconds?|m|mins?|minutes?|h|hours?))\b",
    re.IGNORECASE,
)
"""How servers that greylist say when they take a message, such as `300 seconds`, `5 min` or `00:05:00`."""
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600}
_LONGEST_HINT: Final = 86_400
"""Seconds. A server that greylists for longer than a day is not believed."""


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
        place = zlib.crc32(name) / 2**32
        hint = hinted(known.reply or "") if known.reason == BounceReason.GREYLISTED else None
        if hint is not None:
            return timedelta(seconds=hint * (1 + SPREAD * place))  # earlier would be refused again
        return backoff(self.delays, known.attempt, place)


def hinted(reply: str) -> int | None:
    """Returns after how many seconds a server that greylists takes the message; None if it does not say."""
    found = _HINT.search(reply)
    if found is None:
        return None
    hours, minutes, seconds, number, unit = found.groups()
    wait = (
        int(number) * _UNITS[unit[0].lower()]
        if number
        else int(hours) * 3_600 + int(minutes) * 60 + int(seconds)
    )
    return wait if 0 < wait <= _LONGEST_HINT else None


def backoff(delays: tuple[float, ...], attempt: int, place: float) -> timedelta:
    """Returns how long to wait after an attempt.

    Args:
        delays: Seconds after the first, second, … attempt; the last is used for all later ones.
        attempt: The attempt that failed, from 1.
        place: The place in the spread, from 0 for the shortest wait to 1 for the longest.
    """
    delay = delays[min(attempt, len(delays)) - 1]
    return timedelta(seconds=delay * (1 + SPREAD * (2 * place - 1)))
