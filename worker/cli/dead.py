"""`sendoff dead …`: shows, replays and drops messages that no service could handle."""

from __future__ import annotations

import asyncio
import base64
import math
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.table import Table

from contracts.routing import AUTHORIZATION, Names
from worker.amqp.pika.connection import open_connection
from worker.amqp.pika.dead import LOOKED_AT, CannotReplay, DeadLetter, DeadLetters, open_dead_letters
from worker.cli.asking import JsonOption
from worker.cli.common import CommandRefused
from worker.cli.show import console, grid, number, to_json
from worker.domain.text import plain
from worker.settings import Settings, read_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_PROPERTIES: Final = ("message_id", "correlation_id", "reply_to", "type", "app_id", "content_type")

app = typer.Typer(
    help="The dead queue: messages that could not be handled, each with its reason.", no_args_is_help=True
)

Position = Annotated[
    int, typer.Argument(metavar="N", min=1, max=LOOKED_AT, help="Its position, as “list” shows it.")
]
OnePosition = Annotated[
    int | None, typer.Argument(metavar="[N]", min=1, max=LOOKED_AT, help="Its position, as “list” shows it.")
]
AllOption = Annotated[bool, typer.Option("--all", help="Every message that is there now.")]


@app.command("list")
def list_(
    limit: Annotated[
        int, typer.Option(min=1, max=LOOKED_AT, help="The most to show, the oldest first.")
    ] = 100,
    as_json: JsonOption = False,
) -> None:
    """Show what is in the dead queue; nothing is removed."""
    asyncio.run(_list(read_settings(), limit, as_json=as_json))


@app.command()
def show(position: Position, as_json: JsonOption = False) -> None:
    """Show one message wholly: why it is there, its properties, headers and body."""
    asyncio.run(_show(read_settings(), position, as_json=as_json))


@app.command()
def replay(position: OnePosition = None, everything: AllOption = False, as_json: JsonOption = False) -> None:
    """Publish a message again where it came from, and remove it once the broker has it."""
    _one_or_all(position, everything=everything)
    kept = asyncio.run(_replay(read_settings(), position, as_json=as_json))
    if kept:
        raise typer.Exit(1)


@app.command()
def drop(
    position: OnePosition = None,
    everything: AllOption = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove a message permanently."""
    _one_or_all(position, everything=everything)
    if not yes and not sys.stdin.isatty():
        raise typer.BadParameter("There is no terminal to ask in; --yes drops without asking.")
    settings = read_settings()
    seen = None
    if not yes:
        total, seen = asyncio.run(_look(settings, position))
        what = f"all {number(total)} messages" if seen is None else f"“{plain(seen.origin.reason)}”"
        if not typer.confirm(f"Drop {what} permanently?", err=as_json):
            raise CommandRefused("Nothing was dropped.")
    dropped = asyncio.run(_drop(settings, position, seen))
    typer.echo(to_json({"dropped": dropped}) if as_json else f"Dropped: {number(dropped)}.")


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[DeadLetters]:
    connection = await open_connection(
        settings.amqp_url, name="sendoff dead", timeout=settings.connect_timeout
    )
    async with (
        connection,
        open_dead_letters(
            connection, Names(settings.queue_prefix), timeout=settings.connect_timeout
        ) as letters,
    ):
        yield letters


async def _each(letters: DeadLetters, position: int | None) -> AsyncIterator[DeadLetter]:
    """Yields every message, or only the message at a position."""
    while letter := await letters.take():
        if position is None or letter.position == position:
            yield letter
        if letter.position == position:
            return
    if position is not None:
        held = "is empty" if letters.total == 0 else f"has {number(letters.total)} messages"
        raise CommandRefused(f"The dead queue {held}: there is none at position {position}.")


async def _list(settings: Settings, limit: int, *, as_json: bool) -> None:
    found: list[dict[str, Any]] = []
    async with _opened(settings) as letters:
        while len(found) < limit and (letter := await letters.take()):
            found.append(_brief(letter))
        total = letters.total
    if as_json:
        typer.echo(to_json({"total": total, "messages": found}))
        return
    if not found:
        typer.echo("The dead queue is empty.")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("", "exchange", "key", "says", "bytes", "message_id"):
        table.add_column(heading, no_wrap=True, justify="right" if heading in ("", "bytes") else "left")
    table.add_column("reason", overflow="fold")
    for one in found:
        table.add_row(
            *(plain(str(_or_unknown(one[k]))) for k in ("position", "exchange", "routing_key")),
            "the broker" if one["vouched"] else "a header",
            str(one["bytes"]),
            plain(one["message_id"] or "–"),
            plain(one["reason"]),
        )
    console().print(table)
    if total > len(found):
        typer.echo(f"{number(len(found))} of {number(total)}; --limit shows more.")


async def _show(settings: Settings, position: int, *, as_json: bool) -> None:
    async with _opened(settings) as letters:
        async for letter in _each(letters, position):
            whole = _brief(letter) | _whole(letter)
    if as_json:
        typer.echo(to_json(whole))
        return
    body = whole.pop("body", None)
    table = grid()
    for name, value in (whole | whole.pop("headers")).items():
        table.add_row(plain(name), plain(str(_or_unknown(value))))
    console().print(table)
    typer.echo()
    lines = (body if body is not None else whole["body_base64"]).splitlines()
    typer.echo("\n".join(map(plain, lines)))


async def _replay(settings: Settings, position: int | None, *, as_json: bool) -> int:
    replayed, kept = 0, []
    async with _opened(settings) as letters:
        async for letter in _each(letters, position):
            try:
                await letters.replay(letter)
            except CannotReplay as error:
                kept.append({"position": letter.position, "because": str(error)})
            else:
                replayed += 1
    if as_json:
        typer.echo(to_json({"replayed": replayed, "kept": kept}))
    else:
        typer.echo(f"Replayed: {number(replayed)}.")
        for one in kept:
            typer.echo(plain(f"Kept, number {one['position']}: {one['because']}"), err=True)
    return len(kept)


async def _look(settings: Settings, position: int | None) -> tuple[int, DeadLetter | None]:
    async with _opened(settings) as letters:
        if position is None:
            return letters.total, None
        found = [letter async for letter in _each(letters, position)]
        return letters.total, found[0]


async def _drop(settings: Settings, position: int | None, seen: DeadLetter | None) -> int:
    dropped = 0
    async with _opened(settings) as letters:
        async for letter in _each(letters, position):
            if seen is not None and not _same(letter, seen):
                raise CommandRefused(
                    "The dead queue has changed meanwhile, and nothing was dropped. List it again."
                )
            await letters.drop(letter)
            dropped += 1
    return dropped


def _one_or_all(position: int | None, *, everything: bool) -> None:
    if (position is None) is not everything:
        raise typer.BadParameter("Name a message by its position, or say --all.")


def _same(one: DeadLetter, other: DeadLetter) -> bool:
    return (one.message.body, one.message.message_id, one.origin) == (
        other.message.body,
        other.message.message_id,
        other.origin,
    )


def _brief(letter: DeadLetter) -> dict[str, Any]:
    return {
        "position": letter.position,
        "reason": letter.origin.reason,
        "exchange": letter.origin.exchange,
        "routing_key": letter.origin.routing_key,
        "vouched": letter.origin.vouched,
        "bytes": len(letter.message.body),
        "message_id": letter.message.message_id,
    }


def _whole(letter: DeadLetter) -> dict[str, Any]:
    """Returns the properties that are set, the headers, and the body: as text if possible, else as base64."""
    message = letter.message
    whole: dict[str, Any] = {k: getattr(message, k) for k in _PROPERTIES if getattr(message, k)}
    if message.timestamp:
        whole["timestamp"] = message.timestamp.isoformat()
    whole["headers"] = {
        k: "(not shown)" if k == AUTHORIZATION else _shown(v) for k, v in message.headers.items()
    }
    try:
        whole["body"] = message.body.decode()
    except UnicodeDecodeError:
        whole["body_base64"] = base64.b64encode(message.body).decode()
    return whole


def _shown(value: object) -> object:
    """Returns a header's value as JSON has it: octets as text, a number that is none as its name."""
    if isinstance(value, (bytes, bytearray)):
        return value.decode(errors="replace")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list):
        return [_shown(one) for one in value]
    if isinstance(value, dict):
        return {name: _shown(one) for name, one in value.items()}
    return value


def _or_unknown(value: object) -> object:
    return "unknown" if value is None else value
