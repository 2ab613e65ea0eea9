"""The duties of the scheduler do not wait for each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.database import change
from tests.support.deliveries import confirmed, counted
from tests.support.stack import until
from worker.db.deliveries import Deliveries

if TYPE_CHECKING:
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
