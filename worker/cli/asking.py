"""What the commands that go through the broker share: one question, one answer, how it is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import unquote, urlsplit

import typer
from pydantic import ValidationError

from contracts.base import explain
from contracts.commands import Reply, Status
from contracts.routing import Names
from worker.amqp.client import ask
from worker.amqp.connection import open_connection
from worker.cli.common import CommandRefused
from worker.cli.show import console, plain

if TYPE_CHECKING:
    from contracts.base import Message
    from worker.settings import Settings

DeliveryArgument = Annotated[
    int, typer.Argument(metavar="ID", min=1, max=2**63 - 1, help="The delivery's number.")
]
OperatorOption = Annotated[str, typer.Option(metavar="NAME", help="Who asks.")]
TimeoutOption = Annotated[
    float, typer.Option(metavar="SECONDS", min=0.1, max=3600, help="How long to wait for the answer.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="The answer as one JSON object, for programs.")]

ANSWER_SECONDS: Final = 30.0
"""How long to wait for an answer where nothing else is asked for."""

ACCEPTABLE: Final = (Status.ACCEPTED, Status.FINALIZE)


async def question(settings: Settings, routing_key: str, body: Message, *, seconds: float) -> bytes:
    """Asks over a connection of its own, which ends with the answer: a person may think for long in between.

    Raises:
        BrokerUnreachable: The broker is not there.
        Unroutable, NoAnswer: As `worker.amqp.client.ask`.
    """
    user = urlsplit(settings.amqp_url).username
    connection = await open_connection(
        settings.amqp_url, name="sendoff command", timeout=min(settings.connect_timeout, seconds)
    )
    async with connection:
        return await ask(
            connection,
            Names(settings.queue_prefix),
            routing_key,
            body.model_dump_json().encode(),
            user_id=unquote(user) if user else None,
            timeout=seconds,
        )


def read_reply(answer: bytes) -> Reply:
    """Reads the reply to a command.

    Raises:
        CommandRefused: It is not one; the versions do not fit.
    """
    try:
        return Reply.model_validate_json(answer)
    except ValidationError as error:
        raise unreadable(error) from error


def unreadable(error: ValidationError) -> CommandRefused:
    """Returns what to raise for an answer that does not fit its model."""
    return CommandRefused(f"The answer could not be read, is the worker of another version? {explain(error)}")


def show_reply(reply: Reply, *, as_json: bool) -> None:
    """Prints the last reply of a command and ends it with status 1 where it was refused."""
    accepted = reply.status in ACCEPTABLE
    if as_json:
        typer.echo(reply.model_dump_json())
    else:
        console(stderr=not accepted).print(plain(reply.message))
    if not accepted:
        raise typer.Exit(1)
