"""`sendoff prepare`."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final

import typer

from worker.cli.common import CommandRefused, database
from worker.cli.show import to_json
from worker.operations import prepare as service
from worker.operations.preflight import SenderDomains
from worker.settings import Settings, read_settings

_STATEMENT_SECONDS: Final = 1_800
"""Seconds for one statement: the largest moves the whole audience, a million recipients in some ten
seconds."""


def prepare(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="The delivery.")],
    recipients: Annotated[
        Path,
        typer.Option(
            metavar="FILE.csv", help="Its audience: a header with “address”, further columns as variables."
        ),
    ],
    operator: Annotated[str, typer.Option(metavar="NAME", help="Who prepares it.")],
    delivery: Annotated[
        int | None, typer.Option(metavar="ID", min=1, max=2**63 - 1, help="Prepare this one again.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Load a delivery from a file and its recipients, or prepare one again."""
    settings = read_settings()
    period = timedelta(seconds=settings.partition_period)
    request = service.PreparationRequest(
        file, recipients, operator, delivery, settings.channels, period, SenderDomains.of(settings)
    )
    prepared = asyncio.run(_prepare(settings, request))
    counts = prepared.counts
    if as_json:
        typer.echo(
            to_json(
                {
                    "delivery_id": prepared.delivery_id,
                    "preparation": counts.preparation,
                    "to_deliver": counts.to_deliver,
                    "excluded": counts.excluded,
                    "state": prepared.state,
                }
            )
        )
    else:
        excluded = ", ".join(f"{count} {cause}" for cause, count in counts.excluded.items())
        typer.echo(f"delivery_id  {prepared.delivery_id}")
        typer.echo(f"preparation  {counts.preparation}")
        typer.echo(f"to_deliver   {counts.to_deliver}")
        typer.echo(f"excluded     {excluded or 'nobody'}")
        typer.echo(f"state        {prepared.state}")
    if prepared.problems:
        raise CommandRefused(
            f"The preparation of delivery {prepared.delivery_id} failed:\n" + "\n".join(prepared.problems)
        )


async def _prepare(settings: Settings, request: service.PreparationRequest) -> service.Prepared:
    async with database(settings, command_timeout=_STATEMENT_SECONDS) as db:
        return await service.prepare(db, request)
