"""The accounts: where each recipient of a delivery stands, and the counters that move with it.

Every statement here moves rows and counters together. Those that are a transaction of their own are methods
of `Accounts`; those that join a transaction are functions.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg

from worker.domain.settlement import REASON

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from worker.db.pool import Database, Transaction
    from worker.domain.outcomes import Facts
    from worker.domain.retry import Retries
    from worker.domain.settlement import Settlement


class Accounts:
    """The accounts of all deliveries, each call a transaction of its own."""

    def __init__(self, db: Database) -> None:
        """Takes the database."""
        self._db = db

    async def claim(self, delivery_id: int, asked: Mapping[int, tuple[int, str]]) -> set[int]:
        """Claims one attempt for each of a delivery's recipients, in one statement.

        Args:
            delivery_id: The delivery.
            asked: By recipient, the attempt and the key of the address (see `worker.domain.audience`).

        Returns:
            The recipients that were granted. The others must not be sent to: they are claimed or done
            already, the delivery does not run, its validity is over, or the address is quarantined.
        """
        try:
            return await self._claim(delivery_id, asked)
        except asyncpg.UniqueViolationError:
            # Somebody else claimed one of them in this moment. Now that shows: the statement is ready for it.
            return await self._claim(delivery_id, asked)

    async def _claim(self, delivery_id: int, asked: Mapping[int, tuple[int, str]]) -> set[int]:
        numbers = sorted(asked)
        async with self._db.transaction() as tx:
            await tx.execute("lock_claims", delivery_id=delivery_id)
            granted = await tx.fetchval(
                "claim",
                delivery_id=delivery_id,
                recipients=numbers,
                attempts=[asked[n][0] for n in numbers],
                address_keys=[asked[n][1] for n in numbers],
            )
        return set(granted)

    async def record(self, delivery_id: int, folded: Mapping[int, Facts], retries: Retries) -> int:
        """Records facts of a delivery's recipients, and plans retries.

        Args:
            delivery_id: The delivery.
            folded: Facts by recipient.
            retries: When they are tried again.

        Returns:
            How many recipients changed their status; doubled and outdated facts change nothing.
        """
        numbers = sorted(folded)
        rows = [folded[n] for n in numbers]
        columns = zip(*rows, strict=True)
        attempt, status, precedence, _, sent, bounced, error, reason, code, fault, reply, provider, again = (
            columns
        )
        retry_at = [retries.next_at(delivery_id, n, folded[n]) for n in numbers] if any(again) else ()
        async with self._db.transaction() as tx:
            # A stop counts "the rest" with this lock alone, so that nobody is counted twice.
            await share_claims(tx, delivery_id)
            moved: int = await tx.fetchval(
                "record_outcomes",
                delivery_id=delivery_id,
                recipients=numbers,
                attempts=attempt,
                statuses=status,
                precedences=precedence,
                sent_at=_sparse(sent),
                bounced_at=_sparse(bounced),
                error_at=_sparse(error),
                reasons=_sparse(reason),
                codes=_sparse(code),
                faults=_sparse(fault),
                replies=_sparse(reply),
                provider_ids=_sparse(provider),
                retry_at=retry_at,
                max_attempts=retries.max_attempts,
            )
        return moved

    async def expire(self, delivery_id: int, first: int, last: int, *, lease: float) -> int:
        """Makes claims of a range `unknown` whose lease of so many seconds ran out; returns how many."""
        expired: int = await self._db.fetchval(
            "expire_claims",
            delivery_id=delivery_id,
            first=first,
            last=last,
            lease=timedelta(seconds=lease),
        )
        return expired

    async def audience_size(self, delivery_id: int) -> int:
        """Returns how many recipients a confirmed delivery has; 0 where there is no such delivery."""
        return await self._db.fetchval("read_audience_size", delivery_id=delivery_id) or 0

    async def absent(self, delivery_id: int, recipients: Sequence[int]) -> set[int]:
        """Returns those numbers that are no recipients of a confirmed delivery."""
        rows = await self._db.fetch(
            "read_absent_recipients", delivery_id=delivery_id, recipients=list(recipients)
        )
        return {row["recipient"] for row in rows}


def _sparse(column: tuple[object, ...]) -> tuple[object, ...]:
    """Leaves out a column of nothing but NULL, as most are: unnest fills it up."""
    return column if any(column) else ()


async def share_claims(tx: Transaction, delivery_id: int) -> None:
    """Keeps a stop, a pause and a finish waiting until the transaction ends, and no claim."""
    await tx.execute("lock_claims", delivery_id=delivery_id)


async def close_claims(tx: Transaction, delivery_id: int) -> None:
    """Waits for the claims under way and lets no other in until the transaction ends."""
    await tx.execute("close_claims", delivery_id=delivery_id)


async def cancel_remaining(tx: Transaction, delivery_id: int) -> None:
    """Counts what was not tried as cancelled, and ends the retries; call `close_claims` first."""
    await tx.execute("cancel_remaining", delivery_id=delivery_id)
    await tx.execute("look_at_open_pages", delivery_id=delivery_id)


async def settle(
    tx: Transaction, delivery_id: int, recipients: Sequence[int], how: Settlement, reply: str
) -> int:
    """Settles those of some recipients whose outcome is unknown still; call `share_claims` first.

    Args:
        tx: The transaction.
        delivery_id: The delivery.
        recipients: Their numbers.
        how: What they become.
        reply: Who settled them, in words; kept where a channel's reply would be.

    Returns:
        How many it settled.
    """
    settled: int = await tx.fetchval(
        "settle_unknown",
        delivery_id=delivery_id,
        recipients=list(recipients),
        become=how.value,
        reason=REASON,
        reply=reply,
    )
    return settled


async def erase(
    tx: Transaction, delivery_id: int, recipients: Sequence[int], profile_id: str
) -> tuple[int, int]:
    """Overwrites what is personal of a profile's recipients, who are not sent to any more.

    Call `close_claims` first: a claim or a result under way would bring back what is erased here.

    Args:
        tx: The transaction.
        delivery_id: The delivery.
        recipients: Their numbers; those that are another profile's by now are left out.
        profile_id: Whom they were of.

    Returns:
        How many were erased, and how many of them were still to be sent to.
    """
    row = await tx.fetchrow(
        "erase_recipients", delivery_id=delivery_id, recipients=recipients, profile_id=profile_id
    )
    if row is None:
        raise AssertionError("an aggregate has a row")
    return row["messages"], row["kept_from"]


async def repair(
    tx: Transaction, delivery_id: int, cancelled_at: datetime | None, drift: Mapping[str, int]
) -> bool:
    """Adds to each counter what a recount found missing; call `share_claims` first.

    Args:
        tx: The transaction.
        delivery_id: The delivery.
        cancelled_at: When the delivery was cancelled, as the recount saw it.
        drift: By counter, what is missing; less than 0 where there is too much.

    Returns:
        False where the delivery was cancelled since, or has left by retention: it is to be counted again.
    """
    done = await tx.fetchval(
        "repair_counters",
        delivery_id=delivery_id,
        cancelled_at=cancelled_at,
        counters=list(drift),
        missing=list(drift.values()),
    )
    return done is not None
