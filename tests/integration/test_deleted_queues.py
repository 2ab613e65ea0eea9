"""What is deleted at the broker is declared again, and what was in hand is published again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from contracts import routing
from tests.support.channels import Gated
from tests.support.stack import until
from worker.amqp import topology
from worker.amqp.topology import Part

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from tests.support.processes import Sendoff
    from tests.support.stack import Stack
    from worker.bootstrap import Worker

SEND_QUEUE = routing.send_queue("null")
PARTS = [
    *(
        Part("queue", name)
        for name in (*routing.BINDINGS, routing.CLAIMS_QUEUE, SEND_QUEUE, routing.DEAD_QUEUE)
    ),
    *(Part("exchange", name) for name in (routing.COMMANDS, routing.SENDS, routing.CLAIMS, routing.RESULTS)),
    *(Part("exchange", name) for name in (routing.TRACKING, routing.EVENTS, routing.DEAD)),
]
PUBLISHED_IN_BULK = {routing.SENDS, SEND_QUEUE, routing.RESULTS, *routing.RESULT_QUEUES}
RECIPIENTS = 300
LIMITS: dict[str, Any] = {
    "page_look_after": 0.3,
    "tick": 0.05,
    "page_size": 100,
    "send_batch": 50,
    "breaker_minimum": 1_000,
}


def deleted(stack: Stack, part: Part) -> Awaitable[object]:
    """Deletes a queue with all its messages, or an exchange."""
    if part.kind == "queue":
        return stack.channel.queue_delete(stack.names.queue(part.name))
    return stack.channel.exchange_delete(stack.names.exchange(part.name))


async def ready(worker: Worker) -> bool:
    probes = worker.probes(asyncio.Event())
    return not any([await probe() for probe in probes.values()])


async def two_dead(stack: Stack) -> bool:
    return await stack.depth(routing.DEAD_QUEUE) == 2


async def complete(stack: Stack) -> bool:
    return not await topology.missing(stack.connection, stack.names, stack.settings.channels)


@pytest.mark.parametrize(
    ("transport", "part"),
    [("bulk", part) for part in PARTS]
    + [("aio-pika", part) for part in PARTS if part.name in PUBLISHED_IN_BULK],
    ids=str,
)
async def test_a_delivery_under_way_ends_well_whatever_is_deleted(
    stack: Stack, transport: str, part: Part
) -> None:
    number = await stack.prepare(RECIPIENTS)
    channel = Gated()
    async with stack.running(channel=channel, transport=transport, **LIMITS) as worker:
        await stack.confirm(number)
        await until(channel.held)
        await deleted(stack, part)
        channel.gate.set()
        row = await stack.finished(number)
        assert (row["sent"], row["bounced"], row["errors"]) == (100, 100, 100)
        await until(lambda: complete(stack))
        await until(lambda: ready(worker))
        # All that was bound is bound again.
        other = await stack.prepare(3)
        assert (await stack.confirm(other))["status"] == "accepted"
        await stack.finished(other)
        await stack.publish(routing.TRACKING, routing.OPEN, b"rubbish")
        await stack.publish(routing.RESULTS, routing.BOUNCE, b"rubbish")
        await until(lambda: two_dead(stack))


async def test_a_process_starts_where_a_queue_is_missing(stack: Stack) -> None:
    number = await stack.prepare(10)
    for part in PARTS[:-1]:
        await deleted(stack, part)
    async with stack.running():
        await until(lambda: complete(stack))
        stack.channel = await stack.connection.channel(on_return_raises=True)
        await stack.confirm(number)
        assert (await stack.finished(number))["sent"] == 10


@pytest.mark.usefixtures("stack")
async def test_a_broker_with_nothing_of_ours_is_not_set_up_by_a_process(sendoff: Sendoff) -> None:
    done = await asyncio.to_thread(sendoff, "run", "stats", env={"SENDOFF_QUEUE_PREFIX": "elsewhere"})
    assert done.returncode == 3
    assert "no exchange and no queue of ours" in done.stderr
    assert "“elsewhere.sendoff.commands”" in done.stderr
    assert "Run “sendoff migrate”, or see SENDOFF_QUEUE_PREFIX." in done.stderr
