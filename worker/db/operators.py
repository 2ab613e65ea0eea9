"""The directory of operators, for administration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.domain.operators import Operator, Role

if TYPE_CHECKING:
    from collections.abc import Iterable

    from worker.db.pool import Database


async def list_operators(db: Database) -> list[Operator]:
    """Returns every operator by name."""
    rows = await db.fetch("list_operators")
    return [Operator(r["name"], r["active"], frozenset(Role(role) for role in r["roles"])) for r in rows]


async def read_operator(db: Database, name: str) -> Operator | None:
    """Returns an operator, or None if there is none of this name."""
    row = await db.fetchrow("read_operator", name=name)
    if row is None:
        return None
    return Operator(row["name"], row["active"], frozenset(Role(role) for role in row["roles"]))


async def add_operator(db: Database, name: str, roles: Iterable[Role]) -> bool:
    """Adds an operator, or adds roles to an operator who exists.

    Returns:
        Whether the operator is new.
    """
    async with db.transaction() as tx:
        added = await tx.fetchval("add_operator", name=name)
        await tx.fetchval("lock_operator", name=name)
        for role in roles:
            await tx.fetchval("grant_role", name=name, role=role)
    return added is not None


async def grant_role(db: Database, name: str, role: Role) -> bool | None:
    """Gives a role.

    Returns:
        Whether the operator did not hold the role before; None if there is no such operator.
    """
    return await _change_role(db, "grant_role", name, role)


async def revoke_role(db: Database, name: str, role: Role) -> bool | None:
    """Takes a role away. Commands under way that use the role are executed first.

    Returns:
        Whether the operator held the role; None if there is no such operator.
    """
    return await _change_role(db, "revoke_role", name, role)


async def _change_role(db: Database, query: str, name: str, role: Role) -> bool | None:
    async with db.transaction() as tx:
        if await tx.fetchval("lock_operator", name=name) is None:
            return None
        return await tx.fetchval(query, name=name, role=role) is not None


async def set_operator_active(db: Database, name: str, *, active: bool) -> bool | None:
    """Activates or deactivates an operator; the roles stay.

    Returns:
        Whether this changed the operator; None if there is no such operator.
    """
    async with db.transaction() as tx:
        if await tx.fetchval("lock_operator", name=name) is None:
            return None
        return await tx.fetchval("set_operator_active", name=name, active=active) is not None
