"""Pages: the fan-out leases them, and the scheduler inspects them.

Methods of `Pages` are transactions of their own; functions join a transaction.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from worker.domain.schedule import page_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from worker.db.pool import Database, Transaction


@dataclass(frozen=True, slots=True)
class Page:
    """A leased page: recipients `first` to `last`, both included."""

    delivery_id: int
    page: int
    first: int
    last: int
    channel: str
    valid_until: datetime | None
    recipients: int
    """Of the whole delivery."""

    @property
    def size(self) -> int:
        """How many recipients it has."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Turn:
    """Whose pages may be leased, and whose come first."""

    after: int
    """The delivery that was served last. Those with higher numbers come first, then the others."""
    channels: Sequence[str]
    """The channels whose send queue has room."""
    small_channels: Sequence[str] = ()
    """The channels over which small deliveries go past the mark. They come first there."""
    small: int = 0
    """The most recipients of a small delivery."""


@dataclass(frozen=True, slots=True)
class PagesDue:
    """A delivery with pages to inspect, and whether its claims can be granted now or never again."""

    delivery_id: int
    channel: str
    running: bool
    over: bool


@dataclass(frozen=True, slots=True)
class RetriesLeft:
    """A running delivery with retries, and whether only retries are left."""

    delivery_id: int
    only_retries: bool


@dataclass(frozen=True, slots=True)
class Inspected:
    """A published page, and the progress of its recipients."""

    page: int
    age: float
    """Seconds since it was published."""
    unclaimed: int
    """Recipients that were published and not claimed."""


class Pages:
    """The pages of all deliveries. Each call is a transaction of its own."""

    def __init__(self, db: Database) -> None:
        """Takes the database."""
        self._db = db

    async def oldest_due(self) -> dict[str, float]:
        """Returns, for each channel with due pages, how many seconds the oldest of them has waited."""
        rows = await self._db.fetch("read_oldest_due_pages")
        return {row["channel"]: max(row["seconds"], 0.0) for row in rows}

    async def lease(self, turn: Turn, *, limit: int, seconds: float, owner: str) -> list[Page]:
        """Leases one open page of each running delivery.

        Args:
            turn: Whose pages may be leased. Deliveries over other channels are left out.
            limit: The most pages.
            seconds: The time of the lease.
            owner: The name of the process. Only the owner may mark the page as published.
        """
        rows = await self._db.fetch(
            "lease_pages",
            after=turn.after,
            channels=list(turn.channels),
            small_channels=list(turn.small_channels),
            small=turn.small,
            pages=limit,
            lease=timedelta(seconds=seconds),
            owner=owner,
        )
        return [Page(**row) for row in rows]

    async def lease_paced(
        self, *, limit: int, seconds: float, owner: str, channels: Sequence[str]
    ) -> list[Page]:
        """Leases one open page of each running delivery whose throughput limit allows it now.

        Args:
            limit: The most pages.
            seconds: The time of the lease.
            owner: The name of the process.
            channels: The channels whose send queue has room. Deliveries over other channels are left out.
        """
        async with self._db.transaction() as tx:
            turns = [
                row["delivery_id"]
                for row in await tx.fetch("lock_paces", pages=limit, channels=list(channels))
            ]
            if not turns:
                return []
            rows = await tx.fetch(
                "lease_paced_pages", delivery_ids=turns, lease=timedelta(seconds=seconds), owner=owner
            )
        return [Page(**row) for row in rows]

    async def seconds_to_next_turn(self) -> float | None:
        """Returns the seconds until a delivery with a limit may publish again; None if none waits."""
        seconds: float | None = await self._db.fetchval("read_seconds_to_next_page")
        return seconds

    async def read_sends(self, page: Page) -> list[asyncpg.Record]:
        """Reads the send messages of a page, for all its recipients that must still be tried.

        Returns:
            Recipient, attempt and body of each, as the database wrote them. There is one for each recipient,
            so we make no objects of them.
        """
        valid_until = json.dumps(page.valid_until.isoformat()) if page.valid_until else "null"
        return await self._db.fetch(
            "read_sends",
            delivery_id=page.delivery_id,
            first=page.first,
            last=page.last,
            before_recipient=f'{{"delivery_id":{page.delivery_id},"recipient":',
            before_address=f',"channel":{json.dumps(page.channel)},"address":',
            after_variables=f',"valid_until":{valid_until}}}',
        )

    async def published(self, page: Page, owner: str, look_after: float) -> bool:
        """Marks a page whose messages are all confirmed as published; returns False if the lease was lost."""
        look = timedelta(seconds=look_after)
        return (
            await self._db.fetchval(
                "page_published", delivery_id=page.delivery_id, page=page.page, owner=owner, look_after=look
            )
            is not None
        )

    async def release(self, page: Page, owner: str) -> None:
        """Ends a lease."""
        await self._db.fetchval("release_page", delivery_id=page.delivery_id, page=page.page, owner=owner)

    async def to_inspect(self) -> list[PagesDue]:
        """Lists the deliveries with published pages that must be inspected."""
        return [PagesDue(**row) for row in await self._db.fetch("read_deliveries_to_inspect")]

    async def inspect(self, delivery_id: int, again_after: float, limit: int) -> list[Inspected]:
        """Counts the progress of a delivery's published pages, and sets the time of their next inspection."""
        rows = await self._db.fetch(
            "inspect_pages", delivery_id=delivery_id, again_after=timedelta(seconds=again_after), pages=limit
        )
        return [Inspected(**row) for row in rows]

    async def close(self, delivery_id: int, pages: Sequence[int]) -> None:
        """Closes pages whose recipients all have an outcome."""
        await self._db.fetch("close_pages", delivery_id=delivery_id, pages=list(pages))

    async def reopen(self, delivery_id: int, pages: Sequence[int]) -> None:
        """Opens pages, to be published again."""
        async with self._db.transaction() as tx:
            await tx.fetch("reopen_pages", delivery_id=delivery_id, pages=list(pages))
            await wake(tx, delivery_id)

    async def with_retries(self) -> list[RetriesLeft]:
        """Lists the running deliveries with recipients that wait for a retry."""
        return [RetriesLeft(**row) for row in await self._db.fetch("read_deliveries_with_retries")]

    async def open_due_retries(self, delivery_id: int) -> int:
        """Opens pages with due retries, to be published again; returns how many."""
        async with self._db.transaction() as tx:
            opened = len(await tx.fetch("open_due_retries", delivery_id=delivery_id))
            if opened:
                await wake(tx, delivery_id)
        return opened


async def create(
    tx: Transaction, delivery_id: int, recipients: int, usual: int, messages_per_hour: int | None
) -> None:
    """Creates a delivery's pages, wave by wave, and wakes the fan-out when the transaction commits.

    Args:
        tx: The transaction.
        delivery_id: The delivery.
        recipients: How many it has.
        usual: Recipients in a page of a delivery that is neither limited nor very large.
        messages_per_hour: The limit of the throughput, or None.
    """
    size = page_size(recipients, messages_per_hour, usual)
    if messages_per_hour is not None:
        await tx.execute("create_pace", delivery_id=delivery_id, page_size=size)
    await tx.execute("create_pages", delivery_id=delivery_id, page_size=size)
    await wake(tx, delivery_id)


async def start(tx: Transaction, delivery_id: int) -> None:
    """Sets the waves' times from the start, which is now, and wakes the fan-out at the commit."""
    await tx.execute("start_waves", delivery_id=delivery_id)
    await wake(tx, delivery_id)


async def wake(tx: Transaction, delivery_id: int) -> None:
    """Wakes the fan-out when the transaction commits."""
    await tx.execute("notify_pages", delivery_id=str(delivery_id))


async def reopen_all(tx: Transaction, delivery_id: int) -> None:
    """Opens every published page, to be published again: their messages were refused meanwhile."""
    await tx.fetch("reopen_all_pages", delivery_id=delivery_id)
    await wake(tx, delivery_id)
