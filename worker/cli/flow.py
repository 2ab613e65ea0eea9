"""`sendoff flow`: what senders hold back now."""

from __future__ import annotations

import asyncio
from typing import Any

import typer
from rich.table import Table

from worker.cli.asking import JsonOption
from worker.cli.common import database
from worker.cli.show import console, number, to_json
from worker.db.flow import Flow
from worker.domain.text import plain
from worker.settings import read_settings


def flow(*, as_json: JsonOption = False) -> None:
    """Show which providers and domains are held back now, and why."""
    found = asyncio.run(_read())
    if as_json:
        typer.echo(to_json(found))
        return
    if not found:
        typer.echo("Nothing is held back.")
        return
    table = Table("relay", "domain", "connections", "a minute", "until (UTC)", "", box=None, pad_edge=False)
    for row in found:
        until = f"{row['deferred_until']:%H:%M:%S}" if row["deferred_until"] else ""
        rate = f"{row['per_minute']:.0f}"
        cells = (plain(row["relay"]), plain(row["domain"]), number(row["connections"]), rate, until)
        table.add_row(*cells, plain(row["why"]))
    console().print(table)


async def _read() -> list[dict[str, Any]]:
    async with database(read_settings()) as db:
        return await Flow(db).current()
