"""How many recipients a delivery has, and what to say where a result names nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from worker.db.retrying import Idempotent

if TYPE_CHECKING:
    from worker.db.accounts import Accounts
    from worker.db.pool import Database

_DELIVERIES_KEPT: Final = 1_000
"""Bounds the memory, nothing else."""


class Audiences:
    """How many recipients confirmed deliveries have; the number is fixed, so it is kept."""

    def __init__(self, accounts: Accounts, db: Database) -> None:
        """Takes the accounts, and the database that they are in."""
        self._accounts = accounts
        self._db = db
        self._sizes: dict[int, int] = {}

    async def size(self, delivery_id: int) -> int:
        """Returns it; 0 where there is no such delivery, it was never confirmed, or has left by retention.

        Raises:
            Busy, Broken, Stopped: as `worker.db.retrying.Retrier.until_done`.
        """
        if delivery_id not in self._sizes:
            size = await self._db.until_done(
                Idempotent(lambda: self._accounts.audience_size(delivery_id)), "reading an audience's size"
            )
            if not size:
                return 0
            if len(self._sizes) >= _DELIVERIES_KEPT:
                self._sizes.clear()
            self._sizes[delivery_id] = size
        return self._sizes[delivery_id]


def nobody(size: int) -> str:
    """Says why there is no such recipient in a delivery of a size."""
    if not size:
        return "The delivery does not exist, was never confirmed, or has left by retention."
    return f"The delivery has {size} recipients, and none of this number."
