"""When deliveries were to start, kept until their first hand-over."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, Protocol

from worker.db.retrying import Idempotent
from worker.domain.failures import Busy

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from worker.db.retrying import Retrying

_FIRST: Final = 1
"""The recipient whose first attempt is the start of a delivery: its message is published first, and claimed
once."""


class Due(Protocol):
    """Knows when deliveries are to start: `worker.db.deliveries.DeliveryContents`."""

    async def seconds_since_due(self, delivery_id: int) -> float | None:
        """Returns the seconds since a delivery was to start; None if it is not confirmed."""


class StartTimes:
    """Measures how long deliveries take from then to the hand-over of their first recipient."""

    def __init__(self, due: Due, database: Retrying, observe: Callable[[float], None]) -> None:
        """Takes its parts; `observe` is called once for each delivery."""
        self._due = due
        self._database = database
        self._observe = observe
        self._expected: dict[int, float] = {}

    async def expect(self, delivery_id: int, recipient: int, attempt: int) -> None:
        """Notes when a delivery was to start, if this claim is to be its first hand-over."""
        if (recipient, attempt) != (_FIRST, 1):
            return
        asking = Idempotent(lambda: self._due.seconds_since_due(delivery_id))
        with contextlib.suppress(Busy):  # it is only measured
            seconds = await self._database.until_done(asking, "reading when a delivery was due")
            if seconds is not None:
                self._expected[delivery_id] = asyncio.get_running_loop().time() - seconds

    def handed_over(self, delivery_id: int, recipients: Collection[int]) -> None:
        """Notes that recipients are handed over."""
        if _FIRST in recipients and (due := self._expected.pop(delivery_id, None)) is not None:
            self._observe(max(0, asyncio.get_running_loop().time() - due))

    def forget(self, delivery_id: int, recipient: int) -> None:
        """Notes that a recipient is done with, handed over or not."""
        if recipient == _FIRST:
            self._expected.pop(delivery_id, None)
