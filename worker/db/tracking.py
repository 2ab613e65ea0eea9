"""Records tracking events and the changes that they cause, in one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from worker.db import accounts
from worker.domain.audience import address_key
from worker.domain.tracking import DENYLISTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.db.pool import Database, Transaction
    from worker.domain.tracking import Tracked


@dataclass(frozen=True, slots=True)
class TrackingChanges:
    """What a batch changed.

    Attributes:
        events: How many events were new.
        machines: Of these, how many came from machines.
        opted_out: Recipients whose opt-out or complaint was applied.
    """

    events: int
    machines: int
    opted_out: int


class TrackingLog:
    """The tracking logs of all deliveries."""

    def __init__(self, db: Database) -> None:
        """Takes the database."""
        self._db = db

    async def record(self, delivery_id: int, tracked: Sequence[Tracked], rules: str) -> TrackingChanges:
        """Records events of a delivery's recipients with their counters, and denylists the unwilling.

        Args:
            delivery_id: The delivery.
            tracked: The events. Each event_id comes once.
            rules: The version of the rules that classified them.

        Returns:
            What it changed.
        """
        events = [t.event for t in tracked]
        async with self._db.transaction() as tx:
            # Blocks erasures meanwhile: otherwise this could store a web address of an erased profile.
            await accounts.share_claims(tx, delivery_id)
            (row,) = await tx.fetch(
                "record_tracking",
                delivery_id=delivery_id,
                event_ids=[e.event_id for e in events],
                recipients=[e.recipient for e in events],
                kinds=[e.kind.value for e in events],
                urls=[e.url for e in events],
                times=[e.at for e in events],
                user_agents=[t.user_agent for t in tracked],
                machine_rules=[t.machine_rule for t in tracked],
                rules=rules,
            )
            new = set(row["unwanted"] or ())
            heeded = [t.event for t in tracked if t.heeded and t.event.event_id in new]
            unwilling = {kind: sorted({e.recipient for e in heeded if e.kind is kind}) for kind in DENYLISTS}
            for kind, recipients in unwilling.items():
                if recipients:
                    await _add_to_denylist(tx, delivery_id, recipients, kind.value)
        return TrackingChanges(row["recorded"], row["machines"], len({e.recipient for e in heeded}))


async def _add_to_denylist(tx: Transaction, delivery_id: int, recipients: Sequence[int], cause: str) -> None:
    rows = await tx.fetch("read_unwilling", delivery_id=delivery_id, recipients=recipients)
    profiles = {r["profile_id"] for r in rows} - {None}
    if profiles:
        await tx.execute(
            "denylist_unwilling", delivery_id=delivery_id, profile_ids=list(profiles), cause=cause
        )
    addresses = {address_key(r["address"]): r["address"] for r in rows if r["profile_id"] is None}
    if addresses:
        await tx.execute(
            "quarantine_unwilling",
            delivery_id=delivery_id,
            address_keys=list(addresses),
            addresses=list(addresses.values()),
            cause=cause,
        )
