"""Commands of different deliveries do not wait for each other; those of one keep their order."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from contracts import routing
from tests.support.database import waits_for_a_row
from tests.support.stack import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.stack import Stack


@asynccontextmanager
async def held(stack: Stack, *numbers: int) -> AsyncIterator[None]:
    """Somebody's transaction holds the rows of some deliveries."""
    statement = "SELECT FROM sendoff.delivery_record WHERE delivery_id = ANY ($1) FOR UPDATE"
    async with stack.db.transaction() as tx:
        await tx.connection.execute(statement, list(numbers))
        yield


async def confirm(stack: Stack, number: int) -> None:
    """Publishes a confirm, and does not wait for the answer."""
    body = {"delivery_id": number, "operator": "ana", "preparation": 1, "definitive": True}
    await stack.publish(routing.COMMANDS, routing.CONFIRM, body, message_id=f"confirm-{number}")


async def answered(stack: Stack, count: int) -> bool:
    return len(await stack.rows("SELECT FROM sendoff.command_log WHERE status = 'accepted'")) == count


async def test_a_stop_is_answered_while_the_confirms_of_other_deliveries_are_held_up(stack: Stack) -> None:
    held_up = [await stack.prepare(1) for _ in range(12)]
    other = await stack.prepare(1)
    async with stack.running("confirm"):
        async with held(stack, *held_up):
            for number in held_up:
                await confirm(stack, number)
            await until(lambda: waits_for_a_row(stack))
            assert (await stack.control(routing.STOP, other))["state"] == "stopped"
            (logged,) = await stack.rows("SELECT command FROM sendoff.command_log")
            assert logged["command"] == routing.STOP
        await until(lambda: answered(stack, len(held_up) + 1))
    assert await stack.dead() == []


async def test_commands_of_one_delivery_keep_their_order_though_another_has_a_place_first(
    stack: Stack,
) -> None:
    held_up = [await stack.prepare(1) for _ in range(4)]
    number, other = await stack.prepare(1), await stack.prepare(1)
    async with stack.running("confirm"):
        async with held(stack, *held_up):
            for waiting in (*held_up, number):
                await confirm(stack, waiting)
            body = {"delivery_id": number, "operator": "ana", "reason": "a test"}
            await stack.publish(routing.COMMANDS, routing.PAUSE, body, message_id="pause")
            # What came before this stop was delivered before it; a pause out of its order would be refused.
            assert (await stack.control(routing.STOP, other))["state"] == "stopped"
        await until(lambda: answered(stack, len(held_up) + 3))
    assert (await stack.deployment(number))["state"] == "paused"


async def test_a_command_waits_for_a_lock_for_seconds_and_is_set_apart(stack: Stack) -> None:
    number = await stack.prepare(1)
    async with stack.running("confirm"), held(stack, number):
        body = {"delivery_id": number, "operator": "ana", "reason": "a test"}
        await stack.publish(routing.COMMANDS, routing.STOP, body, message_id="c-1")
        (_, reason), *_ = await until(stack.dead)
    assert "lock timeout" in reason
