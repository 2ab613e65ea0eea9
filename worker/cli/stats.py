"""`sendoff stats`: the recounted KPIs of a delivery, requested through the broker as a dashboard does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import typer
from pydantic import TypeAdapter, ValidationError

from contracts import routing
from contracts.commands import ComputeStats, Reply
from contracts.stats import Stats
from worker.amqp.pika.client import ask_once
from worker.cli.asking import (
    ANSWER_SECONDS,
    DeliveryArgument,
    JsonOption,
    TimeoutOption,
    show_reply,
    unreadable,
)
from worker.cli.show import console, kpi_table, number, title, to_json
from worker.domain.text import words
from worker.settings import read_settings

if TYPE_CHECKING:
    from rich.console import Console

_ANSWER: Final[TypeAdapter[Stats | Reply]] = TypeAdapter(Stats | Reply)


def stats(
    delivery_id: DeliveryArgument, *, as_json: JsonOption = False, timeout: TimeoutOption = ANSWER_SECONDS
) -> None:
    """Recount a delivery and print its KPIs."""
    body = ComputeStats(delivery_id=delivery_id)
    data = asyncio.run(ask_once(read_settings(), routing.COMPUTE_STATS, body, seconds=timeout))
    try:
        answer = _ANSWER.validate_json(data)
    except ValidationError as error:
        raise unreadable(error) from error
    if isinstance(answer, Reply):
        show_reply(answer, as_json=as_json)
    elif as_json:
        typer.echo(to_json(answer.model_dump(mode="json")))
    else:
        _show(answer, console())


def _show(answer: Stats, out: Console) -> None:
    out.print(title(answer.label, f"delivery {answer.delivery_id}", answer.channel, words(answer.state)))
    out.print(kpi_table(answer.model_dump()))
    causes = ", ".join(f"{number(count)} {words(cause)}" for cause, count in answer.excluded_by_cause.items())
    out.print(f"left out by the preparation: {number(answer.excluded)}{f' ({causes})' if causes else ''}")
    out.print(f"{'recounted' if answer.exact else 'live counters'} at {answer.as_of:%Y-%m-%d %H:%M:%S} UTC")
    if answer.drift:
        drift = ", ".join(f"{words(kpi)} {by:+,}" for kpi, by in answer.drift.items())
        out.print(f"The live counters had drifted and were repaired: {drift}.", style="yellow")
