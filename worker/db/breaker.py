"""The circuit breaker reads the counters after a batch, and trips once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from worker.db import accounts, deliveries
from worker.domain.breaker import BreakerLimits, Tally, Tripped, judge
from worker.domain.states import Move

if TYPE_CHECKING:
    from worker.db.pool import Database, Transaction


_DOMAINS_NAMED: Final = 3
"""So many of the domains that refuse us are named."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a delivery after a batch."""

    complete: bool
    """Whether all recipients have an outcome."""
    verdict: Tripped | None
    """Why the delivery must be paused; None if it may go on, does not run, or the breaker tripped before."""


class Breaker:
    """The breakers of all deliveries. Each call is a transaction of its own."""

    def __init__(self, db: Database) -> None:
        """Takes the database."""
        self._db = db

    async def progress(self, delivery_id: int, defaults: BreakerLimits) -> Progress:
        """Reads the progress of a delivery, and whether it may go on.

        Args:
            delivery_id: The delivery, which exists.
            defaults: The limits for a delivery that has none of its own.
        """
        return await _progress(self._db, delivery_id, defaults)

    async def trip(self, delivery_id: int, defaults: BreakerLimits) -> Tripped | None:
        """Pauses a delivery whose breaker must trip, with the figures of that moment.

        Args:
            delivery_id: The delivery, which exists.
            defaults: The limits for a delivery that has none of its own.

        Returns:
            What tripped it; None if the delivery may go on, or another process tripped it.
        """
        async with self._db.transaction() as tx:
            # As a pause by command does, and before the lock of the row. After this no claim is granted.
            await accounts.close_claims(tx, delivery_id)
            await deliveries.read_for_update(tx, delivery_id)
            verdict = (await _progress(tx, delivery_id, defaults)).verdict
            if verdict is not None:
                if verdict.by_sender:
                    rows = await tx.fetch(
                        "read_refusing_domains", delivery_id=delivery_id, domains=_DOMAINS_NAMED
                    )
                    verdict = verdict.at_domains([(row["domain"], row["refused"]) for row in rows])
                await deliveries.move(
                    tx, delivery_id, Move.PAUSE, reason=verdict.reason, figures=verdict.figures
                )
                await tx.execute("trip_breaker", delivery_id=delivery_id, spares_refused=verdict.by_sender)
                await accounts.spare_refused(tx, delivery_id)
        return verdict


async def _progress(source: Database | Transaction, delivery_id: int, defaults: BreakerLimits) -> Progress:
    row = await source.fetchrow(
        "read_progress",
        delivery_id=delivery_id,
        minimum=defaults.minimum,
        hard_bounce_pct=defaults.hard_bounce_pct,
        error_pct=defaults.error_pct,
        refused_pct=defaults.refused_pct,
    )
    if row is None:
        raise LookupError(f"There is no delivery {delivery_id}.")
    own = BreakerLimits(row["minimum"], row["hard_bounce_pct"], row["error_pct"], row["refused_pct"])
    tally = Tally(row["attempted"], row["bounced_hard"], row["errors"], row["refused"])
    verdict = judge(tally, own) if row["running"] and not row["tripped"] else None
    # When all have an outcome, only those who were refused for our fault can still be helped by a pause.
    if row["complete"] and verdict is not None and not verdict.by_sender:
        verdict = None
    return Progress(row["complete"], verdict)
