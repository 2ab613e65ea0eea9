"""The duties of the scheduler do not wait for each other."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aio_pika

from contracts import routing
from tests.support.database import change
from tests.support.deliveries import confirmed, counted
from tests.support.proxy import CutProxy
from tests.support.stack import until
from worker.amqp import topology
from worker.db.deliveries import Deliveries

if TYPE_CHECKING:
    import pytest

    from tests.support.stack import Stack


async def test_a_delivery_whose_claims_are_held_keeps_no_other_from_being_finished(stack: Stack) -> None:
    held, done = await confirmed(stack, 1), await confirmed(stack, 1)
    moved = "SELECT sendoff.count_moves($1, ARRAY[('pending', 'sent', 1)::sendoff.move])"
    over = "UPDATE sendoff.delivery_record SET valid_until = now() WHERE delivery_id = $1"
    async with stack.running("schedule"):
        async with stack.db.transaction() as tx:
            await tx.execute("lock_claims", delivery_id=held)
            await change(stack, over, held)
            await until(lambda: waits_for_a_lock(stack))
            await change(stack, moved, done)
            await until(lambda: counted(stack, done, state="finished"))
            assert await counted(stack, held, state="in_progress", cancelled=0)
        await until(lambda: counted(stack, held, state="finished", cancelled=1))


async def waits_for_a_lock(stack: Stack) -> bool:
    query = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    return bool(await stack.rows(query))


async def test_only_deliveries_with_nothing_open_are_looked_at_to_be_finished(stack: Stack) -> None:
    open_one, done = await confirmed(stack, 1), await confirmed(stack, 1)
    moved = "SELECT sendoff.count_moves($1, ARRAY[('pending', 'sent', 1)::sendoff.move])"
    await change(stack, moved, done)
    assert await Deliveries(stack.db).complete() == [done]
    assert await counted(stack, open_one, state="in_progress")


async def test_a_broker_that_hangs_is_waited_for_once_and_not_once_a_question(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topology, "_ANSWER_SECONDS", 1)
    async with CutProxy(stack.settings.amqp_url).running() as proxy:
        connection = await aio_pika.connect_robust(proxy.url, timeout=10)
        depth = topology.QueueDepth(connection)
        queue = stack.names.queue(routing.send_queue("null"))
        assert await depth.ready(queue) == 0
        proxy.mute()
        # The first question ends the AMQP channel, and the others end with it at once.
        async with asyncio.timeout(20):
            assert {await depth.ready(queue) for _ in range(200)} == {None}
        proxy.cut()
        await connection.close()
