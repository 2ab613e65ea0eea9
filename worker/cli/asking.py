"""Shared by the commands that go through the broker: sends a command, waits for its answer, shows it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from pydantic import ValidationError

from contracts.base import explain
from contracts.commands import Reply, Status
from worker.cli.common import CommandRefused
from worker.cli.show import console, to_json
from worker.domain.authority import check_bearer
from worker.domain.text import plain

if TYPE_CHECKING:
    from worker.domain.authority import Bearer
    from worker.settings import Settings

DeliveryArgument = Annotated[
    int, typer.Argument(metavar="ID", min=1, max=2**63 - 1, help="The delivery's number.")
]
OperatorOption = Annotated[str, typer.Option(metavar="NAME", help="Who asks.")]
TimeoutOption = Annotated[
    float, typer.Option(metavar="SECONDS", min=0.1, max=3600, help="How long to wait for the answer.")
]
TokenOption = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", help="Your signed token; otherwise SENDOFF_TOKEN is used."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="The answer as JSON, for programs.")]

ANSWER_SECONDS: Final = 30.0
"""Seconds to wait for an answer by default."""

ACCEPTABLE: Final = (Status.ACCEPTED, Status.FINALIZE)


def read_token(settings: Settings, file: Path | None) -> str | None:
    """Returns the operator's token, from a file or from the settings; None if there is none.

    Raises:
        typer.BadParameter: The file cannot be read, or is empty.
    """
    if file is None:
        return settings.token.get_secret_value().strip() if settings.token else None
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file} cannot be read: it is to hold the token alone.") from error
    if not token:
        raise typer.BadParameter(f"{file} is empty: it is to hold the token.")
    return token


def read_bearer(settings: Settings, operator: str, token_file: Path | None) -> Bearer | None:
    """Reads the bearer of the operator's token; None if tokens are not required.

    Raises:
        CommandRefused: There is no token, it is not valid, or it belongs to another operator.
    """
    from worker.auth.tokens import TokenRefused, open_verifier  # noqa: PLC0415 - 0.15 s to load, for few commands

    verifier = open_verifier(settings)
    if verifier is None:
        return None
    try:
        token = read_token(settings, token_file)
        if token is None:
            raise CommandRefused(
                "The command carries no token: put it into SENDOFF_TOKEN, or name its file by --token-file."
            )
        bearer = verifier.verify(token)
    except TokenRefused as error:
        raise CommandRefused(str(error)) from error
    refused = check_bearer(bearer, operator)
    if refused is not None:
        raise CommandRefused(refused.message)
    return bearer


def read_reply(answer: bytes) -> Reply:
    """Reads the reply to a command.

    Raises:
        CommandRefused: It is not a reply: the versions of Sendoff differ.
    """
    try:
        return Reply.model_validate_json(answer)
    except ValidationError as error:
        raise unreadable(error) from error


def unreadable(error: ValidationError) -> CommandRefused:
    """Returns the error for an answer that does not fit its model."""
    return CommandRefused(f"The answer could not be read, is the worker of another version? {explain(error)}")


def show_reply(reply: Reply, *, as_json: bool) -> None:
    """Prints the last reply of a command; exits with status 1 if the command was refused."""
    accepted = reply.status in ACCEPTABLE
    if as_json:
        typer.echo(to_json(reply.model_dump(mode="json")))
    else:
        console(stderr=not accepted).print(plain(reply.message))
    if not accepted:
        raise typer.Exit(1)
