"""Retention: removes sets of old deliveries from the big tables, and keeps the deliveries' KPIs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.db import retention

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import timedelta

    from worker.db.pool import Database
    from worker.db.retention import PartitionSet


class RetentionRefused(Exception):
    """Another process removes sets, or a partition stays in use.

    Sets that were removed before stay removed.
    """


async def survey(db: Database, older_than: timedelta) -> list[PartitionSet]:
    """Returns every set of partitions and the deliveries that prevent its removal, the oldest first."""
    async with db.session() as session:
        return await retention.survey(session, older_than)


async def remove(db: Database, older_than: timedelta) -> AsyncIterator[PartitionSet]:
    """Removes the sets whose deliveries all ended long enough ago, and yields each after its removal.

    A set and its deliveries are marked before anything is removed. From then on nothing recounts them, and
    late results go to the dead queue. Its partitions are detached without blocking claims or results.

    Args:
        db: The database.
        older_than: How long ago each delivery of a set must have ended.

    Raises:
        RetentionRefused: another process removes sets, or a partition stays in use.
    """
    async with db.session() as session:
        if not await retention.lock(session):
            raise RetentionRefused("Another process removes old deliveries at this moment.")
        for one in await retention.survey(session, older_than):
            if one.leaves and await retention.mark(session, one, older_than):
                try:
                    await retention.remove(session, one)
                except retention.StillInUse as error:
                    raise RetentionRefused(str(error)) from None
                yield one
