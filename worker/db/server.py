"""Reads facts about the server: our role, and when it answers a commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.db.pool import Database


@dataclass(frozen=True, slots=True)
class Role:
    """Our role at the server, and what it may do."""

    name: str
    superuser: bool
    owner: bool
    """Whether it owns the schema, or is a member of the owner."""
    writes: bool
    """Whether it may write rows."""


@dataclass(frozen=True, slots=True)
class Durability:
    """When the server answers a commit."""

    commits: str
    """Postgres's `synchronous_commit`: on, remote_apply, remote_write, local or off."""
    standbys: str
    """Postgres's `synchronous_standby_names`; empty for none."""


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
