"""The accounts: the status of each recipient of a delivery, and the counters that move with it.

Every statement here moves rows and counters together. Methods of `Accounts` are transactions of their own;
functions join a transaction.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg

from worker.db.suppression import suppress_failed
from worker.domain.settlement import REASON

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from worker.db.pool import Database, Transaction
    from worker.domain.outcomes import Facts
    from worker.domain.retry import Retries
    from worker.domain.settlement import Settlement


_RETRIES_AT_ONCE: Final = 5_000
"""So many retries are ended in one transaction."""

_LEASES_AT_ONCE: Final = 100
"""The most leases whose claims end in one transaction: up to some ten thousand rows."""


class Expired(NamedTuple):
    """How many claims ended when their leases expired."""

    given_back: int
    """Claims that were not handed over: another sender takes them."""
    unknown: int
    """Claims that were handed over and have no result."""


class Accounts:
    """The accounts of all deliveries, each call a transaction of its own."""

    def __init__(self, db: Database) -> None:
        """Takes the database."""
        self._db = db

    async def claim(
        self,
        delivery_id: int,
        asked: Mapping[int, tuple[int, str]],
        token: int,
        *,
        lease: float,
        handed_over: bool = False,
    ) -> set[int]:
        """Claims one attempt for each of a delivery's recipients, in one statement.

        A repeat with the same token grants the same recipients, so that a lost answer loses no claim.

        Args:
            delivery_id: The delivery.
            asked: For each recipient, the attempt and the key of the address (see `worker.domain.audience`).
            token: A number that no other claim uses, 0 to 2^63 - 1. The claims are held under it.
            lease: Seconds for which the claims are held.
            handed_over: Whether the claims count as handed over from now on, because the channel has no
                moment between the claim and the sending.

        Returns:
            The granted recipients. Do not send to the others: they are claimed or done already, the delivery
            does not run, its validity is over, or the address is quarantined.
        """
        numbers = sorted(asked)
        arguments = {
            "delivery_id": delivery_id,
            "recipients": numbers,
            "attempts": [asked[n][0] for n in numbers],
            "address_keys": [asked[n][1] for n in numbers],
            "token": token,
            "lease": timedelta(seconds=lease),
            "handed_over": handed_over,
        }
        try:
            return await self._claim(arguments)
        except asyncpg.UniqueViolationError:
            # Another sender has just claimed one of them. Its row is visible now, so the statement works when
            # repeated.
            return await self._claim(arguments)

    async def _claim(self, arguments: dict[str, Any]) -> set[int]:
        async with self._db.transaction() as tx:
            await tx.execute("lock_claims", delivery_id=arguments["delivery_id"])
            return set(await tx.fetchval("claim", **arguments))

    async def hand_over(self, delivery_id: int, claims: Mapping[int, int], *, margin: float) -> set[int]:
        """Marks claims as handed over: from now on a relay may have the message.

        Args:
            delivery_id: The delivery.
            claims: For each recipient, the token of the claim.
            margin: Seconds that must be left of the lease.

        Returns:
            The marked recipients. Do not send to the others: the claim is not held any more, or the delivery
            does not run.
        """
        numbers = sorted(claims)
        marked: list[int] = await self._db.fetchval(
            "hand_over",
            delivery_id=delivery_id,
            recipients=numbers,
            tokens=[claims[n] for n in numbers],
            margin=timedelta(seconds=margin),
        )
        return set(marked)

    async def give_back(self, delivery_id: int, claims: Mapping[int, int], *, in_hand: bool = False) -> int:
        """Undoes claims, so that other senders can take them. Their holder must not send any more.

        Args:
            delivery_id: The delivery.
            claims: For each recipient, the token of the claim.
            in_hand: Whether the caller keeps the messages, to claim again soon. Then their pages are not
                published again, but looked at, so that nobody is lost if the caller dies.

        Returns:
            How many were undone. Claims that are not held any more do not change.
        """
        async with self._db.transaction() as tx:
            await share_claims(tx, delivery_id)
            return await _give_back(tx, delivery_id, claims.items(), in_hand=in_hand)

    async def expired(self) -> list[int]:
        """Returns deliveries in which leases of claims have expired."""
        rows = await self._db.fetch("read_deliveries_with_expired_claims")
        return [row["delivery_id"] for row in rows]

    async def expire(self, delivery_id: int, *, result_lease: float) -> Expired:
        """Ends a delivery's claims with expired leases, some hundred leases at a time.

        A claim that was not handed over is undone, so that another sender can take it. A claim that was
        handed over, and has no result after `result_lease` seconds, becomes unknown.
        """
        async with self._db.transaction() as tx:
            await share_claims(tx, delivery_id)
            leases = await tx.fetch(
                "read_expired_leases",
                delivery_id=delivery_id,
                leases=_LEASES_AT_ONCE,
                result_lease=timedelta(seconds=result_lease),
            )
            given_back = await _give_back(
                tx, delivery_id, [(r, lease["token"]) for lease in leases for r in lease["held"]]
            )
            overdue = [
                (r, lease["token"]) for lease in leases if lease["overdue"] for r in lease["handed_over"]
            ]
            unknown = await _of_claims(tx, "expire_claims", delivery_id, overdue)
            await tx.execute(
                "end_leases",
                delivery_id=delivery_id,
                recipients=sorted({r for lease in leases for r in lease["handed_over"]}),
                tokens=[lease["token"] for lease in leases],
                result_lease=timedelta(seconds=result_lease),
            )
        return Expired(given_back, unknown)

    async def record(self, delivery_id: int, folded: Mapping[int, Facts], retries: Retries) -> int:
        """Records facts of a delivery's recipients, and plans retries.

        Args:
            delivery_id: The delivery.
            folded: Facts by recipient.
            retries: The rules for retries.

        Returns:
            How many recipients changed their status. Repeated and outdated facts change nothing.
        """
        numbers = sorted(folded)
        rows = [folded[n] for n in numbers]
        columns = zip(*rows, strict=True)
        attempt, status, precedence, _, sent, bounced, error, reason, code, fault, reply, provider, again = (
            columns
        )
        retry_after = [retries.delay(delivery_id, n, folded[n]) for n in numbers] if any(again) else ()
        async with self._db.transaction() as tx:
            # A stop counts "the rest" and holds this lock exclusively, so that nobody is counted twice.
            await share_claims(tx, delivery_id)
            row = await tx.fetchrow(
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
                retry_after=retry_after,
                max_attempts=retries.max_attempts,
            )
            if row is None:
                raise AssertionError("an aggregate has a row")
            if row["failed"]:
                await suppress_failed(tx, delivery_id, row["failed"])
        return int(row["moved"])

    async def audience_sizes(self, delivery_ids: Sequence[int]) -> dict[int, int]:
        """Returns how many recipients confirmed deliveries have; those that do not exist are left out."""
        rows = await self._db.fetch("read_audience_sizes", delivery_ids=list(delivery_ids))
        return {row["delivery_id"]: row["to_deliver"] for row in rows}

    async def ending_retries(self) -> list[int]:
        """Returns cancelled deliveries in which somebody waits for a retry that will not come, by number."""
        return [row["delivery_id"] for row in await self._db.fetch("read_deliveries_ending_retries")]

    async def end_retries(self, delivery_id: int) -> bool:
        """Gives some thousand recipients that waited for a retry in a cancelled delivery their final status.

        Returns:
            Whether there may be more of them.
        """
        async with self._db.transaction() as tx:
            await share_claims(tx, delivery_id)
            ended: int = await tx.fetchval(
                "end_retries", delivery_id=delivery_id, recipients=_RETRIES_AT_ONCE
            )
            if ended < _RETRIES_AT_ONCE:
                await tx.execute("retries_ended", delivery_id=delivery_id)
        return ended == _RETRIES_AT_ONCE

    async def cancel(self, delivery_id: int) -> None:
        """Counts what was not tried of a delivery, and who waits for a retry, as cancelled."""
        async with self._db.transaction() as tx:
            await close_claims(tx, delivery_id)
            await cancel_remaining(tx, delivery_id)


def _sparse(column: tuple[object, ...]) -> tuple[object, ...]:
    """Leaves out a column that has only NULLs, as most columns have: unnest fills it with NULLs."""
    return column if any(column) else ()


async def share_claims(tx: Transaction, delivery_id: int) -> None:
    """Makes a stop, a pause or a finish wait until the transaction ends. Claims do not wait."""
    await tx.execute("lock_claims", delivery_id=delivery_id)


async def close_claims(tx: Transaction, delivery_id: int) -> None:
    """Waits for the claims under way, and blocks new ones until the transaction ends."""
    await tx.execute("close_claims", delivery_id=delivery_id)


async def _give_back(
    tx: Transaction, delivery_id: int, claims: Iterable[tuple[int, int]], *, in_hand: bool = False
) -> int:
    return await _of_claims(tx, "give_back_claims", delivery_id, claims, in_hand=in_hand)


async def _of_claims(
    tx: Transaction, query: str, delivery_id: int, claims: Iterable[tuple[int, int]], **more: bool
) -> int:
    """Ends claims, each a recipient and the token, by one of two queries; returns how many it ended."""
    ordered = sorted(claims)
    if not ordered:
        return 0
    recipients, tokens = zip(*ordered, strict=True)
    ended: int = await tx.fetchval(
        query, delivery_id=delivery_id, recipients=recipients, tokens=tokens, **more
    )
    return ended


async def cancel_remaining(tx: Transaction, delivery_id: int) -> None:
    """Counts what was not handed over, and who waits for a retry, as cancelled; call `close_claims` first.

    `Accounts.end_retries` then gives those that wait their final status.
    """
    leases = await tx.fetch("read_leases", delivery_id=delivery_id)
    for start in range(0, len(leases), _LEASES_AT_ONCE):
        some = leases[start : start + _LEASES_AT_ONCE]
        await _give_back(tx, delivery_id, [(r, lease["token"]) for lease in some for r in lease["held"]])
    await tx.execute("cancel_remaining", delivery_id=delivery_id)
    await tx.execute("look_at_open_pages", delivery_id=delivery_id)


async def settle(
    tx: Transaction, delivery_id: int, recipients: Sequence[int], how: Settlement, reply: str
) -> int:
    """Settles recipients whose outcome is still unknown; call `share_claims` first.

    Args:
        tx: The transaction.
        delivery_id: The delivery.
        recipients: The recipients' numbers.
        how: What the outcomes become.
        reply: Who settled them, in words. It is stored in place of a channel's reply.

    Returns:
        How many outcomes it settled.
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


async def spare_refused(tx: Transaction, delivery_id: int, *, last: bool = False) -> int:
    """Lets those who were refused for a fault of the sender wait for another try; call `close_claims` first.

    It does so only if the circuit breaker tripped by such refusals.

    Args:
        tx: The transaction.
        delivery_id: The delivery.
        last: Whether later refusals are final: the delivery goes on.

    Returns:
        How many of them wait now.
    """
    spared: int = await tx.fetchval("spare_refused", delivery_id=delivery_id)
    if last:
        await tx.execute("stop_sparing", delivery_id=delivery_id)
    return spared


async def erase(
    tx: Transaction, delivery_id: int, recipients: Sequence[int], profile_id: str
) -> tuple[int, int]:
    """Overwrites the personal data of a profile's recipients. Nothing more is sent to them.

    Call `close_claims` first: a claim or a result under way would write erased data again.

    Args:
        tx: The transaction.
        delivery_id: The delivery.
        recipients: The recipients' numbers. Those that now belong to another profile are left out.
        profile_id: The profile.

    Returns:
        How many were erased, and how many of them had not been sent to.
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
    """Adds the missing amount to each counter, by a recount; call `share_claims` first.

    Args:
        tx: The transaction.
        delivery_id: The delivery.
        cancelled_at: When the delivery was cancelled, as the recount saw it.
        drift: By counter, what is missing; less than 0 if there is too much.

    Returns:
        False if the delivery was cancelled since then, or retention removed it: count it again.
    """
    done = await tx.fetchval(
        "repair_counters",
        delivery_id=delivery_id,
        cancelled_at=cancelled_at,
        counters=list(drift),
        missing=list(drift.values()),
    )
    return done is not None
