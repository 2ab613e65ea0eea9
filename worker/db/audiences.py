"""The number of a delivery's recipients, and the sentence for a recipient that does not exist."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from worker.db.retrying import Idempotent
from worker.domain.failures import Busy

if TYPE_CHECKING:
    from collections.abc import Collection

    from worker.db.accounts import Accounts
    from worker.db.retrying import Retrying

_DELIVERIES_KEPT: Final = 10_000
"""Bounds the memory, nothing else."""


class Audiences:
    """The number of recipients of confirmed deliveries. It never changes, so it is kept."""

    def __init__(self, accounts: Accounts, retrying: Retrying) -> None:
        """Takes the accounts, and the object that repeats the reading."""
        self._accounts = accounts
        self._retrying = retrying
        self._sizes: dict[int, int] = {}

    async def sizes(self, delivery_ids: Collection[int]) -> dict[int, int | Busy]:
        """Returns them by delivery, read in one statement.

        Returns:
            0 where there is no such delivery, it was never confirmed, or has left by retention; a Busy where
            the database was too busy to say.

        Raises:
            Broken, Stopped: as `worker.db.retrying.Retrier.until_done`.
        """
        kept: dict[int, int | Busy] = {n: self._sizes[n] for n in delivery_ids if n in self._sizes}
        asked = sorted(set(delivery_ids) - kept.keys())
        if not asked:
            return kept
        reading = Idempotent(lambda: self._accounts.audience_sizes(asked))
        try:
            found = await self._retrying.until_done(reading, "reading the sizes of audiences")
        except Busy as busy:
            return dict.fromkeys(asked, busy) | kept
        if len(self._sizes) + len(found) > _DELIVERIES_KEPT:
            self._sizes.clear()
        self._sizes |= found
        return dict.fromkeys(asked, 0) | found | kept


def why_absent(size: int) -> str:
    """Returns why a delivery with `size` recipients does not have a recipient, in a sentence."""
    if not size:
        return "The delivery does not exist, was never confirmed, or has left by retention."
    return f"The delivery has {size} recipients, and none of this number."
