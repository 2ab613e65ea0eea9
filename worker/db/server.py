"""Reads facts about the server: our role, when it answers a commit, its connections and its clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from worker.domain.standbys import Durability

if TYPE_CHECKING:
    from worker.db.pool import Database

_LOOKS: Final = 3
"""Times that the clock is read: the fastest answer says most."""


@dataclass(frozen=True, slots=True)
class Role:
    """Our role at the server, and what it may do."""

    name: str
    superuser: bool
    owner: bool
    """Whether it owns the schema, or is a member of the owner."""
    writes: bool
    """Whether it may write rows."""
    opens: bool
    """Whether it can open the next set of partitions: with the right of the schema's owner."""


@dataclass(frozen=True, slots=True)
class Room:
    """How many connections the server takes, and how many are there."""

    limit: int
    """The most that our role may open in this database, with what others hold now."""
    others: int
    """Connections of others than Sendoff, to all its databases."""
    open: int
    """Connections of Sendoff to this database."""
    processes: int
    """Processes of Sendoff that hold them."""


async def role(db: Database) -> Role:
    """Returns the role of the connection."""
    row = await db.fetchrow("read_role")
    assert row is not None  # noqa: S101 - the version was read, so the schema exists
    return Role(**row)


async def durability(db: Database) -> Durability:
    """Returns the settings that say what a commit waits for."""
    row = await db.fetchrow("read_durability")
    assert row is not None  # noqa: S101 - the query always has one row
    return Durability(**row)


async def room(db: Database) -> Room:
    """Returns how many connections there are, and how many there may be."""
    row = await db.fetchrow("read_room")
    assert row is not None  # noqa: S101 - the query always has one row
    return Room(**row)


async def ahead(db: Database) -> float:
    """Returns by how many seconds at least this machine's clock is ahead of the server's; negative if behind.

    What the way there and back may account for is left out.
    """
    best: tuple[float, float] | None = None
    for _ in range(_LOOKS):
        began = time.monotonic()
        before = datetime.now(UTC)
        there: datetime = await db.fetchval("read_clock")
        took = time.monotonic() - began
        difference = (before - there).total_seconds() + took / 2
        best = min(best or (took, difference), (took, difference))
    assert best is not None  # noqa: S101 - it was read
    took, difference = best
    return max(difference - took / 2, 0.0) if difference > 0 else min(difference + took / 2, 0.0)
