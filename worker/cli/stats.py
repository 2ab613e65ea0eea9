"""`sendoff stats`: the recounted KPIs of a delivery, requested through the broker as a dashboard does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import typer
from pydantic import TypeAdapter, ValidationError

from contracts import routing
from contracts.commands import ComputeStats, Reply
from contracts.stats import Stats
from worker.amqp.pika.client import NoAnswer, ask_once, nobody_takes
from worker.cli.asking import (
    ANSWER_SECONDS,
    DeliveryArgument,
    JsonOption,
    TimeoutOption,
    show_reply,
    unreadable,
)
from worker.cli.common import CommandRefused, database
from worker.cli.show import console, kpi_table, number, title, to_json
from worker.db.pool import DatabaseUnreachable, SchemaMismatch
from worker.db.stats import Statistics, TookTooLong
from worker.db.stats import answer as counted
from worker.domain.deliveries import unknown_delivery
from worker.domain.text import words
from worker.settings import Settings, read_settings

if TYPE_CHECKING:
    from rich.console import Console

_ANSWER: Final[TypeAdapter[Stats | Reply]] = TypeAdapter(Stats | Reply)


def stats(
    delivery_id: DeliveryArgument, *, as_json: JsonOption = False, timeout: TimeoutOption = ANSWER_SECONDS
) -> None:
    """Recount a delivery and print its KPIs; where no worker answers, the recount is done here."""
    answer = asyncio.run(_stats(read_settings(), delivery_id, timeout))
    if isinstance(answer, Reply):
        show_reply(answer, as_json=as_json)
    elif as_json:
        typer.echo(to_json(answer.model_dump(mode="json")))
    else:
        _show(answer, console())


async def _stats(settings: Settings, delivery_id: int, seconds: float) -> Stats | Reply:
    try:
        data = await _asked(settings, delivery_id, seconds)
    except NoAnswer as error:
        try:
            return await _recounted(settings, delivery_id)
        except (DatabaseUnreachable, SchemaMismatch) as away:
            raise NoAnswer(f"{error} Nor could it be counted here. {away}") from error
    try:
        return _ANSWER.validate_json(data)
    except ValidationError as error:
        raise unreadable(error) from error


async def _asked(settings: Settings, delivery_id: int, seconds: float) -> bytes:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    if await nobody_takes(settings, routing.STATS_QUEUE, seconds=seconds):
        raise NoAnswer("No worker runs that takes requests for stats.")
    body = ComputeStats(delivery_id=delivery_id)
    left = max(deadline - loop.time(), 0.1)
    return await ask_once(settings, routing.COMPUTE_STATS, body, seconds=left)


async def _recounted(settings: Settings, delivery_id: int) -> Stats:
    """Recounts as the service does, over a connection of our own.

    Raises:
        CommandRefused: there is no such delivery.
        DatabaseUnreachable, SchemaMismatch: it cannot be counted from here.
    """
    async with database(settings) as db:
        statistics = Statistics(db)
        try:
            found = await statistics.recount(delivery_id, deadline=settings.stats_deadline)
        except TookTooLong:
            found = await statistics.live(delivery_id)
    if found is None:
        raise CommandRefused(unknown_delivery(delivery_id).message)
    typer.echo("No worker answers; counted here.", err=True)
    return counted(found)


def _show(answer: Stats, out: Console) -> None:
    out.print(title(answer.label, f"delivery {answer.delivery_id}", answer.channel, words(answer.state)))
    out.print(kpi_table(answer.model_dump()))
    causes = ", ".join(f"{number(count)} {words(cause)}" for cause, count in answer.excluded_by_cause.items())
    out.print(f"left out by the preparation: {number(answer.excluded)}{f' ({causes})' if causes else ''}")
    out.print(f"{'recounted' if answer.exact else 'live counters'} at {answer.as_of:%Y-%m-%d %H:%M:%S} UTC")
    if answer.drift:
        drift = ", ".join(f"{words(kpi)} {by:+,}" for kpi, by in answer.drift.items())
        out.print(f"The live counters had drifted and were repaired: {drift}.", style="yellow")
