"""What the server says of itself and of us: who we are to it, and when a commit counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.db.pool import Database


@dataclass(frozen=True, slots=True)
class Role:
    """The role that we are logged in as, and what it may do."""

    name: str
    superuser: bool
    owner: bool
    """Whether it owns the schema, by itself or as a member of the owner."""
    writes: bool
    """Whether it may write rows."""


@dataclass(frozen=True, slots=True)
class Durability:
    """When a commit is answered."""

    commits: str
    """Postgres's `synchronous_commit`: on, remote_apply, remote_write, local or off."""
    standbys: str
    """Postgres's `synchronous_standby_names`; empty for none."""


async def role(db: Database) -> Role:
    """Returns the role of the connection."""
    row = await db.fetchrow("read_role")
    assert row is not None  # noqa: S101 - the schema is there, or the version could not be read
    return Role(**row)


async def durability(db: Database) -> Durability:
    """Returns what a commit waits for."""
    row = await db.fetchrow("read_durability")
    assert row is not None  # noqa: S101 - one row by its form
    return Durability(**row)
