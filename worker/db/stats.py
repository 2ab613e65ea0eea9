"""The KPIs of one delivery, recounted in one snapshot."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from contracts.stats import Stats
from worker.db import accounts, deliveries
from worker.lifecycle import beside

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from worker.db.pool import Database, Transaction

_SNAPSHOTS: Final = 3

_LARGE: Final = 200_000
"""Recipients above which a recount uses the server's parallel workers and a second connection."""


class TookTooLong(Exception):
    """A recount did not end within its deadline."""


@dataclass(frozen=True, slots=True)
class Recount:
    """The result of a recount.

    Attributes:
        deployment: The row of the view `deployment`.
        excluded_by_cause: What the preparation left out.
        as_of: The time of the snapshot.
        drift: For each counter that differed before the repair, the recounted number minus the counter.
        exact: Whether it was recounted. If not, these are the live counters.
    """

    deployment: dict[str, Any]
    excluded_by_cause: dict[str, int]
    as_of: datetime
    drift: dict[str, int]
    exact: bool = True


class Statistics:
    """The KPIs of all deliveries."""

    def __init__(self, db: Database) -> None:
        """Takes the database."""
        self._db = db

    async def recount(self, delivery_id: int, *, deadline: float) -> Recount | None:
        """Recounts a delivery and repairs its counters.

        Args:
            delivery_id: The delivery.
            deadline: Seconds for everything, with the wait for another recount of the same delivery.

        Returns:
            None if there is no such delivery.

        Raises:
            TookTooLong: the deadline passed, or the statement was cancelled. Nothing was repaired.
        """
        async with self._db.session() as session:
            try:
                async with asyncio.timeout(deadline):
                    await session.execute("lock_stats", delivery_id=delivery_id)
                    try:
                        return await _recount(self._db, session, delivery_id)
                    finally:
                        await session.execute("unlock_stats", delivery_id=delivery_id)
            except (TimeoutError, asyncpg.QueryCanceledError) as error:
                raise TookTooLong from error

    async def live(self, delivery_id: int) -> Recount | None:
        """Reads the counters as they are, without a recount; None if there is no such delivery."""
        async with self._db.transaction(isolation="repeatable_read", readonly=True) as tx:
            return await _live(tx, delivery_id)


def answer(found: Recount) -> Stats:
    """Returns the answer of compute stats for what was counted."""
    row = found.deployment
    return Stats.model_validate(
        {
            **{k: _plain(row[k]) for k in Stats.model_fields.keys() & row.keys()},
            "preparation": row["preparation"] or None,
            "excluded_by_cause": found.excluded_by_cause,
            "as_of": found.as_of,
            "exact": found.exact,
            "drift": found.drift,
        }
    )


def _plain(value: object) -> object:
    # In the database a percentage is a numeric with two decimals.
    return float(value) if isinstance(value, Decimal) else value


async def _live(tx: Transaction, delivery_id: int) -> Recount | None:
    deployment = await tx.fetchrow("read_deployment", delivery_id=delivery_id)
    if deployment is None:
        return None
    causes = await deliveries.excluded_by_cause(tx, delivery_id)
    return Recount(dict(deployment), causes, await deliveries.now(tx), {}, exact=False)


async def _recount(db: Database, session: Transaction, delivery_id: int) -> Recount | None:
    # Changes between a snapshot and its repair do not change the difference, except two changes that the
    # repair checks for. Each of these happens only once.
    for _ in range(_SNAPSHOTS):
        async with session.connection.transaction(isolation="repeatable_read", readonly=True):
            deployment = await session.fetchrow("read_deployment", delivery_id=delivery_id)
            if deployment is None:
                return None
            large = deployment["to_deliver"] >= _LARGE
            counted, tracked, causes = await _count(db, session, delivery_id, large=large)
        found = Recount(dict(deployment), causes, counted["as_of"], {}, exact=not counted["purged"])
        if counted["purged"]:  # retention removed its outcomes: only the counters are left
            return found
        exact = {**counted, **tracked}
        drift = {k: exact[k] - live for k, live in deployment.items() if k in exact and exact[k] != live}
        if not drift:
            return found
        if await _repair(session, delivery_id, counted["cancelled_at"], drift):
            async with session.connection.transaction(isolation="repeatable_read", readonly=True):
                repaired = await _live(session, delivery_id)
            return repaired and replace(repaired, drift=drift, exact=True)
    raise AssertionError("a delivery is cancelled once, and leaves once")


async def _count(
    db: Database, session: Transaction, delivery_id: int, *, large: bool
) -> tuple[asyncpg.Record, asyncpg.Record, dict[str, int]]:
    """Counts outcomes, tracked recipients and exclusions in the snapshot of the session's transaction.

    For a large delivery, a second connection counts the last two. In sequence, each count would wait 5 to 10
    ms until the server's workers have started.
    """
    if not large:
        rest = await _count_rest(session, delivery_id)  # its plan is used for the rest of the transaction too
        (counted,) = await session.fetch("recount", delivery_id=delivery_id)
        return counted, *rest
    snapshot = await session.fetchval("export_snapshot")

    async def count_beside() -> tuple[asyncpg.Record, dict[str, int]]:
        async with db.transaction(isolation="repeatable_read", readonly=True) as tx:
            # The server made this literal. The statement accepts no parameter.
            await tx.connection.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
            return await _count_rest(tx, delivery_id)

    async with beside(count_beside(), f"count tracked recipients of {delivery_id}") as counting:
        await session.execute("plan_recount", parallel=True)
        (counted,) = await session.fetch("recount", delivery_id=delivery_id)
        return counted, *await counting


async def _count_rest(tx: Transaction, delivery_id: int) -> tuple[asyncpg.Record, dict[str, int]]:
    causes = await deliveries.excluded_by_cause(tx, delivery_id)
    await tx.execute("plan_recount", parallel=False)
    (tracked,) = await tx.fetch("recount_tracking", delivery_id=delivery_id)
    return tracked, causes


async def _repair(
    session: Transaction, delivery_id: int, cancelled_at: datetime | None, drift: Mapping[str, int]
) -> bool:
    async with session.connection.transaction():
        # A stop computes "the rest" from the counters and holds this lock exclusively, so it sees the whole
        # repair or none.
        await accounts.share_claims(session, delivery_id)
        return await accounts.repair(session, delivery_id, cancelled_at, drift)
