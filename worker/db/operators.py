"""The directory of operators, as its administration sees it."""

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


async def add_operator(db: Database, name: str, roles: Iterable[Role]) -> bool:
    """Adds an operator and gives them roles, on top of those that they hold.

    Returns:
        Whether they are new.
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
        Whether it is new to them; None if there is no such operator.
    """
    return await _change_role(db, "grant_role", name, role)


async def revoke_role(db: Database, name: str, role: Role) -> bool | None:
    """Takes a role away; commands that relied on it a moment ago come first.

    Returns:
        Whether they held it; None if there is no such operator.
    """
    return await _change_role(db, "revoke_role", name, role)


async def _change_role(db: Database, query: str, name: str, role: Role) -> bool | None:
    async with db.transaction() as tx:
        if await tx.fetchval("lock_operator", name=name) is None:
            return None
        return await tx.fetchval(query, name=name, role=role) is not None


async def set_operator_active(db: Database, name: str, *, active: bool) -> bool | None:
    """Lets an operator act, or no longer; their roles stay.

    Returns:
        Whether that is a change; None if there is no such operator.
    """
    async with db.transaction() as tx:
        if await tx.fetchval("lock_operator", name=name) is None:
            return None
        return await tx.fetchval("set_operator_active", name=name, active=active) is not None
