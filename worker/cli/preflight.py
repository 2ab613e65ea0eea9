"""`sendoff preflight`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import typer

from worker.cli.asking import DeliveryArgument, JsonOption
from worker.cli.common import CommandRefused, database
from worker.cli.show import to_json
from worker.domain.text import plain
from worker.operations import preflight as operation
from worker.settings import Settings, read_settings

if TYPE_CHECKING:
    from contracts.commands import Finding


def preflight(delivery_id: DeliveryArgument, *, as_json: JsonOption = False) -> None:
    """Say what a careful person would look at before the OK; status 1 if a finding blocks it."""
    found = asyncio.run(_look(read_settings(), delivery_id))
    if as_json:
        typer.echo(to_json([finding.model_dump() for finding in found]))
    for finding in () if as_json else found:
        typer.echo(f"{'blocks' if finding.blocks else 'warns':8} {finding.check:18} {plain(finding.message)}")
    if not found and not as_json:
        typer.echo("Nothing was found.")
    raise typer.Exit(1 if any(finding.blocks for finding in found) else 0)


async def _look(settings: Settings, delivery_id: int) -> tuple[Finding, ...]:
    async with database(settings) as db:
        try:
            return await operation.preflight(settings, db, delivery_id)
        except operation.PreflightRefused as error:
            raise CommandRefused(str(error)) from error
