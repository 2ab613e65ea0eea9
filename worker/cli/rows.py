"""Writes long answers: a table for people, CSV, or one JSON object a line, in constant memory."""

from __future__ import annotations

import csv
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.table import Table

from worker.cli.show import console, number, to_json
from worker.domain.text import cell, words

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

_ROWS_SHOWN: Final = 1_000
"""The most rows in the table for people: Rich needs every row before it lays out a table."""

CsvOption = Annotated[bool, typer.Option("--csv", help="CSV with a header.")]
LinesOption = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]


class Format(StrEnum):
    """The format of the rows."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def chosen(*, as_csv: bool, as_json: bool) -> Format:
    """Returns the format that the options name.

    Raises:
        typer.BadParameter: Both options are given.
    """
    if as_csv and as_json:
        raise typer.BadParameter("Choose one of --csv and --json.")
    return Format.CSV if as_csv else Format.JSON if as_json else Format.TABLE


async def write(
    rows: AsyncIterator[Mapping[str, Any]],
    form: Format,
    *,
    columns: Sequence[str],
    head: Sequence[str],
    cells: Callable[[Mapping[str, Any]], list[str]],
) -> None:
    """Writes rows as they come.

    Args:
        rows: The rows.
        form: The format.
        columns: Their columns, for the header of the CSV.
        head: The header of the table for people.
        cells: Makes a row of the table for people.
    """
    if form is Format.CSV:
        await _write_csv(rows, columns)
    elif form is Format.JSON:
        async for row in rows:
            sys.stdout.write(f"{to_json(dict(row))}\n")
    else:
        await _write_table(rows, head, cells)


def status_text(row: Mapping[str, Any]) -> str:
    """Returns the status of a recipient as text, with the kind of a bounce."""
    kind = f" ({row['bounce_kind']})" if row["bounce_kind"] else ""
    return words(row["status"]) + kind


def status_time(row: Mapping[str, Any]) -> str:
    """Returns the time of a recipient's status as text; empty if there is none."""
    at = row["at"]
    return f"{at:%Y-%m-%d %H:%M:%S}" if at else ""


async def _write_csv(rows: AsyncIterator[Mapping[str, Any]], columns: Sequence[str]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    async for row in rows:
        writer.writerow([cell(value) for value in row.values()])


async def _write_table(
    rows: AsyncIterator[Mapping[str, Any]],
    head: Sequence[str],
    cells: Callable[[Mapping[str, Any]], list[str]],
) -> None:
    table = Table(*head, box=None, pad_edge=False)
    seen = 0
    async for row in rows:
        seen += 1
        if seen <= _ROWS_SHOWN:
            table.add_row(*cells(row))
    out = console()
    out.print(table)
    if seen > _ROWS_SHOWN:
        out.print(f"… and {number(seen - _ROWS_SHOWN)} more: --csv and --json print all of them.")
