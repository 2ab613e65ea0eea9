"""`sendoff proof`."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import structlog
import typer

from worker.cli.asking import DeliveryArgument, JsonOption
from worker.cli.common import CommandRefused, database
from worker.cli.show import to_json
from worker.domain.text import plain
from worker.operations import proof as operation
from worker.settings import Settings, read_settings


def proof(
    delivery_id: DeliveryArgument,
    to: Annotated[str, typer.Option("--to", metavar="ADDRESS", help="Who gets it.")],
    recipient: Annotated[
        int,
        typer.Option(
            "--as", metavar="RECIPIENT", min=1, max=2**31 - 1, help="The recipient whose message it is."
        ),
    ] = 1,
    *,
    as_json: JsonOption = False,
) -> None:
    """Send what a recipient would get to a tester, marked as a proof; it counts nowhere."""
    # What this prints is for its reader; what the channel logs is not of it.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    sent = asyncio.run(_prove(read_settings(), delivery_id, to, recipient))
    if as_json:
        answer = {"delivery_id": delivery_id, "recipient": sent.recipient, "to": to, "reply": sent.reply}
        typer.echo(to_json(answer))
    else:
        typer.echo(plain(f"Sent to {to} what recipient {sent.recipient} would get: {sent.reply}"))


async def _prove(settings: Settings, delivery_id: int, to: str, recipient: int) -> operation.Proof:
    async with database(settings) as db:
        try:
            return await operation.prove(settings, db, delivery_id, to, recipient)
        except operation.ProofRefused as error:
            raise CommandRefused(str(error)) from error
