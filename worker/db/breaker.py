"""The circuit breaker reads the counters after a batch, and trips once."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from worker.db import accounts, deliveries
from worker.domain.breaker import BreakerLimits, Refusing, Tally, Tripped, judge, judge_domains, judge_end
from worker.domain.states import Move

if TYPE_CHECKING:
    from worker.db.pool import Database, Transaction


_DOMAINS_READ: Final = 20
"""Of the domains that refuse us, those with the most refusals that are looked at."""
_MORE: Final = 1.2
"""The domains are looked at again when there are so many times the refusals: it reads all outcomes of the
delivery, so it must not follow every batch."""
_DELIVERIES_KEPT: Final = 1_000
"""Deliveries of which is remembered when their domains were looked at."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a delivery after a batch."""

    complete: bool
    """Whether all recipients have an outcome."""
    verdict: Tripped | None
    """Why the delivery must be paused; None if it may go on, does not run, or the breaker tripped before."""


class _Seen(NamedTuple):
    """What the counters say of a delivery."""

    complete: bool
    armed: bool
    """Whether the breaker may trip: the delivery runs, and it did not trip before."""
    tally: Tally
    limits: BreakerLimits

    def verdict(self) -> Tripped | None:
        if not self.armed:
            return None
        return (judge_end if self.complete else judge)(self.tally, self.limits)

    @property
    def least(self) -> int:
        """How many refusals one domain must have before its share can be above the limit; 0 for never."""
        wanted = bool(self.armed and self.limits.minimum and self.limits.domain_refused_pct)
        return wanted and max(1, int(self.limits.minimum * self.limits.domain_refused_pct / 100))


class Breaker:
    """The breakers of all deliveries. Each call is a transaction of its own."""

    def __init__(self, db: Database) -> None:
        """Takes the database."""
        self._db = db
        self._looked: OrderedDict[int, int] = OrderedDict()
        """By delivery: how many refusals there were when its domains were looked at."""

    async def progress(self, delivery_id: int, defaults: BreakerLimits) -> Progress:
        """Reads the progress of a delivery, and whether it may go on.

        Args:
            delivery_id: The delivery, which exists.
            defaults: The limits for a delivery that has none of its own.
        """
        seen = await _look(self._db, delivery_id, defaults)
        verdict = seen.verdict()
        if verdict is None and self._worth_a_look(delivery_id, seen):
            verdict = judge_domains(
                seen.tally, seen.limits, await _refusing(self._db, delivery_id, seen.least)
            )
        return Progress(seen.complete, verdict)

    def _worth_a_look(self, delivery_id: int, seen: _Seen) -> bool:
        refused = seen.tally.refused
        if not seen.least or refused < max(seen.least, _MORE * self._looked.get(delivery_id, 0)):
            return False
        self._looked[delivery_id] = refused
        self._looked.move_to_end(delivery_id)
        if len(self._looked) > _DELIVERIES_KEPT:
            self._looked.popitem(last=False)
        return True

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
            seen = await _look(tx, delivery_id, defaults)
            verdict = seen.verdict()
            if verdict is None and seen.least:
                refusing = await _refusing(tx, delivery_id, seen.least)
                verdict = judge_domains(seen.tally, seen.limits, refusing)
            elif verdict is not None and verdict.by_sender:
                verdict = verdict.at_domains(await _refusing(tx, delivery_id, 1))
            if verdict is not None:
                await deliveries.move(
                    tx, delivery_id, Move.PAUSE, reason=verdict.reason, figures=verdict.figures
                )
                await tx.execute("trip_breaker", delivery_id=delivery_id, spares_refused=verdict.by_sender)
                await accounts.spare_refused(tx, delivery_id)
        return verdict


async def _refusing(source: Database | Transaction, delivery_id: int, least: int) -> list[Refusing]:
    rows = await source.fetch(
        "read_refusing_domains", delivery_id=delivery_id, least=least, domains=_DOMAINS_READ
    )
    return [Refusing(row["domain"], row["attempted"], row["refused"]) for row in rows]


async def _look(source: Database | Transaction, delivery_id: int, defaults: BreakerLimits) -> _Seen:
    row = await source.fetchrow(
        "read_progress",
        delivery_id=delivery_id,
        minimum=defaults.minimum,
        hard_bounce_pct=defaults.hard_bounce_pct,
        error_pct=defaults.error_pct,
        refused_pct=defaults.refused_pct,
        by_domain=defaults.domain_refused_pct > 0,
    )
    if row is None:
        raise LookupError(f"There is no delivery {delivery_id}.")
    return _Seen(
        row["complete"],
        row["running"] and not row["tripped"],
        Tally(row["attempted"], row["bounced_hard"], row["errors"], row["refused"]),
        BreakerLimits(
            row["minimum"],
            row["hard_bounce_pct"],
            row["error_pct"],
            row["refused_pct"],
            defaults.domain_refused_pct,
        ),
    )
