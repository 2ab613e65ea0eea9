"""Leases messages of the limits that all senders share, and reports what a sender holds back."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from worker.db.flow import LaneReport
from worker.db.retrying import Idempotent, Unstorable
from worker.domain.failures import Busy, Stopped
from worker.lifecycle import pause

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.channels.protocol import Lanes, Share, Want
    from worker.db.retrying import Retrying

SECONDS: Final = 1.0
"""Seconds between two leases. What is leased is a second's messages."""
_REPORT_EVERY: Final = 2
"""Leases. The view believes a report for 15 seconds."""
_LONGEST: Final = 500
"""Characters of a reason."""


class Store(Protocol):
    """Keeps what is left of each limit, and the reports: `worker.db.flow.Flow`."""

    async def lease(self, owner: str, wants: Sequence[Want], shares: Sequence[Share]) -> dict[str, int]:
        """Takes messages and connections out of the limits; returns how many, by name."""

    async def report(self, owner: str, channel: str, lanes: Sequence[LaneReport]) -> None:
        """Replaces the report of a process on a channel."""


@dataclass(frozen=True, slots=True)
class FlowParts:
    """The parts of the service."""

    channel_name: str
    lanes: Lanes
    """The lanes of that channel, in a sender of this process."""
    owner: str
    """The name of the process."""
    store: Store
    retrying: Retrying
    """Executes transactions."""


class FlowService:
    """Leases and reports for one channel. While nothing is limited, the database is not asked."""

    def __init__(self, parts: FlowParts) -> None:
        """Takes its parts."""
        self.name = f"flow {parts.channel_name}"
        self._parts = parts
        self._seen: dict[tuple[str, str], tuple[int, float]] = {}
        """By lane: how many messages had been answered at the last report, and when that was."""

    async def run(self, stop: asyncio.Event) -> None:
        """Leases and reports until `stop`."""
        turn = 0
        with contextlib.suppress(Stopped):
            while not stop.is_set():
                await self.lease()
                if turn % _REPORT_EVERY == 0:
                    await self.report()
                turn += 1
                await pause(stop, SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 - processes have turns

    async def lease(self) -> None:
        """Leases the messages of a second, of the limits that messages wait for, and connections in use."""
        parts = self._parts
        wants, shares = parts.lanes.wants(), parts.lanes.shares()
        if not wants and not shares:
            return
        # What a lost answer granted is lost with it.
        leasing = Idempotent(lambda: parts.store.lease(parts.owner, wants, shares))
        with contextlib.suppress(Busy):  # then the messages wait for the next lease
            granted = await parts.retrying.until_done(leasing, "leasing messages and connections")
            parts.lanes.grant(granted, asyncio.get_running_loop().time())

    async def report(self) -> None:
        """Reports the lanes that are held back now. If there are none, and were none, it does nothing."""
        now = asyncio.get_running_loop().time()
        held = self._parts.lanes.held(now)
        if not held and not self._seen:
            return
        seen, self._seen = self._seen, {lane[:2]: (lane.answered, now) for lane in held}
        reports = []
        for lane in held:
            before, since = seen.get(lane[:2], (lane.answered, now))
            rate = 60 * (lane.answered - before) / (now - since) if now > since else 0.0
            why = lane.because.replace("\0", " ")[:_LONGEST]
            paused = max(lane.opens_at - now, 0.0)
            reports.append(LaneReport(lane.relay, lane.name, lane.connections, rate, paused, why))
        parts = self._parts
        reporting = Idempotent(lambda: parts.store.report(parts.owner, parts.channel_name, reports))
        with contextlib.suppress(Busy, Unstorable):  # the next report is due soon
            await parts.retrying.until_done(reporting, "reporting what is held back")
