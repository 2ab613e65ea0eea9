"""`sendoff unknown`: settles unknown outcomes."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from worker.cli.asking import DeliveryArgument, JsonOption, OperatorOption, TokenOption, read_bearer
from worker.cli.common import CommandRefused, database
from worker.cli.show import number, to_json
from worker.db import reading
from worker.domain.settlement import Settlement
from worker.domain.text import words
from worker.operations import settle as service
from worker.settings import Settings, read_settings

_BECOME = {
    Settlement.RESEND: "sent to again",
    Settlement.SENT: "settled as sent",
    Settlement.ERROR: "settled as errors",
}


def unknown(
    delivery_id: DeliveryArgument,
    resolve: Annotated[Settlement, typer.Option(help="What they become.")],
    operator: OperatorOption,
    recipient: Annotated[
        list[int] | None,
        typer.Option(metavar="N", min=1, max=2**31 - 1, help="Only this one; may be repeated."),
    ] = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    token_file: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Settle unknown outcomes: send them again, or say that they were sent, or are errors."""
    if not yes and not sys.stdin.isatty():
        raise typer.BadParameter("There is no terminal to ask in; --yes settles them without asking.")
    settings = read_settings()
    named = tuple(sorted(set(recipient or ())))
    bearer = read_bearer(settings, operator, token_file)
    request = service.SettlementRequest(delivery_id, resolve, operator, named, bearer)
    done = asyncio.run(_settle(settings, request, yes=yes, stderr=as_json))
    if done.refused is not None and done.settled:
        raise CommandRefused(f"After {number(done.settled)} outcomes: {done.refused.message}")
    if done.refused is not None:
        raise CommandRefused(done.refused.message)
    if as_json:
        answer = {
            "delivery_id": delivery_id,
            "resolve": resolve,
            "settled": done.settled,
            "state": done.state,
        }
        typer.echo(to_json(answer))
        return
    what = f"Recipients {_BECOME[resolve]}: {number(done.settled)}"
    if not done.settled:
        what = (
            "Nothing to do: none of the recipients named is unknown"
            if named
            else "Nothing to do: nobody is unknown"
        )
    typer.echo(f"{what}; the delivery is {words(done.state)}." if done.state else f"{what}.")


async def _settle(
    settings: Settings, request: service.SettlementRequest, *, yes: bool, stderr: bool
) -> service.Settled:
    async with database(settings) as db:
        if not yes:
            row = await reading.deployment(db, request.delivery_id)
            count = len(request.recipients) or (row["unknown"] if row else 0)
            question = f"{_BECOME[request.how].capitalize()}: {number(count)} recipients. Go on?"
            if not typer.confirm(question, err=stderr):
                raise CommandRefused("Nothing was settled.")
        return await service.settle(db, request)
