"""Executes a command: one transaction reads and writes its answer, its operator and its delivery."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from worker.db import accounts, commands, deliveries, pages
from worker.domain.preflight import Others

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from contracts.commands import Reply
    from contracts.states import State
    from worker.db.commands import RecordedCommand
    from worker.db.pool import Database, Transaction
    from worker.domain.approval import Approval
    from worker.domain.deliveries import Delivery, Waves
    from worker.domain.operators import Operator
    from worker.domain.states import Move


_LOCK_SECONDS: Final = 5
"""For which a command waits for a lock; it is tried three times before it is given up."""


class Executions:
    """Opens the transactions in which commands are executed."""

    def __init__(self, db: Database) -> None:
        """Takes the database."""
        self._db = db

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Execution]:
        """Opens a transaction that waits for no lock for long; commits in the end, or rolls back."""
        async with self._db.transaction() as tx:
            await tx.execute("limit_lock_waits", milliseconds=str(_LOCK_SECONDS * 1_000))
            yield Execution(tx)


class Execution:
    """What one command reads and writes within its transaction."""

    def __init__(self, tx: Transaction) -> None:
        """Takes the transaction."""
        self._tx = tx

    async def recorded(self, command_id: str) -> RecordedCommand | None:
        """Looks up an answer. Until the transaction ends, nobody else answers the same command."""
        return await commands.recorded(self._tx, command_id)

    async def record(
        self, *, command: str, operator: str | None, publisher: str | None, body: str, reply: Reply
    ) -> None:
        """Records a command with its answer."""
        await commands.record(
            self._tx, command=command, operator=operator, publisher=publisher, body=body, reply=reply
        )

    async def operator(self, name: str) -> Operator | None:
        """Reads an operator, whose roles stay as they are until the transaction ends."""
        return await commands.read_operator(self._tx, name)

    async def close_claims(self, delivery_id: int) -> None:
        """Waits for the claims under way, and blocks new ones until the transaction ends."""
        await accounts.close_claims(self._tx, delivery_id)

    async def delivery(self, delivery_id: int) -> Delivery | None:
        """Reads and locks a delivery's row; None if there is none."""
        return await deliveries.read_for_update(self._tx, delivery_id)

    async def now(self) -> datetime:
        """Returns the database's time."""
        return await deliveries.now(self._tx)

    async def excluded_by_cause(self, delivery_id: int) -> dict[str, int]:
        """Counts the targets that the preparation left out, by cause."""
        return await deliveries.excluded_by_cause(self._tx, delivery_id)

    async def others(self, delivery_id: int) -> Others:
        """Reads what the preflight found and compares with."""
        found = await deliveries.others(self._tx, delivery_id)
        return found[1] if found else Others()

    async def waves(self, delivery_id: int) -> Waves:
        """Reads the first waves of a delivery, and the number of all."""
        return await deliveries.waves(self._tx, delivery_id)

    async def authorise(self, delivery_id: int, operator: str, *, by_token: bool) -> None:
        """Records under whose authority the delivery starts, and whether a token gave it."""
        await deliveries.authorise(self._tx, delivery_id, operator, by_token=by_token)

    async def approve(self, delivery_id: int, first: Approval | None) -> None:
        """Records the first of two OKs, or that there is none."""
        await deliveries.approve(self._tx, delivery_id, first)

    async def confirm(self, delivery_id: int, operator: str, valid_until: datetime) -> None:
        """Records the operator who confirmed, the time, and the end of the validity."""
        await deliveries.confirm(self._tx, delivery_id, operator, valid_until)

    async def move(
        self,
        delivery_id: int,
        by: Move,
        *,
        to: State | None = None,
        operator: str | None = None,
        reason: str | None = None,
        command_id: str | None = None,
    ) -> State | None:
        """Moves a delivery by one legal move, as `worker.db.deliveries.move` does.

        Returns:
            The new state; None if the delivery was in none of the move's source states.
        """
        return await deliveries.move(
            self._tx, delivery_id, by, to=to, operator=operator, reason=reason, command_id=command_id
        )

    async def paused_in(self, delivery_id: int) -> State | None:
        """Returns the state to which a paused delivery returns."""
        return await deliveries.paused_in(self._tx, delivery_id)

    async def create_pages(
        self, delivery_id: int, recipients: int, page_size: int, messages_per_hour: int | None
    ) -> None:
        """Creates a delivery's pages, as `worker.db.pages.create` does."""
        await pages.create(self._tx, delivery_id, recipients, page_size, messages_per_hour)

    async def reopen_pages(self, delivery_id: int) -> None:
        """Opens every published page, to be published again.

        Those who were refused for a fault of the sender before the pause, or during it, are tried again; call
        `close_claims` first.
        """
        await accounts.spare_refused(self._tx, delivery_id, last=True)
        await pages.reopen_all(self._tx, delivery_id)

    async def cancel_remaining(self, delivery_id: int) -> None:
        """Counts what was not tried as cancelled; call `close_claims` first."""
        await accounts.cancel_remaining(self._tx, delivery_id)
