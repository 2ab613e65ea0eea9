"""`sendoff retention`: removes old deliveries and keeps their KPIs."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from worker.cli.asking import JsonOption
from worker.cli.common import CommandRefused, database
from worker.cli.show import console, number, to_json
from worker.domain.retention import read_age
from worker.domain.text import words
from worker.operations import retention as service
from worker.settings import Settings, read_settings

if TYPE_CHECKING:
    from datetime import timedelta

    from worker.db.retention import PartitionSet


def retention(
    older_than: Annotated[
        str | None,
        typer.Option(metavar="DAYS", help="How long ago they ended: 400d. Otherwise SENDOFF_RETENTION."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without it they are only shown.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove recipients, logs and content of old deliveries, a set of partitions at a time; KPIs are kept."""
    settings = read_settings()
    written = older_than or settings.retention
    if not written:
        raise typer.BadParameter("Say how old: --older-than 400d, or set SENDOFF_RETENTION.")
    try:
        age = read_age(written)
    except ValueError as error:
        raise typer.BadParameter(f"--older-than: {error}.") from error
    asyncio.run(_retain(settings, age, yes=yes, as_json=as_json))


async def _retain(settings: Settings, age: timedelta, *, yes: bool, as_json: bool) -> None:
    async with database(settings) as db:
        sets = await service.survey(db, age)
        removed: list[int] = []
        if not as_json:
            _print(sets)
        if yes:
            try:
                async for one in service.remove(db, age):
                    removed.append(one.first_id)
                    if not as_json:
                        typer.echo(f"Removed: {_what(one)}.")
            except service.RetentionRefused as error:
                raise CommandRefused(str(error)) from error
        if as_json:
            answer = {"older_than_days": age.days, "sets": [_values(s) for s in sets], "removed": removed}
            typer.echo(to_json(answer))
        elif not yes and any(s.leaves for s in sets):
            typer.echo("Nothing was removed: --yes removes what leaves.")
        elif not any(s.leaves for s in sets):
            typer.echo("Nothing is to be removed.")


def _print(sets: list[PartitionSet]) -> None:
    table = Table("deliveries", "prepared", "recipients", "size", "", box=None, pad_edge=False)
    for one in sets:
        table.add_row(
            f"{one.first_id}–{one.last_id}",
            number(one.deliveries),
            number(one.recipients),
            _size(one.bytes),
            _verdict(one),
        )
    console().print(table)


def _verdict(one: PartitionSet) -> str:
    if one.leaving:
        return "leaves: its removal broke off"
    if one.newest:
        return "stays: new deliveries go into it"
    if one.held:
        held = ", ".join(
            f"{h.delivery_id} ({words(h.state)}{f' since {h.since:%Y-%m-%d}' if h.since else ''})"
            for h in one.held_by
        )
        return f"held back by {held}" + (
            f" and {number(one.held - len(one.held_by))} more" if one.held > len(one.held_by) else ""
        )
    return "leaves"


def _what(one: PartitionSet) -> str:
    return (
        f"deliveries {one.first_id} to {one.last_id}, {number(one.recipients)} recipients, {_size(one.bytes)}"
    )


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _values(one: PartitionSet) -> dict[str, Any]:
    values = asdict(one) | {"opened_at": one.opened_at.isoformat(), "leaves": one.leaves}
    values["held_by"] = [
        {"delivery_id": h.delivery_id, "state": h.state, "since": h.since and h.since.isoformat()}
        for h in one.held_by
    ]
    return values
