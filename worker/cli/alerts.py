"""`sendoff alert …`: the current alerts, and their thresholds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import asyncpg
import typer
from rich.table import Table

from contracts.events import Criterion
from worker.cli.asking import JsonOption
from worker.cli.common import CommandRefused, database
from worker.cli.show import console, number, to_json
from worker.db.alerts import Alerts
from worker.domain.text import plain, words
from worker.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from worker.db.pool import Database

T = TypeVar("T")

app = typer.Typer(help="What somebody should look at, and when that is said.", no_args_is_help=True)


@app.command("list")
def list_(*, as_json: JsonOption = False) -> None:
    """Show what is wrong now, what has been so for longest first."""
    found = _run(lambda db: Alerts(db).current())
    if as_json:
        typer.echo(to_json(found))
        return
    if not found:
        typer.echo("No alerts.")
        return
    table = Table("delivery", "label", "state", "alert", "since (UTC)", "", box=None, pad_edge=False)
    for row in found:
        since = f"{row['since']:%Y-%m-%d %H:%M}"
        cells = (plain(row["label"]), words(row["state"]), plain(row["criterion"]), since)
        table.add_row(str(row["delivery_id"]), *cells, plain(row["sentence"]))
    console().print(table)


@app.command()
def thresholds(*, as_json: JsonOption = False) -> None:
    """Show every criterion with its threshold."""
    found = _run(lambda db: Alerts(db).thresholds())
    if as_json:
        typer.echo(to_json(found))
        return
    table = Table("criterion", "threshold", "recipients at least", "", box=None, pad_edge=False)
    for row in found:
        table.add_row(row["criterion"], *_limits(row), "" if row["enabled"] else "off")
    console().print(table)


@app.command("set")
def set_(
    criterion: Annotated[
        Criterion, typer.Argument(metavar="CRITERION", help="Which; “alert thresholds” has them.")
    ],
    *,
    threshold: Annotated[
        float | None, typer.Option(metavar="X", min=0, max=1e9, help="The limit, in the criterion's unit.")
    ] = None,
    minimum: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, max=2**31 - 1, help="Leave deliveries to fewer recipients alone."),
    ] = None,
    enabled: Annotated[bool | None, typer.Option("--on/--off", help="Look for it, or do not.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Change a criterion; what is not named stays as it is."""
    if (threshold, minimum, enabled) == (None, None, None):
        raise typer.BadParameter("Name what to change: --threshold, --minimum, --on or --off.")
    try:
        row = _run(lambda db: Alerts(db).set_threshold(criterion, threshold, minimum, enabled=enabled))
    except asyncpg.CheckViolationError as error:
        percent = error.constraint_name == "hundred_percent"
        why = "is in percent: 100 at most" if percent else "has no threshold; it may be switched --off"
        raise CommandRefused(f"The criterion {criterion.value} {why}.") from error
    if as_json:
        typer.echo(to_json(row))
        return
    limit, least = _limits(row)
    said = [f"threshold {limit}"] * bool(limit) + [f"deliveries to {least} recipients or more"]
    typer.echo(f"{row['criterion']}: {'on' if row['enabled'] else 'off'}, {', '.join(said)}.")


def _limits(row: dict[str, Any]) -> tuple[str, str]:
    limit = "" if row["threshold"] is None else f"{row['threshold']:g} {row['unit']}"
    return limit, number(row["minimum"])


def _run(action: Callable[[Database], Awaitable[T]]) -> T:
    async def work() -> T:
        async with database(read_settings()) as db:
            return await action(db)

    return asyncio.run(work())
