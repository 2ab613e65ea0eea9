"""What senders hold back now, by lane."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.channels.protocol import Share, Want
    from worker.db.pool import Database


class LaneReport(NamedTuple):
    """What one process says of a lane."""

    relay: str
    """The relay."""
    domain: str
    """Its name."""
    connections: int
    """How many connections it allows."""
    per_minute: float
    """How many messages were answered a minute."""
    pause: float
    """Seconds until its pause ends; 0 for none."""
    why: str
    """Why it is held back."""


class Flow:
    """The reports of all processes."""

    def __init__(self, db: Database) -> None:
        """Takes the database."""
        self._db = db

    async def report(self, owner: str, channel: str, lanes: Sequence[LaneReport]) -> None:
        """Replaces the report of a process on a channel; no lanes for nothing to report."""
        await self._db.fetch(
            "report_lanes",
            owner=owner,
            channel=channel,
            relays=[lane.relay for lane in lanes],
            domains=[lane.domain for lane in lanes],
            connections=[lane.connections for lane in lanes],
            rates=[lane.per_minute for lane in lanes],
            pauses=[lane.pause for lane in lanes],
            whys=[lane.why for lane in lanes],
        )

    async def lease(self, owner: str, wants: Sequence[Want], shares: Sequence[Share]) -> dict[str, int]:
        """Takes messages and connections out of the limits that all processes share.

        Args:
            owner: The process.
            wants: The messages that it asks for.
            shares: The limits of connections of which it needs its part.

        Returns:
            How many are granted, by name. The first lease of a limit grants none.
        """
        rows = []
        if wants:
            rows += await self._db.fetch(
                "lease_messages",
                names=[want.name for want in wants],
                rates=[want.per_minute for want in wants],
                counts=[want.messages for want in wants],
            )
        if shares:
            rows += await self._db.fetch(
                "lease_connections",
                owner=owner,
                names=[share.name for share in shares],
                limits=[share.connections for share in shares],
            )
        return {row["name"]: row["granted"] for row in rows}

    async def current(self) -> list[dict[str, Any]]:
        """Reads the lanes that are held back now, first those with the longest pause."""
        return [dict(row) for row in await self._db.fetch("read_flow")]
