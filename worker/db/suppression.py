"""The quarantine of addresses and the denylist of profiles: who is not written to, and why."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from contracts.results import BounceReason
from worker.domain import suppression
from worker.domain.audience import address_key
from worker.domain.suppression import SuppressionCause

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import datetime

    from worker.db.pool import Database, Transaction

_PAGE: Final = 2_000
"""Entries that one statement reads."""
_LIFTED_AT_ONCE: Final = 10_000
_HARD: Final = "bounced_hard"


class Kind(StrEnum):
    """The lists."""

    QUARANTINE = "quarantine"
    """Addresses."""
    DENYLIST = "denylist"
    """Profiles."""


class Entry(NamedTuple):
    """An entry that an operator adds."""

    key: str
    """What is compared: the address's key, or the profile."""
    text: str
    """The address as it is written, or the profile."""
    cause: str
    reason: str | None
    expires_at: datetime | None


async def suppress_failed(tx: Transaction, delivery_id: int, recipients: Sequence[int]) -> None:
    """Puts addresses that do not work into quarantine, and counts the errors of others.

    Args:
        tx: The transaction that recorded the bounces.
        delivery_id: The delivery.
        recipients: Recipients who bounced now, by a fault of theirs.
    """
    rows = await tx.fetch("read_failed", delivery_id=delivery_id, recipients=list(recipients))
    for hard in (True, False):
        # Of two recipients with one address one is enough. Preparation lets none through, foreign rows may.
        failed = {address_key(r["address"]): r for r in rows if (r["status"] == _HARD) is hard}
        if not failed:
            continue
        common = {
            "channel": rows[0]["channel"],
            "delivery_id": delivery_id,
            "address_keys": list(failed),
            "addresses": [row["address"] for row in failed.values()],
            "reasons": [row["reason"] for row in failed.values()],
        }
        if hard:
            await tx.execute("quarantine_hard", cause=SuppressionCause.HARD_BOUNCE, **common)
        else:
            await tx.execute(
                "count_soft",
                cause=SuppressionCause.SOFT_BOUNCE,
                full_cause=SuppressionCause.MAILBOX_FULL,
                full_reason=BounceReason.MAILBOX_FULL,
                full_for=suppression.MAILBOX_FULL_FOR,
                enough=suppression.SOFT_ERRORS,
                apart=suppression.APART,
                within=suppression.WITHIN,
                **common,
            )


class Suppression:
    """What the scheduler does to the lists."""

    def __init__(self, db: Database) -> None:
        """Takes the database."""
        self._db = db

    async def expired(self) -> list[str]:
        """Returns the tables in which something has expired."""
        row = await self._db.fetchrow("find_expired", within=suppression.WITHIN)
        return [name for name, found in (row or {}).items() if found]

    async def lift(self, table: str) -> None:
        """Deletes what has expired in one of these tables, ten thousand entries at most."""
        if table == Kind.QUARANTINE:
            await self._db.fetch("lift_quarantine", rows=_LIFTED_AT_ONCE)
        elif table == Kind.DENYLIST:
            await self._db.fetch("lift_denylist", rows=_LIFTED_AT_ONCE)
        else:
            await self._db.fetch("forget_failing", rows=_LIFTED_AT_ONCE, within=suppression.WITHIN)

    async def with_successes(self) -> list[int]:
        """Returns deliveries whose successes are to be looked through."""
        rows = await self._db.fetch("find_successes", settled=suppression.SETTLED, within=suppression.WITHIN)
        return [row["delivery_id"] for row in rows]

    async def forgive(self, delivery_id: int) -> None:
        """Ends the count of errors of addresses to which a delivery was sent after their last error."""
        async with self._db.transaction() as tx:
            await tx.execute("plan_recount", parallel=False)
            await tx.execute("forgive", delivery_id=delivery_id)


async def entries(
    db: Database, kind: Kind, channel: str | None = None, cause: str | None = None
) -> AsyncIterator[Mapping[str, Any]]:
    """Yields the entries of a list by channel and key, in constant memory."""
    after_channel = after_key = ""
    while rows := await db.fetch(
        "read_quarantine" if kind is Kind.QUARANTINE else "read_denylist",
        after_channel=after_channel,
        after_key=after_key,
        channel=channel,
        cause=cause,
        rows=_PAGE,
    ):
        for row in rows:
            found = dict(row)
            after_channel, after_key = found["channel"], found.pop("key")
            yield found


async def add(tx: Transaction, kind: Kind, channel: str, operator: str, some: Sequence[Entry]) -> int:
    """Adds entries to a list; returns how many are new, or hold for longer now."""
    by_key = {entry.key: entry for entry in some}
    count: int = await tx.fetchval(
        "add_quarantined" if kind is Kind.QUARANTINE else "add_denylisted",
        channel=channel,
        operator=operator,
        keys=list(by_key),
        entries=[entry.text for entry in by_key.values()],
        causes=[entry.cause for entry in by_key.values()],
        reasons=[entry.reason for entry in by_key.values()],
        expiries=[entry.expires_at for entry in by_key.values()],
    )
    return count


async def remove(tx: Transaction, kind: Kind, channel: str, keys: Sequence[str]) -> int:
    """Removes entries from a list; returns how many were there."""
    count: int = await tx.fetchval(
        "remove_quarantined" if kind is Kind.QUARANTINE else "remove_denylisted",
        channel=channel,
        keys=list(keys),
    )
    return count
