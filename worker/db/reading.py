"""Reads the live deployment and the sending log, for people."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    import asyncpg

    from worker.db.pool import Database
    from worker.domain.retarget import Criterion

_RANGE: Final = 2_000
"""Recipients that one statement reads: some hundred kilobytes."""


class Only(NamedTuple):
    """Filters of the sending log; None does not filter."""

    status: str | None = None
    bounce_kind: str | None = None
    reason: str | None = None
    domain: str | None = None
    """A part of the address, in upper or lower case."""
    since: datetime | None = None
    """The earliest time of the status, with a time zone."""
    until: datetime | None = None
    """The time of the status must be earlier than this."""


EVERYBODY: Final = Only()


async def deployment(db: Database, delivery_id: int) -> dict[str, Any] | None:
    """Returns the row of the view `deployment`; None if there is no such delivery."""
    row = await db.fetchrow("read_deployment", delivery_id=delivery_id)
    return dict(row) if row else None


async def audience(db: Database, delivery_id: int) -> tuple[int, datetime | None] | None:
    """Returns a delivery's number of recipients and when retention removed them; None for no delivery."""
    row = await db.fetchrow("read_audience", delivery_id=delivery_id)
    return (row["to_deliver"], row["purged_at"]) if row else None


async def recipient(db: Database, delivery_id: int, number: int) -> tuple[str, dict[str, Any]] | None:
    """Returns the address and the variables of a recipient; None if there is none of this number."""
    row = await db.fetchrow("read_recipient", delivery_id=delivery_id, recipient=number)
    return (row["address"], json.loads(row["variables"])) if row else None


async def recipients(db: Database, delivery_id: int, numbers: list[int]) -> list[tuple[int, dict[str, Any]]]:
    """Returns the numbers and the variables, with the address, of some recipients, by number."""
    rows = await db.fetch("read_recipients", delivery_id=delivery_id, recipients=numbers)
    return [(row["recipient"], json.loads(row["variables"]) | {"address": row["address"]}) for row in rows]


async def unknown(db: Database, delivery_id: int, size: int) -> AsyncIterator[list[int]]:
    """Yields recipients whose outcome is unknown, by ranges of `size` recipients; skips empty ranges."""
    recipients, _ = await audience(db, delivery_id) or (0, None)
    for first in range(1, recipients + 1, size):
        rows = await db.fetch("read_unknown", delivery_id=delivery_id, first=first, last=first + size - 1)
        if rows:
            yield [row["recipient"] for row in rows]


async def sending_log(
    db: Database, delivery_id: int, recipients: int, only: Only = EVERYBODY
) -> AsyncIterator[asyncpg.Record]:
    """Yields the rows of the view `sending_log` by recipient, in constant memory.

    A row has the values of the moment when its range was read. Each recipient comes once.

    Args:
        db: The database.
        delivery_id: The delivery.
        recipients: The number of its recipients.
        only: The filters.
    """
    for first in range(1, recipients + 1, _RANGE):
        rows = await db.fetch(
            "read_sending_log",
            delivery_id=delivery_id,
            first=first,
            last=first + _RANGE - 1,
            **only._asdict(),
        )
        for row in rows:
            yield row


async def source(db: Database, delivery_id: int) -> dict[str, Any] | None:
    """Returns what must be known of a delivery before its audience is used again; None for no delivery."""
    row = await db.fetchrow("read_source", delivery_id=delivery_id)
    return dict(row) if row else None


async def retargeted(
    db: Database, delivery_id: int, recipients: int, criterion: Criterion
) -> AsyncIterator[asyncpg.Record]:
    """Yields address and variables of the recipients who fit a criterion, in constant memory.

    Args:
        db: The database.
        delivery_id: The earlier delivery.
        recipients: The number of its recipients.
        criterion: Who fits.
    """
    for first in range(1, recipients + 1, _RANGE):
        rows = await db.fetch(
            "read_retargeted",
            delivery_id=delivery_id,
            first=first,
            last=first + _RANGE - 1,
            who=criterion.who,
            urls=list(criterion.urls),
            pattern=criterion.pattern,
            persons=criterion.persons,
        )
        for row in rows:
            yield row
