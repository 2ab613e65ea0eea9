"""`sendoff erase`: overwrites the personal data of one profile."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.asking import JsonOption, OperatorOption, TokenOption, read_bearer
from worker.cli.common import CommandRefused, database
from worker.cli.history import ProfileArgument
from worker.cli.show import number, to_json
from worker.domain.text import plain
from worker.operations import erase as service
from worker.settings import Settings, read_settings

if TYPE_CHECKING:
    from worker.db.profiles import Held


def erase(
    profile_id: ProfileArgument,
    operator: OperatorOption,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would go, and change nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Erase what is personal of one profile: address, variables, replies; counts and KPIs stay."""
    if not (yes or dry_run or sys.stdin.isatty()):
        raise typer.BadParameter("There is no terminal to ask in; --yes erases without asking.")
    settings = read_settings()
    key = settings.fingerprint_key.get_secret_value() if settings.fingerprint_key else None
    request = service.ErasureRequest(profile_id, operator, read_bearer(settings, operator, token_file), key)
    asyncio.run(_erase(settings, request, dry_run=dry_run, yes=yes, as_json=as_json))


async def _erase(
    settings: Settings, request: service.ErasureRequest, *, dry_run: bool, yes: bool, as_json: bool
) -> None:
    async with database(settings) as db:
        try:
            held = await service.look(db, request)
            if not as_json or not (yes or dry_run):
                typer.echo(_held(held), err=as_json)
            if dry_run:
                if as_json:
                    typer.echo(to_json({"profile_id": request.profile_id, **asdict(held)}))
                return
            question = f"Erase the profile “{plain(request.profile_id)}” permanently?"
            if not yes and not typer.confirm(question, err=as_json):
                raise CommandRefused("Nothing was erased.")
            erased = await service.erase(db, request)
        except service.ErasureRefused as error:
            raise CommandRefused(plain(str(error))) from error
    if as_json:
        typer.echo(to_json({"profile_id": request.profile_id, **asdict(erased)}))
    else:
        typer.echo(
            f"Erased: {number(erased.messages)} messages, {number(erased.exclusions)} exclusions;"
            f" not sent any more: {number(erased.kept_from)}."
        )


def _held(held: Held) -> str:
    stays = " Its entries of the denylist stay." if held.denylisted else ""
    return (
        f"Held: {number(held.messages)} messages of {number(held.deliveries)} deliveries,"
        f" {number(held.tracking_events)} tracking events, {number(held.exclusions)} exclusions.{stays}"
    )
