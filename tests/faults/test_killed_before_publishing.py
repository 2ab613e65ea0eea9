"""Killed between the commit and the publish: answers and events still come, and in order."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from contracts import routing
from contracts.commands import Reply
from tests.support.events import CONFIRMED, PAUSED, STARTED, STOPPED, heard, listener, outbox
from tests.support.processes import worker
from tests.support.proxy import CutProxy
from tests.support.stack import until

if TYPE_CHECKING:
    from tests.support.stack import Stack


async def test_an_answer_that_a_killed_worker_owed_is_sent_by_another(stack: Stack) -> None:
    numbers = [await stack.prepare(3), await stack.prepare(3)]
    async with CutProxy(stack.settings.amqp_url).running() as proxy:
        with worker(stack.settings, "confirm", AMQP_URL=proxy.url) as victim:
            await stack.confirm(numbers[0])
            proxy.mute()
            owed = asyncio.create_task(stack.confirm(numbers[1], message_id="owed"))
            await until(lambda: _answered(stack, "owed"))
            victim.send_signal(signal.SIGKILL)
            victim.wait()
        assert not owed.done()
        with worker(stack.settings, "confirm"):
            answer = await owed
    (recorded,) = await stack.rows("SELECT reply::text FROM sendoff.command WHERE command_id = 'owed'")
    assert Reply.model_validate_json(recorded["reply"]).model_dump(mode="json") == answer
    assert answer["status"] == "accepted"
    assert (
        len(await stack.rows("SELECT 1 FROM sendoff.delivery_page WHERE delivery_id = $1", numbers[1])) == 1
    )


async def test_events_that_a_killed_publisher_held_are_published_by_another(stack: Stack) -> None:
    queue = await listener(stack)
    held, free = await stack.prepare(3), await stack.prepare(3)
    async with CutProxy(stack.settings.amqp_url).running() as proxy, stack.running("confirm"):
        # The victim gives back what it holds after half its lease: the rest of the test has that long.
        with worker(stack.settings, "events", AMQP_URL=proxy.url, EVENT_LEASE=12) as victim:
            await stack.confirm(held)
            assert [e.event.value for e in await heard(queue, 2)] == [CONFIRMED, STARTED]
            await until(lambda: _told(stack))
            proxy.mute()
            await stack.control(routing.PAUSE, held)
            await until(lambda: _in_hand(stack))
            await stack.control(routing.STOP, held)
            async with stack.running("events"):
                # What is held holds up its own delivery and no other.
                await stack.confirm(free)
                assert {e.delivery_id for e in await heard(queue, 2)} == {free}
                # Heard first, deleted after: the other delivery's last event may still be in the outbox.
                await until(lambda: _two_held(stack))
                victim.send_signal(signal.SIGKILL)
                last = await heard(queue, 2)
                await until(lambda: _told(stack))
    assert [(e.delivery_id, e.event.value) for e in last] == [(held, PAUSED), (held, STOPPED)]


async def _answered(stack: Stack, command_id: str) -> bool:
    return bool(await stack.rows("SELECT 1 FROM sendoff.command WHERE command_id = $1", command_id))


async def _told(stack: Stack) -> bool:
    return await outbox(stack) == 0


async def _two_held(stack: Stack) -> bool:
    return await outbox(stack) == 2


async def _in_hand(stack: Stack) -> bool:
    held = "SELECT 1 FROM sendoff.event WHERE leased_until > now()"
    return bool(await stack.rows(held))
