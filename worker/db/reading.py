"""What people read: the live deployment and the sending log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    import asyncpg

    from worker.db.pool import Database

SENDING_LOG: Final = (
    *("delivery_id", "recipient", "profile_id", "address", "status", "attempt", "bounce_kind", "claimed_at"),
    *("sent_at", "bounced_at", "error_at", "unknown_at", "retry_at", "reason", "code", "fault", "reply"),
    *("provider_id", "excluded_at"),
)
"""The columns of the view `sending_log` in their order: a header even where there is no row."""

_RANGE: Final = 2_000
"""Recipients that one statement looks at: some hundred kilobytes."""


class Only(NamedTuple):
    """Whom of a sending log; None for whomever."""

    status: str | None = None
    bounce_kind: str | None = None
    reason: str | None = None
    domain: str | None = None
    """Of the address, in any case."""
    since: datetime | None = None
    """Whose time, that of what stands of them, is this or later; with a time zone."""
    until: datetime | None = None
    """Whose time is earlier."""


EVERYBODY: Final = Only()


async def deployment(db: Database, delivery_id: int) -> dict[str, Any] | None:
    """Returns the row of the view `deployment`; None if there is no such delivery."""
    row = await db.fetchrow("read_deployment", delivery_id=delivery_id)
    return dict(row) if row else None


async def audience(db: Database, delivery_id: int) -> tuple[int, datetime | None] | None:
    """Returns how many recipients a delivery has, and when they left by retention; None for no delivery."""
    row = await db.fetchrow("read_audience", delivery_id=delivery_id)
    return (row["to_deliver"], row["purged_at"]) if row else None


async def unknown(db: Database, delivery_id: int, size: int) -> AsyncIterator[list[int]]:
    """Yields the recipients whose outcome is unknown, by ranges of `size` recipients; none for none."""
    recipients, _ = await audience(db, delivery_id) or (0, None)
    for first in range(1, recipients + 1, size):
        rows = await db.fetch("read_unknown", delivery_id=delivery_id, first=first, last=first + size - 1)
        if rows:
            yield [row["recipient"] for row in rows]


async def sending_log(
    db: Database, delivery_id: int, recipients: int, only: Only = EVERYBODY
) -> AsyncIterator[asyncpg.Record]:
    """Yields the rows of the view `sending_log` by recipient, in constant memory.

    A row is as it stood when its range of recipients was read; nobody is left out or comes twice.

    Args:
        db: The database.
        delivery_id: The delivery.
        recipients: How many it has.
        only: Whom of them.
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
