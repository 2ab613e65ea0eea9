"""`sendoff quarantine …` and `sendoff denylist …`: who is not written to, and why."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from worker.cli.asking import JsonOption, OperatorOption, TokenOption, read_bearer
from worker.cli.common import CommandRefused, database
from worker.cli.log import moment
from worker.cli.rows import CsvOption, Format, LinesOption, chosen, write
from worker.cli.show import number, to_json
from worker.cli.suppression_files import Rows, entry_of, reading
from worker.db import suppression
from worker.db.suppression import Kind
from worker.domain.audience import AddressInvalid
from worker.domain.recipients_file import RecipientsFileInvalid
from worker.domain.suppression import SuppressionCause
from worker.domain.text import plain, words
from worker.operations import suppress as service
from worker.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from worker.operations.suppress import Changed

_STATEMENT_SECONDS: Final = 1_800
_FAULTS_SHOWN: Final = 10

ChannelOption = Annotated[str, typer.Option(metavar="CHANNEL", help="The channel.")]
AnyChannelOption = Annotated[
    str | None, typer.Option("--channel", metavar="CHANNEL", help="Only of this channel.")
]
CauseOption = Annotated[
    str | None, typer.Option(metavar="CAUSE", help="Only with this cause: hard_bounce, …")
]
Addresses = Annotated[list[str], typer.Argument(metavar="ADDRESS...", help="The addresses.")]
Profiles = Annotated[list[str], typer.Argument(metavar="PROFILE...", help="The profiles, as in profile_id.")]
ReasonOption = Annotated[str | None, typer.Option(metavar="TEXT", help="Why, in your words.")]
UntilOption = Annotated[
    datetime | None,
    typer.Option(
        metavar="TIME", parser=moment, help="Until when, as in 2026-12-01T09:00+01:00; for ever without it."
    ),
]
AddressFile = Annotated[
    Path,
    typer.Argument(
        metavar="FILE.csv", help="A header with “address”; perhaps “cause”, “reason” and “expires_at”."
    ),
]
ProfileFile = Annotated[
    Path,
    typer.Argument(
        metavar="FILE.csv", help="A header with “profile_id”; perhaps “cause”, “reason” and “expires_at”."
    ),
]

quarantine = typer.Typer(help="Addresses that are not written to.", no_args_is_help=True)
denylist = typer.Typer(help="Profiles that are not written to.", no_args_is_help=True)


@quarantine.command("list")
def list_quarantine(
    channel: AnyChannelOption = None,
    cause: CauseOption = None,
    *,
    as_csv: CsvOption = False,
    as_json: LinesOption = False,
) -> None:
    """Show the addresses with cause, reason, delivery, time and expiry."""
    _list(Kind.QUARANTINE, channel, cause, chosen(as_csv=as_csv, as_json=as_json))


@denylist.command("list")
def list_denylist(
    channel: AnyChannelOption = None,
    cause: CauseOption = None,
    *,
    as_csv: CsvOption = False,
    as_json: LinesOption = False,
) -> None:
    """Show the profiles with cause, reason, delivery, time and expiry."""
    _list(Kind.DENYLIST, channel, cause, chosen(as_csv=as_csv, as_json=as_json))


@quarantine.command("export")
def export_quarantine(channel: AnyChannelOption = None, cause: CauseOption = None) -> None:
    """Write all entries as CSV, as `import` reads them."""
    _list(Kind.QUARANTINE, channel, cause, Format.CSV)


@denylist.command("export")
def export_denylist(channel: AnyChannelOption = None, cause: CauseOption = None) -> None:
    """Write all entries as CSV, as `import` reads them."""
    _list(Kind.DENYLIST, channel, cause, Format.CSV)


@quarantine.command("add")
def add_quarantine(
    addresses: Addresses,
    operator: OperatorOption,
    channel: ChannelOption = "email",
    reason: ReasonOption = None,
    *,
    until: UntilOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put addresses into quarantine."""
    _add(
        Kind.QUARANTINE,
        addresses,
        _asked(Kind.QUARANTINE, operator, channel, token_file),
        reason,
        until,
        as_json=as_json,
    )


@denylist.command("add")
def add_denylist(
    profiles: Profiles,
    operator: OperatorOption,
    channel: ChannelOption = "email",
    reason: ReasonOption = None,
    *,
    until: UntilOption = None,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put profiles on the denylist."""
    _add(
        Kind.DENYLIST,
        profiles,
        _asked(Kind.DENYLIST, operator, channel, token_file),
        reason,
        until,
        as_json=as_json,
    )


@quarantine.command("remove")
def remove_quarantine(
    addresses: Addresses,
    operator: OperatorOption,
    channel: ChannelOption = "email",
    *,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take addresses out of quarantine, and forget their errors."""
    _remove(addresses, _asked(Kind.QUARANTINE, operator, channel, token_file), as_json=as_json)


@denylist.command("remove")
def remove_denylist(
    profiles: Profiles,
    operator: OperatorOption,
    channel: ChannelOption = "email",
    *,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take profiles off the denylist."""
    _remove(profiles, _asked(Kind.DENYLIST, operator, channel, token_file), as_json=as_json)


@quarantine.command("import")
def import_quarantine(
    file: AddressFile,
    operator: OperatorOption,
    channel: ChannelOption = "email",
    *,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put the addresses of a file into quarantine, all or none but those that cannot be read."""
    _import(file, _asked(Kind.QUARANTINE, operator, channel, token_file), as_json=as_json)


@denylist.command("import")
def import_denylist(
    file: ProfileFile,
    operator: OperatorOption,
    channel: ChannelOption = "email",
    *,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put the profiles of a file on the denylist, all or none but those that cannot be read."""
    _import(file, _asked(Kind.DENYLIST, operator, channel, token_file), as_json=as_json)


def _asked(kind: Kind, operator: str, channel: str, token_file: Path | None) -> service.Act:
    return service.Act(kind, channel, operator, read_bearer(read_settings(), operator, token_file))


def _list(kind: Kind, channel: str | None, cause: str | None, form: Format) -> None:
    async def run() -> None:
        async with database(read_settings()) as db:
            columns = [name for name in await db.columns(f"read_{kind}") if name != "key"]
            head = (
                "channel",
                columns[1].replace("_id", ""),
                "cause",
                "reason",
                "delivery",
                "since",
                "until",
                "by",
            )
            await write(
                suppression.entries(db, kind, channel, cause), form, columns=columns, head=head, cells=_cells
            )

    asyncio.run(run())


def _cells(row: Mapping[str, Any]) -> list[str]:
    who = row["address"] if "address" in row else row["profile_id"]
    until = f"{row['expires_at']:%Y-%m-%d}" if row["expires_at"] else ""
    delivery = str(row["delivery_id"] or "")
    since = f"{row['since']:%Y-%m-%d}"
    by = plain(row["added_by"] or "")
    return [
        plain(row["channel"]),
        plain(who),
        words(row["cause"]),
        plain(row["reason"] or ""),
        delivery,
        since,
        until,
        by,
    ]


def _add(
    kind: Kind,
    names: list[str],
    act: service.Act,
    reason: str | None,
    until: datetime | None,
    *,
    as_json: bool,
) -> None:
    try:
        entries = [
            entry_of(kind, act.channel, name, SuppressionCause.MANUAL, reason, until) for name in names
        ]
    except AddressInvalid as error:
        raise typer.BadParameter(str(error)) from error
    changed = _run(lambda db: service.add(db, act, entries))
    _say(changed, "added", "there already", as_json=as_json)


def _remove(names: list[str], act: service.Act, *, as_json: bool) -> None:
    keys = [name.strip().lower() if act.kind is Kind.QUARANTINE else name.strip() for name in names]
    changed = _run(lambda db: service.remove(db, act, keys))
    _say(changed, "removed", "not there", as_json=as_json)


def _import(file: Path, act: service.Act, *, as_json: bool) -> None:
    try:
        with reading(file, act.kind, act.channel) as rows:
            changed = _run(lambda db: service.add(db, act, rows))
    except RecipientsFileInvalid as error:
        raise CommandRefused(f"{file} cannot be imported: {error}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CommandRefused(f"{file} cannot be read: {error}.") from error
    _say(changed, "added", "there already", as_json=as_json, rows=rows)


def _run(do: Callable[[Any], Any]) -> Changed:
    async def run() -> Changed:
        async with database(read_settings(), command_timeout=_STATEMENT_SECONDS) as db:
            try:
                changed: Changed = await do(db)
            except service.SuppressionRefused as error:
                raise CommandRefused(plain(str(error))) from error
            return changed

    return asyncio.run(run())


def _say(changed: Changed, done: str, rest: str, *, as_json: bool, rows: Rows | None = None) -> None:
    unread = len(rows.faults) + rows.more_faults if rows else 0
    if as_json:
        counts = {done: changed.changed, rest.replace(" ", "_"): changed.given - changed.changed}
        typer.echo(to_json(counts | ({"unread": unread} if rows else {})))
    else:
        others = number(changed.given - changed.changed)
        typer.echo(f"{done.capitalize()}: {number(changed.changed)}; {rest}: {others}.")
    if rows is None or not unread:
        return
    for line, fault in rows.faults[:_FAULTS_SHOWN]:
        typer.echo(f"Line {line} was left out: {plain(fault)}", err=True)
    if unread > _FAULTS_SHOWN:
        typer.echo(f"… and {number(unread - _FAULTS_SHOWN)} more lines.", err=True)
