"""`sendoff log`: what became of every recipient of a delivery."""

from __future__ import annotations

import asyncio
import csv
import json
import sys
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.table import Table

from worker.cli.asking import DeliveryArgument
from worker.cli.common import CommandRefused, database
from worker.cli.show import console, discard_output, number, plain, words
from worker.db import reading
from worker.domain.confirm import left_by_retention
from worker.settings import Settings, read_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

_ROWS_SHOWN: Final = 1_000
"""Rows in the table for people: Rich lays a table out only when it has every row."""

_FACTS: Final = ("bounced_at", "sent_at", "error_at", "unknown_at", "retry_at", "claimed_at")
"""The times of a recipient, the one to show first."""


class Status(StrEnum):
    """The statuses of the view `sending_log`."""

    PENDING = "pending"
    SENDING = "sending"
    SENT = "sent"
    BOUNCED = "bounced"
    ERROR = "error"
    RETRYING = "retrying"
    UNKNOWN = "unknown"
    EXCLUDED = "excluded"
    CANCELLED = "cancelled"


class Format(StrEnum):
    """How the log is written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def log(
    delivery_id: DeliveryArgument,
    status: Annotated[Status | None, typer.Option(help="Only recipients with this status.")] = None,
    *,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV with a header.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Print the sending log: every recipient with its status, its facts and the channel's reply."""
    if as_csv and as_json:
        raise typer.BadParameter("Choose one of --csv and --json.")
    form = Format.CSV if as_csv else Format.JSON if as_json else Format.TABLE
    asyncio.run(_log(read_settings(), delivery_id, status, form))


async def _log(settings: Settings, delivery_id: int, status: Status | None, form: Format) -> None:
    async with database(settings) as db:
        found = await reading.audience(db, delivery_id)
        if found is None:
            raise CommandRefused(f"There is no delivery {delivery_id}.")
        recipients, purged_at = found
        if purged_at is not None:
            raise CommandRefused(left_by_retention(delivery_id, purged_at))
        try:
            await _WRITERS[form](reading.sending_log(db, delivery_id, recipients, status))
            sys.stdout.flush()
        except BrokenPipeError:
            discard_output()


async def _print_csv(rows: AsyncIterator[Mapping[str, Any]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(reading.SENDING_LOG)
    async for row in rows:
        writer.writerow(_values(row).values())


async def _print_json(rows: AsyncIterator[Mapping[str, Any]]) -> None:
    async for row in rows:
        sys.stdout.write(json.dumps(_values(row), ensure_ascii=False) + "\n")


async def _print_table(rows: AsyncIterator[Mapping[str, Any]]) -> None:
    table = Table("recipient", "address", "status", "attempt", "at", "reply", box=None, pad_edge=False)
    seen = 0
    async for row in rows:
        seen += 1
        if seen <= _ROWS_SHOWN:
            table.add_row(*_cells(row))
    out = console()
    out.print(table)
    if seen > _ROWS_SHOWN:
        out.print(f"… and {number(seen - _ROWS_SHOWN)} more: --csv and --json print all of them.")


def _cells(row: Mapping[str, Any]) -> list[str]:
    at = next((row[fact] for fact in _FACTS if row[fact] is not None), None)
    kind = f" ({row['bounce_kind']})" if row["bounce_kind"] else ""
    return [
        number(row["recipient"]),
        plain(row["address"]),
        words(row["status"]) + kind,
        str(row["attempt"]),
        f"{at:%Y-%m-%d %H:%M:%S}" if at else "",
        plain(row["reply"] or row["reason"] or ""),
    ]


def _values(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.isoformat() if isinstance(v, datetime) else v for k, v in row.items()}


_WRITERS: Final = {Format.TABLE: _print_table, Format.CSV: _print_csv, Format.JSON: _print_json}
