"""`sendoff log`: the status of every recipient of a delivery."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from worker.cli.asking import DeliveryArgument
from worker.cli.common import CommandRefused, database
from worker.cli.rows import CsvOption, Format, LinesOption, chosen, status_text, status_time, write
from worker.cli.show import number
from worker.db import reading
from worker.domain.deliveries import left_by_retention
from worker.domain.text import plain
from worker.settings import Settings, read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping


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


class Kind(StrEnum):
    """The kinds of a bounce."""

    HARD = "hard"
    SOFT = "soft"
    IGNORED = "ignored"


_TIMES: Final = (
    "It is of what the log shows as “at”. As in 2026-12-01T09:00+01:00; UTC where it names no offset."
)


def moment(text: str) -> datetime:
    """Reads a time in ISO 8601.

    Raises:
        typer.BadParameter: It is not a time.
    """
    try:
        read = datetime.fromisoformat(text)
        return read.astimezone(UTC) if read.tzinfo else read.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(f"“{text}” is no time such as 2026-12-01T09:00+01:00.") from error


def log(
    delivery_id: DeliveryArgument,
    status: Annotated[Status | None, typer.Option(help="Only recipients with this status.")] = None,
    *,
    bounce: Annotated[Kind | None, typer.Option(help="Only bounces of this kind.")] = None,
    reason: Annotated[
        str | None, typer.Option(metavar="REASON", help="Only with this reason: user_unknown, …")
    ] = None,
    domain: Annotated[
        str | None, typer.Option(metavar="DOMAIN", help="Only addresses of this domain.")
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(metavar="TIME", parser=moment, help=f"Only from this time on. {_TIMES}"),
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(metavar="TIME", parser=moment, help="Only before this time.")
    ] = None,
    as_csv: CsvOption = False,
    as_json: LinesOption = False,
) -> None:
    """Print the sending log: every recipient with its status, its facts and the channel's reply."""
    form = chosen(as_csv=as_csv, as_json=as_json)
    only = reading.Only(status, bounce, reason, domain, since, until)
    asyncio.run(_log(read_settings(), delivery_id, only, form))


async def _log(settings: Settings, delivery_id: int, only: reading.Only, form: Format) -> None:
    async with database(settings) as db:
        found = await reading.audience(db, delivery_id)
        if found is None:
            raise CommandRefused(f"There is no delivery {delivery_id}.")
        recipients, purged_at = found
        if purged_at is not None:
            raise CommandRefused(left_by_retention(delivery_id, purged_at))
        await write(
            reading.sending_log(db, delivery_id, recipients, only),
            form,
            columns=await db.columns("read_sending_log"),
            head=("recipient", "address", "status", "attempt", "at", "reply"),
            cells=_cells,
        )


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        number(row["recipient"]),
        plain(row["address"]),
        status_text(row),
        str(row["attempt"]),
        status_time(row),
        plain(row["reply"] or row["reason"] or ""),
    ]
