"""Starts a confirmed delivery: one transaction for its claims, its row, its pages and its operator."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from worker.db import accounts, commands, deliveries, pages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from worker.db.pool import Database, Transaction
    from worker.domain.deliveries import Delivery
    from worker.domain.operators import Operator
    from worker.domain.states import Move


class Starts:
    """Opens the transactions in which deliveries start."""

    def __init__(self, db: Database) -> None:
        """Takes the database."""
        self._db = db

    @asynccontextmanager
    async def begin(self, delivery_id: int) -> AsyncIterator[Start]:
        """Opens a transaction for one delivery; commits when the block ends, rolls back when it raises."""
        async with self._db.transaction() as tx:
            yield Start(tx, delivery_id)


class Start:
    """The reads and writes of one delivery's start, in one transaction."""

    def __init__(self, tx: Transaction, delivery_id: int) -> None:
        """Takes the transaction and the delivery's number."""
        self._tx = tx
        self._delivery_id = delivery_id

    async def close_claims(self) -> None:
        """Waits for the claims under way, and blocks new ones until the transaction ends."""
        await accounts.close_claims(self._tx, self._delivery_id)

    async def delivery(self) -> Delivery | None:
        """Reads and locks the delivery's row; None if there is none."""
        return await deliveries.read_for_update(self._tx, self._delivery_id)

    async def now(self) -> datetime:
        """Returns the database's time, with its time zone."""
        return await deliveries.now(self._tx)

    async def authority(self) -> tuple[str, bool]:
        """Returns under whose authority the delivery starts, and whether a token gave it.

        Raises:
            LookupError: it was never confirmed.
        """
        return await deliveries.authority(self._tx, self._delivery_id)

    async def operator(self, name: str) -> Operator | None:
        """Reads an operator, whose roles stay as they are until the transaction ends."""
        return await commands.read_operator(self._tx, name)

    async def move(self, by: Move, reason: str | None = None) -> None:
        """Moves the delivery by one legal move, with the reason in words."""
        await deliveries.move(self._tx, self._delivery_id, by, reason=reason)

    async def cancel_remaining(self) -> None:
        """Counts recipients that were not tried as cancelled; call `close_claims` first."""
        await accounts.cancel_remaining(self._tx, self._delivery_id)

    async def open_pages(self) -> None:
        """Sets the waves' times from the start, which is now, and wakes the fan-out at the commit."""
        await pages.start(self._tx, self._delivery_id)
