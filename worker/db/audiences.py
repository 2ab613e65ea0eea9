"""How many recipients a delivery has, and what to say where a message names one that it does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from worker.db.retrying import Idempotent

if TYPE_CHECKING:
    from worker.db.accounts import Accounts
    from worker.db.retrying import Retrying

_DELIVERIES_KEPT: Final = 1_000
"""Bounds the memory, nothing else."""


class Audiences:
    """How many recipients confirmed deliveries have; the number is fixed, so it is kept."""

    def __init__(self, accounts: Accounts, retrying: Retrying) -> None:
        """Takes the accounts, and what carries the reading out."""
        self._accounts = accounts
        self._retrying = retrying
        self._sizes: dict[int, int] = {}

    async def size(self, delivery_id: int) -> int:
        """Returns it; 0 if there is no such delivery, it was never confirmed, or has left by retention.

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
    """Returns the sentence that says why a delivery of a size does not have a recipient."""
    if not size:
        return "The delivery does not exist, was never confirmed, or has left by retention."
    return f"The delivery has {size} recipients, and none of this number."
