"""`sendoff prepare`."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Final

import typer

from worker.cli.common import CommandRefused, database
from worker.cli.show import to_json
from worker.domain.retarget import CriterionInvalid, read_criterion
from worker.domain.text import plain
from worker.operations import prepare as service
from worker.operations.preflight import SenderDomains
from worker.operations.retarget import Source, SourceRefused, write_audience
from worker.settings import Settings, read_settings

_STATEMENT_SECONDS: Final = 1_800
"""Seconds for one statement: the largest moves the whole audience, a million recipients in some ten
seconds."""


def prepare(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="The delivery.")],
    operator: Annotated[str, typer.Option(metavar="NAME", help="Who prepares it.")],
    recipients: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv", help="Its audience: a header with “address”, further columns as variables."
        ),
    ] = None,
    from_delivery: Annotated[
        int | None,
        typer.Option(metavar="ID", min=1, max=2**63 - 1, help="Or its audience is out of this delivery's."),
    ] = None,
    who: Annotated[
        str | None,
        typer.Option(
            metavar="WHO",
            help="Which of its recipients: failed, soft, unknown, not-opened, not-clicked, clicked=URL.",
        ),
    ] = None,
    delivery: Annotated[
        int | None, typer.Option(metavar="ID", min=1, max=2**63 - 1, help="Prepare this one again.")
    ] = None,
    *,
    persons: Annotated[
        bool, typer.Option("--persons", help="Opens and clicks of machines do not count for --who.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Load a delivery from a file and its recipients, or prepare one again."""
    settings = read_settings()
    period = timedelta(seconds=settings.partition_period)
    source = _source(from_delivery, who, persons=persons)
    if (recipients is None) is (source is None):
        raise typer.BadParameter(
            "Name one audience: --recipients FILE.csv, or --from-delivery ID with --who."
        )

    def requested(csv: Path) -> service.PreparationRequest:
        return service.PreparationRequest(
            file,
            csv,
            operator,
            delivery,
            settings.channels,
            period,
            SenderDomains.of(settings),
            source,
            tracker=bool(settings.tracker_url),
        )

    if recipients is not None:
        prepared = asyncio.run(_prepare(settings, requested(recipients)))
    else:
        with TemporaryDirectory(prefix="sendoff-") as folder:
            csv = Path(folder) / f"delivery-{from_delivery}.csv"
            prepared = asyncio.run(_prepare(settings, requested(csv)))
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


def _source(delivery_id: int | None, who: str | None, *, persons: bool) -> Source | None:
    if (delivery_id is None) is not (who is None):
        raise typer.BadParameter("--from-delivery and --who belong together.")
    if delivery_id is None or who is None:
        return None
    try:
        return Source(delivery_id, read_criterion(who, persons=persons))
    except CriterionInvalid as error:
        raise typer.BadParameter(f"--who: {error}.") from error


async def _prepare(settings: Settings, request: service.PreparationRequest) -> service.Prepared:
    async with database(settings, command_timeout=_STATEMENT_SECONDS) as db:
        if request.source is not None:
            try:
                await write_audience(db, request.source, request.recipients)
            except SourceRefused as error:
                raise CommandRefused(plain(str(error))) from error
        return await service.prepare(db, request)
