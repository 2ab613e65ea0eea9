"""Profiles: reads the stored data of one, page by page, and erases it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from worker.db import accounts, deliveries
from worker.domain.audience import address_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from worker.db.pool import Database, Transaction

_PAGE: Final = 500
"""The most rows of one statement."""

_BEFORE_ALL: Final = (2**63 - 1, 2**31 - 1)


@dataclass(frozen=True, slots=True)
class Held:
    """How much data is stored about a profile."""

    messages: int
    deliveries: int
    tracking_events: int
    exclusions: int
    denylisted: int
    """Entries of the denylist, one for each channel. They are kept."""

    @property
    def erasable(self) -> bool:
        """Whether there is data to erase."""
        return bool(self.messages or self.exclusions)


async def held(db: Database | Transaction, profile_id: str) -> Held:
    """Counts the stored data about a profile; all zero for an unknown one."""
    row = await db.fetchrow("read_held", profile_id=profile_id)
    if row is None:
        raise AssertionError("an aggregate has a row")
    return Held(**row)


async def history(db: Database, profile_id: str) -> AsyncIterator[Mapping[str, Any]]:
    """Yields the rows of the view `profile_history`, the newest delivery first, in constant memory."""
    async for row in _pages(db, "read_history", profile_id, "recipient"):
        yield row


async def messages(db: Database, profile_id: str) -> AsyncIterator[dict[str, Any]]:
    """Yields all stored data of each message, with its variables, tracking events and quarantine."""
    async for row in _pages(db, "read_profile_messages", profile_id, "recipient"):
        number = row["delivery_id"]
        events = await db.fetch("read_profile_events", delivery_id=number, recipient=row["recipient"])
        blocked = await db.fetch(
            "read_quarantined", delivery_id=number, address_key=address_key(row["address"])
        )
        yield {**row, "tracking_events": [dict(e) for e in events], "quarantine": [dict(q) for q in blocked]}


async def exclusions(db: Database, profile_id: str) -> AsyncIterator[Mapping[str, Any]]:
    """Yields the exclusions of the profile, the newest first."""
    async for row in _pages(db, "read_profile_exclusions", profile_id, "line"):
        yield row


async def denylist(db: Database, profile_id: str) -> list[dict[str, Any]]:
    """Returns the denylist entries of the profile."""
    return [dict(row) for row in await db.fetch("read_profile_denylist", profile_id=profile_id)]


async def _pages(db: Database, query: str, profile_id: str, number: str) -> AsyncIterator[Mapping[str, Any]]:
    delivery_id, last = _BEFORE_ALL
    while rows := await db.fetch(
        query, profile_id=profile_id, before_delivery=delivery_id, before_number=last, rows=_PAGE
    ):
        for row in rows:
            yield row
        delivery_id, last = rows[-1]["delivery_id"], rows[-1][number]


async def erasable(db: Database, profile_id: str) -> dict[int, list[int]]:
    """Returns the next recipients to erase, by delivery; empty if all are erased."""
    return {
        r["delivery_id"]: r["recipients"]
        for r in await db.fetch("read_erasable", profile_id=profile_id, rows=_PAGE)
    }


async def erase_messages(
    db: Database, profile_id: str, delivery_id: int, recipients: list[int]
) -> tuple[int, int] | None:
    """Overwrites the personal data of a profile's recipients of one delivery; nothing more is sent to them.

    Returns:
        How many were erased, and how many of them had not been sent to. None while the delivery is being
        prepared: nothing has changed.
    """
    async with db.transaction() as tx:
        if not await tx.fetchval("keep_preparations_out", delivery_id=delivery_id):
            return None
        await accounts.close_claims(tx, delivery_id)
        await deliveries.read_for_update(tx, delivery_id)
        await tx.execute("forget_errors_of", delivery_id=delivery_id, recipients=recipients)
        return await accounts.erase(tx, delivery_id, recipients, profile_id)


async def erase_exclusions(db: Database, profile_id: str) -> int:
    """Overwrites some of a profile's exclusions; returns how many, 0 if none is left."""
    count: int = await db.fetchval("erase_exclusions", profile_id=profile_id, rows=_PAGE)
    return count
