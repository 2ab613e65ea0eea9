"""Retention of sets of partitions: which may be removed, which deliveries prevent it, and the steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from worker.db.failures import ERRORS, classify
from worker.domain.failures import Failure

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from worker.db.pool import Transaction

_IDS_AT_ONCE: Final = 1_000
"""Delivery ids whose pages are deleted in one statement. Each has up to some thousand rows."""

_PATIENCE: Final = "5s"
"""How long a step may wait for a lock. Then it is tried again later, so that those that wait behind it can go
on."""

_TRIES: Final = 60
"""How often steps are tried again: enough for a preparation of some million recipients to end."""


class StillInUse(Exception):
    """A partition is used for longer than we wait. Finished steps stay done."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A delivery that prevents the removal of its set."""

    delivery_id: int
    state: str
    since: datetime | None
    """When it ended or, if it was never confirmed, was last changed; None if it is under way."""


@dataclass(frozen=True, slots=True)
class PartitionSet:
    """A set, and whether it may be removed."""

    first_id: int
    last_id: int
    opened_at: datetime
    leaving: bool
    """It was marked earlier, and not removed completely."""
    newest: bool
    """New deliveries go into it."""
    deliveries: int
    recipients: int
    bytes: int
    held: int
    """How many deliveries prevent its removal."""
    held_by: tuple[Holder, ...]
    """The first of these deliveries."""

    @property
    def leaves(self) -> bool:
        """Whether it may be removed now."""
        return self.leaving or not (self.newest or self.held)


async def survey(session: Transaction, older_than: timedelta) -> list[PartitionSet]:
    """Returns every set, the oldest first.

    Args:
        session: The connection to use.
        older_than: How long ago a delivery must have ended.
    """
    found = []
    for row in await session.fetch("read_sets", older_than=older_than):
        holders = await session.fetch("read_holders", delivery_ids=row["held_by"]) if row["held_by"] else []
        found.append(PartitionSet(**{**row, "held_by": tuple(Holder(**h) for h in holders)}))
    return found


async def lock(session: Transaction) -> bool:
    """Takes the lock to remove sets until the session ends; False if another session has it."""
    return bool(await session.fetchval("lock_retention"))


async def mark(session: Transaction, one: PartitionSet, older_than: timedelta) -> bool:
    """Locks a set's deliveries, checks them again, and marks all for removal; False if one prevents it."""
    async with session.connection.transaction():
        await session.execute("lock_set", first_id=one.first_id, last_id=one.last_id)
        now = next((s for s in await survey(session, older_than) if s.first_id == one.first_id), None)
        if now is None or not now.leaves:
            return False
        await session.execute("mark_set", first_id=one.first_id)
        await session.execute("mark_deliveries", first_id=one.first_id, last_id=one.last_id)
    return True


async def remove(session: Transaction, one: PartitionSet) -> None:
    """Removes a marked set. It may be repeated after it was interrupted.

    Raises:
        StillInUse: a transaction holds a partition for too long.
    """
    last = await session.fetchval("read_last_delivery", first_id=one.first_id, last_id=one.last_id) or 0
    for first in range(one.first_id, last + 1, _IDS_AT_ONCE):
        await session.execute("drop_plans", first_id=first, last_id=min(first + _IDS_AT_ONCE - 1, last))
    await session.execute("be_patient", patience=_PATIENCE)
    tries = 0
    while (step := await session.fetchrow("read_next_step", first_id=one.first_id)) is not None:
        try:
            statement = step["statement"]
            await session.connection.execute(statement)
        except ERRORS as error:
            if classify(error) is not Failure.BUSY:
                raise
            tries += 1
            if tries == _TRIES:
                raise StillInUse(await _in_use(session, step["partition"])) from None
    await session.execute("forget_set", first_id=one.first_id)


async def _in_use(session: Transaction, partition: str) -> str:
    row = await session.fetchrow("read_oldest_transaction")
    by = (
        f" The oldest transaction is of {row['name']}, process {row['pid']}, since {row['since']}."
        if row
        else ""
    )
    return f"The partition {partition} is still in use.{by} Run it again later: it goes on where it ended."
