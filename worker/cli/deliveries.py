"""`sendoff list`: the deliveries, with what each does and waits for."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.table import Table

from contracts.states import State
from worker.cli.asking import JsonOption
from worker.cli.common import database
from worker.cli.show import console, number, percent, to_json
from worker.db.console import PAGE, ConsoleReads
from worker.domain.sentences import Part, headline, settled
from worker.domain.text import plain, words
from worker.settings import Settings, read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MOST: Final = 1_000
"""Of one call; the next begins with --before."""


def list_(
    *,
    states: Annotated[
        list[State] | None, typer.Option("--state", metavar="STATE", help="In this state; may be repeated.")
    ] = None,
    channel: Annotated[str | None, typer.Option(metavar="NAME", help="Sent over this channel.")] = None,
    search: Annotated[
        str | None, typer.Option(metavar="TEXT", help="With this in the label, or with this number.")
    ] = None,
    before: Annotated[
        int | None, typer.Option(metavar="ID", min=1, max=2**63 - 1, help="Older than this delivery.")
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=_MOST, help="At most so many.")] = PAGE,
    as_json: JsonOption = False,
) -> None:
    """List deliveries, the newest first: state, progress, and what each waits for."""
    found, after = asyncio.run(_read(read_settings(), states, channel, search, before, limit))
    if as_json:
        typer.echo(to_json([{**row, "sentence": said(headline(row, row["as_of"]))} for row in found]))
        return
    if not found:
        filtered = any((states, channel, search, before))
        typer.echo("No delivery is like that." if filtered else "There are no deliveries yet.")
        return
    table = Table("delivery", "label", "channel", "state", "progress", "", box=None, pad_edge=False)
    for row in found:
        table.add_row(str(row["delivery_id"]), *(plain(text) for text in _cells(row)))
    out = console()
    out.print(table)
    if after:
        out.print(f"Older ones: --before {after}")


async def _read(
    settings: Settings,
    states: Sequence[State] | None,
    channel: str | None,
    text: str | None,
    before: int | None,
    limit: int,
) -> tuple[list[dict[str, Any]], str | None]:
    async with database(settings) as db:
        reads = ConsoleReads(db)
        page = await reads.deliveries(before=before, states=states, channel=channel, text=text, rows=limit)
        shown = await reads.shown([row["delivery_id"] for row in page.rows])
    return [shown[row["delivery_id"]] for row in page.rows], page.after


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    done, total = settled(row), row["to_deliver"]
    share = f" ({percent(100 * done / total)})" if total else ""
    progress = f"{number(done)} of {number(total)}{share}"
    return row["label"], row["channel"], words(row["state"]), progress, said(headline(row, row["as_of"]))


def said(parts: Sequence[Part]) -> str:
    """Returns a sentence as text: counts with separators, moments in UTC."""
    return "".join(
        f"{part.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
        if isinstance(part, datetime)
        else number(part)
        if isinstance(part, int)
        else part
        for part in parts
    )
