"""`sendoff confirm`, `pause`, `resume` and `stop`: an operator's commands, published as upstream would."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar
from zoneinfo import ZoneInfo

import typer
from pydantic import ValidationError

from contracts import routing
from contracts.base import explain
from contracts.commands import Confirm, Control, Status
from worker.amqp.pika.client import NoAnswer, ask_once
from worker.cli.asking import (
    ANSWER_SECONDS,
    DeliveryArgument,
    JsonOption,
    OperatorOption,
    TimeoutOption,
    TokenOption,
    read_bearer,
    read_reply,
    read_token,
    show_reply,
)
from worker.cli.common import CommandRefused, database
from worker.cli.show import console, grid, number, to_json
from worker.domain.schedule import duration_text
from worker.domain.text import plain, words
from worker.operations import hold
from worker.settings import read_settings

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from rich.table import Table

    from contracts.base import Message
    from contracts.commands import Reply, SecondApproval, Summary

Command = TypeVar("Command", Confirm, Control)

_DECLINED: Final = "Nothing was confirmed, and nothing is sent."
_INTERRUPTED: Final = 130

ReasonOption = Annotated[str, typer.Option(metavar="TEXT", help="Why; kept with the change of state.")]


def confirm(
    delivery_id: DeliveryArgument,
    operator: OperatorOption,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for the OK.")] = False,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
    timeout: TimeoutOption = ANSWER_SECONDS,
) -> None:
    """Confirm the send of a prepared delivery: show what will happen, ask for the OK, print the answer."""
    if not yes and not sys.stdin.isatty():
        raise typer.BadParameter("There is no terminal to ask for the OK in; --yes sends without asking.")
    named = {"delivery_id": delivery_id, "operator": operator}
    try:
        reply = _command(routing.CONFIRM, _read(Confirm, **named, definitive=False), timeout, token_file)
    except NoAnswer as error:
        raise NoAnswer(f"{error} It only asks what would be sent. {_DECLINED}") from error
    if reply.status is Status.FINALIZE and reply.summary is not None:
        _ask_for_ok(reply.summary, yes=yes, stderr=as_json)
        seen = reply.summary.preparation
        definitive = _read(Confirm, **named, preparation=seen, definitive=True)
        reply = _command(routing.CONFIRM, definitive, timeout, token_file)
    show_reply(reply, as_json=as_json)


def pause(
    operator: OperatorOption,
    reason: ReasonOption,
    delivery_id: Annotated[
        int | None,
        typer.Argument(metavar="ID", min=1, max=2**63 - 1, help="The delivery's number.", show_default=False),
    ] = None,
    *,
    everything: Annotated[
        bool,
        typer.Option("--all", help="All deliveries; straight in the database, also while no worker runs."),
    ] = False,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
    timeout: TimeoutOption = ANSWER_SECONDS,
) -> None:
    """Pause a delivery: nothing more is sent until it is resumed."""
    if (delivery_id is None) != everything:
        raise typer.BadParameter("Name one delivery, or --all.")
    if delivery_id is None:
        _pause_all(operator, reason, token_file, as_json=as_json)
        return
    _control(routing.PAUSE, delivery_id, operator, reason, token_file, as_json=as_json, timeout=timeout)


def resume(
    delivery_id: DeliveryArgument,
    operator: OperatorOption,
    reason: ReasonOption,
    *,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
    timeout: TimeoutOption = ANSWER_SECONDS,
) -> None:
    """Let a paused delivery go on."""
    _control(routing.RESUME, delivery_id, operator, reason, token_file, as_json=as_json, timeout=timeout)


def stop(
    delivery_id: DeliveryArgument,
    operator: OperatorOption,
    reason: ReasonOption,
    *,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
    timeout: TimeoutOption = ANSWER_SECONDS,
) -> None:
    """End a delivery permanently: what was not sent is cancelled."""
    _control(routing.STOP, delivery_id, operator, reason, token_file, as_json=as_json, timeout=timeout)


def summary_table(summary: Summary) -> Table:
    """Returns what a person must see before the OK."""
    table = grid()
    table.add_row("delivery", plain(summary.label))
    table.add_row("channel", plain(summary.channel))
    table.add_row("goes to", _people(summary.to_deliver))
    left_out = ", ".join(f"{number(count)} {words(cause)}" for cause, count in summary.excluded.items())
    table.add_row("left out", left_out or "nobody")
    if summary.contact_date is None:
        table.add_row("begins", "as soon as confirmed")
    else:
        table.add_row("begins", _local(summary.contact_date, summary.time_zone))
    if summary.valid_until is not None:
        table.add_row("may go on until", _local(summary.valid_until, summary.time_zone))
    if summary.late_limit is not None:
        table.add_row("if late", f"skipped when it cannot start within {duration_text(summary.late_limit)}")
    for place, wave in enumerate(summary.waves, 1):
        if wave.due_at is not None:
            when = _local(wave.due_at, summary.time_zone)
        else:
            when = f"{duration_text(wave.due_after)} after the start" if wave.due_after else "at the start"
        table.add_row(f"wave {place}", f"{number(wave.recipients)} recipients, {when}")
    if summary.wave_count > len(summary.waves):
        table.add_row("", f"and {number(summary.wave_count - len(summary.waves))} more waves")
    if summary.messages_per_hour is not None:
        table.add_row("not faster than", f"{number(summary.messages_per_hour)} messages an hour")
    if summary.second_approval is not None:
        table.add_row("approvals", _approvals(summary.second_approval, summary.time_zone))
    table.add_row("preparation", str(summary.preparation))
    for finding in summary.findings:
        table.add_row("blocks" if finding.blocks else "look at", plain(finding.message))
    return table


def _control(
    routing_key: str,
    delivery_id: int,
    operator: str,
    reason: str,
    token_file: Path | None,
    *,
    as_json: bool,
    timeout: float,
) -> None:
    command = _read(Control, delivery_id=delivery_id, operator=operator, reason=reason)
    show_reply(_command(routing_key, command, timeout, token_file), as_json=as_json)


def _pause_all(operator: str, reason: str, token_file: Path | None, *, as_json: bool) -> None:
    settings = read_settings()
    # The number is of none: the rules for operator and reason are those of every command.
    _read(Control, delivery_id=1, operator=operator, reason=reason)
    request = hold.HoldRequest(operator, reason, read_bearer(settings, operator, token_file))

    async def act() -> hold.Held:
        async with database(settings) as db:
            return await hold.pause_all(db, request)

    held = asyncio.run(act())
    if held.refused is not None:
        raise CommandRefused(held.refused.message)
    if as_json:
        typer.echo(to_json({"paused": held.deliveries}))
    else:
        named = ", ".join(map(str, held.deliveries))
        typer.echo(f"Paused: {named}." if named else "Nothing to pause: no delivery could go on.")


def _approvals(approvals: SecondApproval, zone: str | None) -> str:
    needed = f"it goes to more than {number(approvals.above)} recipients: two operators must confirm it"
    if approvals.first_by is None or approvals.first_at is None or approvals.first_until is None:
        return f"{needed}, and none has"
    return (
        f"{needed}; {plain(approvals.first_by)} has at {_local(approvals.first_at, zone)}, and another must"
        f" by {_local(approvals.first_until, zone)}"
    )


def _people(count: int) -> str:
    return f"{number(count)} recipient{'' if count == 1 else 's'}"


def _question(summary: Summary) -> str:
    if summary.second_approval is not None and summary.second_approval.first_by is None:
        return f"Give the first of the two OKs that send it to {_people(summary.to_deliver)}?"
    return f"Send it to {_people(summary.to_deliver)}?"


def _ask_for_ok(summary: Summary, *, yes: bool, stderr: bool) -> None:
    console(stderr=stderr).print(summary_table(summary))
    try:
        agreed = yes or typer.confirm(_question(summary), err=stderr)
    except typer.Abort:
        typer.echo(f"\n{_DECLINED}", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    if not agreed:
        raise CommandRefused(_DECLINED)


def _command(routing_key: str, command: Message, seconds: float, token_file: Path | None) -> Reply:
    settings = read_settings()
    token = read_token(settings, token_file)
    answer = asyncio.run(ask_once(settings, routing_key, command, seconds=seconds, token=token))
    return read_reply(answer)


def _read(model: type[Command], **fields: Any) -> Command:  # noqa: ANN401 - the model checks them
    try:
        return model(**fields)
    except ValidationError as error:
        raise typer.BadParameter(explain(error)) from error


def _local(moment: datetime, zone: str | None) -> str:
    name = zone or "UTC"
    return f"{moment.astimezone(ZoneInfo(name)):%A %d %B %Y, %H:%M:%S} {name}"
