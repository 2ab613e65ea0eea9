"""Events: every move is told, in order for each delivery, by any number of publishers."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from contracts import routing
from tests.support.events import (
    CONFIRMED,
    FINISHED,
    PAUSED,
    RESUMED,
    SCHEDULED,
    STARTED,
    STOPPED,
    heard,
    listener,
    outbox,
)
from tests.support.stack import until
from worker.db import deliveries
from worker.domain.states import Move

if TYPE_CHECKING:
    from tests.support.stack import Stack


async def _outbox_empty(stack: Stack) -> bool:
    return await outbox(stack) == 0


async def test_every_move_is_told_with_who_why_and_the_state(stack: Stack) -> None:
    queue = await listener(stack)
    number = await stack.prepare(3, extra=SCHEDULED)
    async with stack.running():
        await stack.confirm(number)
        await stack.control(routing.PAUSE, number)
        await stack.control(routing.PAUSE, number)
        await stack.control(routing.RESUME, number)
        async with stack.db.transaction() as tx:
            await tx.connection.execute("UPDATE sendoff.delivery_record SET contact_date = now()")
        await stack.finished(number)
        events = await heard(queue, 5)
        await until(lambda: _outbox_empty(stack))
    assert [(e.event.value, e.state.value, e.operator, e.reason) for e in events] == [
        (CONFIRMED, "start_pending", "ana", None),
        (PAUSED, "paused", "ana", "a test"),
        (RESUMED, "start_pending", "ana", "a test"),
        (STARTED, "in_progress", None, None),
        (FINISHED, "finished", None, None),
    ]
    moves = await stack.rows(
        "SELECT number, at FROM sendoff.delivery_transition"
        " WHERE to_state NOT IN ('preparing', 'ready') ORDER BY number"
    )
    assert [(e.number, e.at) for e in events] == [(m["number"], m["at"]) for m in moves]
    assert [e.event_id for e in events] == [f"{number}-{m['number']}" for m in moves]


async def test_an_event_that_nobody_listens_to_is_no_error(stack: Stack) -> None:
    number = await stack.prepare(3)
    only = await listener(stack, STOPPED)
    async with stack.running("confirm", "events"):
        await stack.confirm(number)
        await stack.control(routing.STOP, number)
        (event,) = await heard(only, 1)
        await until(lambda: _outbox_empty(stack))
    assert (event.event.value, event.state.value) == (STOPPED, "stopped")


async def test_what_is_rolled_back_is_not_told(stack: Stack) -> None:
    number = await stack.prepare(3)
    with suppress(ZeroDivisionError):
        async with stack.db.transaction() as tx:
            assert await deliveries.move(tx, number, Move.STOP, operator="ana")
            assert await tx.connection.fetchval("SELECT count(*) FROM sendoff.event") == 1
            raise ZeroDivisionError
    assert await outbox(stack) == 0


async def test_several_publishers_keep_the_order_of_each_delivery(stack: Stack) -> None:
    queue = await listener(stack)
    numbers = [await stack.prepare(1, extra=SCHEDULED) for _ in range(20)]
    keys = (routing.PAUSE, routing.RESUME, routing.PAUSE, routing.RESUME, routing.STOP)
    expected = [CONFIRMED, PAUSED, RESUMED, PAUSED, RESUMED, STOPPED]

    async def live(number: int) -> None:
        await stack.confirm(number)
        for key in keys:
            await stack.control(key, number)

    async with stack.running("confirm", "events"), stack.running("events"), stack.running("events"):
        await asyncio.gather(*(live(number) for number in numbers))
        events = await heard(queue, len(numbers) * len(expected))
        await until(lambda: _outbox_empty(stack))
    by_delivery: dict[int, list[Any]] = {}
    for event in events:
        by_delivery.setdefault(event.delivery_id, []).append(event)
    assert set(by_delivery) == set(numbers)
    for told in by_delivery.values():
        assert [e.event.value for e in told] == expected
        assert [e.number for e in told] == sorted({e.number for e in told})


async def test_a_backlog_is_told_in_order(stack: Stack) -> None:
    number = await stack.prepare(3)
    async with stack.running("confirm"):
        await stack.confirm(number)
        for key in (routing.PAUSE, routing.RESUME) * 10:
            await stack.control(key, number)
    assert await outbox(stack) == 22
    queue = await listener(stack)
    async with stack.running("events"), stack.running("events"):
        events = await heard(queue, 22)
    numbers = [e.number for e in events]
    assert numbers == sorted(set(numbers))
