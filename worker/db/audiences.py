"""The number of a delivery's recipients, and the sentence for a recipient that does not exist."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from worker.db.retrying import Idempotent

if TYPE_CHECKING:
    from worker.db.accounts import Accounts
    from worker.db.retrying import Retrying

_DELIVERIES_KEPT: Final = 1_000
"""The most deliveries that are kept, to bound the memory."""


class Audiences:
    """The number of recipients of confirmed deliveries. It never changes, so it is kept."""

    def __init__(self, accounts: Accounts, retrying: Retrying) -> None:
        """Takes the accounts, and the object that repeats the reading."""
        self._accounts = accounts
        self._retrying = retrying
        self._sizes: dict[int, int] = {}

    async def size(self, delivery_id: int) -> int:
        """Returns the number; 0 if the delivery does not exist, was never confirmed, or retention removed it.

        Raises:
            Busy, Broken, Stopped: as `worker.db.retrying.Retrier.until_done`.
        """
        if delivery_id not in self._sizes:
            size = await self._retrying.until_done(
                Idempotent(lambda: self._accounts.audience_size(delivery_id)), "reading an audience's size"
            )
            if not size:
                return 0
            if len(self._sizes) >= _DELIVERIES_KEPT:
                self._sizes.clear()
            self._sizes[delivery_id] = size
        return self._sizes[delivery_id]


def why_absent(size: int) -> str:
    """Returns why a delivery with `size` recipients does not have a recipient, in a sentence."""
    if not size:
        return "The delivery does not exist, was never confirmed, or has left by retention."
    return f"The delivery has {size} recipients, and none of this number."
