"""Leases messages of the limits that all processes share: once a second, and only while messages wait."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from worker.db.retrying import Idempotent
from worker.domain.failures import Busy, Stopped
from worker.lifecycle import pause

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.channels.protocol import Channel, Want
    from worker.db.retrying import Retrying

SECONDS: Final = 1.0


class Store(Protocol):
    """Keeps what is left of each limit: `worker.db.flow.Flow`."""

    async def lease(self, wants: Sequence[Want]) -> dict[str, int]:
        """Takes messages out of the limits; returns how many, by name."""


@dataclass(frozen=True, slots=True)
class BudgetParts:
    """The parts of the service."""

    channel_name: str
    channel: Channel
    """The channel of a sender of this process."""
    store: Store
    retrying: Retrying
    """Executes transactions."""


class BudgetService:
    """Leases for one channel."""

    def __init__(self, parts: BudgetParts) -> None:
        """Takes its parts."""
        self.name = f"budgets {parts.channel_name}"
        self._parts = parts

    async def run(self, stop: asyncio.Event) -> None:
        """Leases until `stop`."""
        with contextlib.suppress(Stopped):
            while not stop.is_set():
                await self.lease()
                await pause(stop, SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 - processes have turns

    async def lease(self) -> None:
        """Leases for a second, if messages wait for that; otherwise the database is not asked."""
        parts = self._parts
        wants = parts.channel.wants()
        if not wants:
            return
        leasing = Idempotent(lambda: parts.store.lease(wants))  # what a lost answer granted is lost with it
        with contextlib.suppress(Busy):  # then the messages wait for the next lease
            granted = await parts.retrying.until_done(leasing, "leasing messages")
            parts.channel.grant(granted, asyncio.get_running_loop().time())
