"""Claims as a sender makes them, for tests that need no sender."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from worker.db.accounts import Accounts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.db.accounts import Expired
    from worker.db.pool import Database


async def claim(
    db: Database, delivery_id: int, asked: Mapping[int, tuple[int, str]], *, handed_over: bool = True
) -> set[int]:
    """Claims under a token of its own."""
    token = secrets.randbits(63)
    return await Accounts(db).claim(delivery_id, asked, token, lease=60, handed_over=handed_over)


async def expire(db: Database, delivery_id: int) -> Expired:
    """Ends every claim of a delivery, as if its lease had expired."""
    async with db.session() as session:
        await session.connection.execute("UPDATE sendoff.claim_lease SET expires_at = '-infinity'")
    return await Accounts(db).expire(delivery_id, result_lease=0)
