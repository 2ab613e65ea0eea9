"""Recognises the server: a database that was restored, or a standby that took over, sends nothing by itself.

It may lack the last commits. The claims among them are gone, and without a pause their recipients would be
sent to again. So each connection that a service opens asks first whether the server is the
one that wrote last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import asyncpg
import structlog

from sql import queries
from worker.db import accounts, deliveries
from worker.db.pool import Transaction
from worker.domain.states import Move

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = structlog.get_logger(__name__)

RESTORED: Final = (
    "The database is another than before: it was restored, or a standby took over. Who was sent to since"
    " its last"
    " commit is not known here. Resume it, and they may be sent to again; or stop it."
)
"""Why a delivery is paused."""

AfterFailover = Literal["pause", "continue"]


def recogniser(after_failover: AfterFailover) -> Callable[[asyncpg.Connection], Awaitable[None]]:
    """Returns what each new connection goes through before it is used.

    Args:
        after_failover: Whether deliveries pause when a standby took over. They always pause when the data
            stand at another server, as after a restore into a new one.
    """
    read = queries()["read_same_server"]

    async def recognise(connection: asyncpg.Connection) -> None:
        try:
            same = await connection.fetchval(read.text)
        except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
            return  # the check of the schema, which comes next, says what is missing
        if same:
            return
        async with connection.transaction():
            await _hold(Transaction(connection, queries()), after_failover)

    return recognise


async def _hold(tx: Transaction, after_failover: AfterFailover) -> None:
    """Pauses all deliveries unless somebody did, and notes the server."""
    known = await tx.fetchrow("lock_server")
    if await tx.fetchval("read_same_server"):
        return  # another process did it while we waited
    moved = known is None or known["system_identifier"] != known["present"]
    paused = []
    if moved or after_failover == "pause":
        for row in await tx.fetch("read_going_deliveries"):
            number = row["delivery_id"]
            await accounts.close_claims(tx, number)
            await deliveries.read_for_update(tx, number)
            if await deliveries.move(tx, number, Move.PAUSE, reason=RESTORED) is not None:
                paused.append(number)
    await tx.execute("write_server")
    log.warning("the database is another than before", deliveries_paused=len(paused), restored=moved)
