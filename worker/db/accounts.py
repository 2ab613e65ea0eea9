"""Claims and outcomes: the statements that the accounts rest on."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg

from worker.domain.states import CLAIMABLE, UNDER_WAY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.db.pool import Database, Transaction
    from worker.domain.outcomes import Facts
    from worker.domain.retry import Retries


async def claim(db: Database, delivery_id: int, asked: Mapping[int, tuple[int, str]], shard: int) -> set[int]:
    """Claims one attempt for each of a delivery's recipients, in one statement.

    Args:
        db: The database.
        delivery_id: The delivery.
        asked: By recipient, the attempt and the key of the address (see `worker.domain.audience`).
        shard: The counter row to move.

    Returns:
        The recipients that were granted. The others must not be sent to: they are claimed or done already,
        the delivery does not run, its validity is over, or the address is quarantined.
    """
    numbers = sorted(asked)
    attempts, keys = [asked[n][0] for n in numbers], [asked[n][1] for n in numbers]
    try:
        return await _claim(db, delivery_id, numbers, attempts, keys, shard)
    except asyncpg.UniqueViolationError:
        # Somebody else claimed one of them in this moment. Now that shows, and the statement is ready for it.
        return await _claim(db, delivery_id, numbers, attempts, keys, shard)


async def _claim(
    db: Database, delivery_id: int, numbers: list[int], attempts: list[int], keys: list[str], shard: int
) -> set[int]:
    async with db.transaction() as tx:
        await tx.execute("lock_claims", delivery_id=delivery_id)
        rows = await tx.fetch(
            "claim",
            delivery_id=delivery_id,
            recipients=numbers,
            attempts=attempts,
            address_keys=keys,
            states=[s.value for s in CLAIMABLE],
            shard=shard,
        )
    return {recipient for (recipient,) in rows}


async def strangers(db: Database, delivery_id: int, recipients: Sequence[int]) -> set[int]:
    """Returns those numbers that are no recipients of a confirmed delivery."""
    return {
        r["recipient"]
        for r in await db.fetch("read_refusals", delivery_id=delivery_id, recipients=list(recipients))
    }


async def record(
    db: Database, delivery_id: int, folded: Mapping[int, Facts], retries: Retries, shard: int
) -> int:
    """Records facts of a delivery's recipients, plans retries, and moves the counters with them.

    Args:
        db: The database.
        delivery_id: The delivery.
        folded: Facts by recipient.
        retries: When they are tried again.
        shard: The counter row to move.

    Returns:
        How many recipients changed their status; doubled and outdated facts change nothing.
    """
    numbers = sorted(folded)
    rows = [folded[n] for n in numbers]
    columns = zip(*rows, strict=True)
    attempt, status, precedence, _, sent, bounced, error, reason, code, fault, reply, provider, retryable = (
        columns
    )
    retry_at = [retries.next_at(delivery_id, n, folded[n]) for n in numbers] if any(retryable) else ()
    async with db.transaction() as tx:
        # Shared with claims: a stop counts "the rest" with this lock alone, so that nobody is counted twice.
        await tx.execute("lock_claims", delivery_id=delivery_id)
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
            states=[s.value for s in UNDER_WAY],
            shard=shard,
        )
    return moved


def _sparse(column: tuple[object, ...]) -> tuple[object, ...]:
    """Leaves out a column of nothing but NULL, as most are: unnest fills it up."""
    return column if any(column) else ()


async def audience_size(db: Database, delivery_id: int) -> int:
    """Returns how many recipients a confirmed delivery has; 0 where there is no such delivery."""
    return await db.fetchval("read_audience_size", delivery_id=delivery_id) or 0


async def expire(db: Database, delivery_id: int, first: int, last: int, *, lease: float, shard: int) -> int:
    """Makes claims of a range `unknown` whose lease of so many seconds ran out; returns how many."""
    rows = await db.fetch(
        "expire_claims",
        delivery_id=delivery_id,
        first=first,
        last=last,
        lease=timedelta(seconds=lease),
        shard=shard,
    )
    return len(rows)


async def share_claims(tx: Transaction, delivery_id: int) -> None:
    """Keeps a stop, a pause and a finish waiting until the transaction ends, and no claim."""
    await tx.execute("lock_claims", delivery_id=delivery_id)


async def close_claims(tx: Transaction, delivery_id: int) -> None:
    """Waits for the claims under way and lets no other in until the transaction ends."""
    await tx.execute("close_claims", delivery_id=delivery_id)


async def cancel_remaining(tx: Transaction, delivery_id: int, shard: int) -> None:
    """Counts what was not tried as cancelled, and ends the retries; call `close_claims` first."""
    await tx.execute("cancel_remaining", delivery_id=delivery_id, shard=shard)
    await tx.execute("look_at_open_pages", delivery_id=delivery_id)
