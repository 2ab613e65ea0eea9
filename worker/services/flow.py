"""Reports what a sender holds back, so that `sendoff.domain_flow` shows it."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from worker.db.flow import LaneReport
from worker.db.retrying import Idempotent, Unstorable
from worker.domain.failures import Busy, Stopped
from worker.lifecycle import pause

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.channels.protocol import Channel
    from worker.db.retrying import Retrying

SECONDS: Final = 2.0
"""Seconds between two reports. The view believes one for 15."""
_LONGEST: Final = 500
"""Characters of a reason."""


class Store(Protocol):
    """Keeps the reports: `worker.db.flow.Flow`."""

    async def report(self, owner: str, channel: str, lanes: Sequence[LaneReport]) -> None:
        """Replaces the report of a process on a channel."""


@dataclass(frozen=True, slots=True)
class FlowParts:
    """The parts of the service."""

    channel_name: str
    channel: Channel
    """The channel of a sender of this process."""
    owner: str
    """The name of the process."""
    store: Store
    retrying: Retrying
    """Executes transactions."""


class FlowService:
    """Reports for one channel, while there is something to report."""

    def __init__(self, parts: FlowParts) -> None:
        """Takes its parts."""
        self.name = f"flow {parts.channel_name}"
        self._parts = parts
        self._seen: dict[str, tuple[int, float]] = {}
        """By lane: how many messages had been answered at the last report, and when that was."""

    async def run(self, stop: asyncio.Event) -> None:
        """Reports until `stop`."""
        with contextlib.suppress(Stopped):
            while not stop.is_set():
                await self.report()
                await pause(stop, SECONDS)

    async def report(self) -> None:
        """Reports the lanes that are held back now. If there are none, and were none, it does nothing."""
        now = asyncio.get_running_loop().time()
        held = self._parts.channel.held(now)
        if not held and not self._seen:
            return
        seen, self._seen = self._seen, {lane.name: (lane.answered, now) for lane in held}
        reports = []
        for lane in held:
            before, since = seen.get(lane.name, (lane.answered, now))
            rate = 60 * (lane.answered - before) / (now - since) if now > since else 0.0
            why = lane.because.replace("\0", " ")[:_LONGEST]
            reports.append(LaneReport(lane.name, lane.connections, rate, max(lane.opens_at - now, 0.0), why))
        parts = self._parts
        reporting = Idempotent(lambda: parts.store.report(parts.owner, parts.channel_name, reports))
        with contextlib.suppress(Busy, Unstorable):  # the next report is due soon
            await parts.retrying.until_done(reporting, "reporting what is held back")
