"""`sendoff operator …`: the directory of operators."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from worker.cli.common import CommandRefused, database
from worker.cli.show import to_json
from worker.db import operators
from worker.domain.operators import Role
from worker.domain.text import plain
from worker.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from worker.db.pool import Database

T = TypeVar("T")

_LONGEST_NAME = 200


def _checked_name(name: str) -> str:
    if not name.isprintable() or name != name.strip() or not 0 < len(name) <= _LONGEST_NAME:
        raise typer.BadParameter(
            f"a name has 1 to {_LONGEST_NAME} printable characters and no space at its ends"
        )
    return name


Name = Annotated[str, typer.Argument(metavar="NAME", help="The operator's name.", callback=_checked_name)]
OneRole = Annotated[Role, typer.Argument(help="The role.")]

app = typer.Typer(help="The directory of operators.", no_args_is_help=True)


@app.command()
def add(
    name: Name, role: Annotated[list[Role] | None, typer.Option(help="A role; may be repeated.")] = None
) -> None:
    """Add an operator, or give one who is there further roles."""
    roles = role or []
    added = _run(lambda db: operators.add_operator(db, name, roles))
    what = f"“{name}” is now an operator" if added else f"“{name}” was an operator already"
    typer.echo(f"{what}, with: {', '.join(roles)}." if roles else f"{what}.")


@app.command()
def grant(name: Name, role: OneRole) -> None:
    """Give an operator a role."""
    changed = _known(name, _run(lambda db: operators.grant_role(db, name, role)))
    typer.echo(f"“{name}” {'now holds' if changed else 'held already'} the role {role.value}.")


@app.command()
def revoke(name: Name, role: OneRole) -> None:
    """Take a role away from an operator."""
    changed = _known(name, _run(lambda db: operators.revoke_role(db, name, role)))
    typer.echo(f"“{name}” {'no longer holds' if changed else 'did not hold'} the role {role.value}.")


@app.command()
def deactivate(name: Name) -> None:
    """Keep an operator from everything; their roles stay."""
    changed = _known(name, _run(lambda db: operators.set_operator_active(db, name, active=False)))
    typer.echo(f"“{name}” {'is now' if changed else 'was already'} deactivated.")


@app.command()
def activate(name: Name) -> None:
    """Let an operator who was deactivated act again."""
    changed = _known(name, _run(lambda db: operators.set_operator_active(db, name, active=True)))
    typer.echo(f"“{name}” {'is now' if changed else 'was already'} active.")


@app.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array, for programs.")] = False,
) -> None:
    """Show every operator with their roles."""
    found = _run(operators.list_operators)
    if as_json:
        entries = [{"name": o.name, "active": o.active, "roles": sorted(o.roles)} for o in found]
        typer.echo(to_json(entries))
        return
    for operator in found:
        roles = ", ".join(sorted(operator.roles)) or "no role"
        typer.echo(f"{plain(operator.name)}: {roles}{'' if operator.active else ' (deactivated)'}")


def _run(action: Callable[[Database], Awaitable[T]]) -> T:
    settings = read_settings()

    async def act() -> T:
        async with database(settings) as db:
            return await action(db)

    return asyncio.run(act())


def _known(name: str, changed: bool | None) -> bool:
    if changed is None:
        raise CommandRefused(f"The operator “{name}” is not known. Add them with: sendoff operator add.")
    return changed
