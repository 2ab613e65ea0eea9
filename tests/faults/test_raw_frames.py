"""Whatever octets a publisher writes, its message costs nobody else anything.

`SENDOFF_TEST_RAW` is how many odd messages each queue gets, `SENDOFF_TEST_SEED` what they are made of.
"""

from __future__ import annotations

import asyncio
import json
import os
from random import Random
from typing import TYPE_CHECKING

import pytest

from contracts import routing
from tests.support import tracking
from tests.support.processes import worker
from tests.support.proxy import CutProxy
from tests.support.raw_frames import Raw, RawPublisher, odd
from tests.support.stack import until
from tests.support.tracking import event

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.stack import Stack

MESSAGES = int(os.environ.get("SENDOFF_TEST_RAW", "30"))
SEED = int(os.environ.get("SENDOFF_TEST_SEED", "1"))
HONEST = 20
"""How often an honest command, request and event goes between odd messages."""
PLACES = (
    (routing.COMMANDS, routing.CONFIRM, routing.COMMANDS_QUEUE),
    (routing.COMMANDS, routing.STOP, routing.COMMANDS_QUEUE),
    (routing.COMMANDS, routing.COMPUTE_STATS, routing.STATS_QUEUE),
    (routing.CLAIMS, "null", routing.CLAIMS_QUEUE),
    (routing.RESULTS, routing.SENT, routing.SENT_QUEUE),
    (routing.RESULTS, routing.BOUNCE, routing.BOUNCE_QUEUE),
    (routing.RESULTS, routing.ERROR, routing.ERROR_QUEUE),
    (routing.TRACKING, routing.OPEN, routing.TRACKING_QUEUE),
    (routing.SENDS, "null", routing.send_queue("null")),
)


def _messages(stack: Stack) -> Iterator[Raw]:
    random = Random(SEED)  # noqa: S311 - repeatable
    for _ in range(MESSAGES):
        for exchange, key, queue in PLACES:
            yield odd(random, stack.names.exchange(exchange), key, stack.names.queue(queue))


@pytest.mark.timeout(120 + MESSAGES * 8)
@pytest.mark.parametrize("transport", ["bulk", "aio-pika"])
async def test_no_message_takes_down_its_neighbours(stack: Stack, tmp_path: Path, transport: str) -> None:
    messages = list(_messages(stack))
    every = max(len(messages) // HONEST, 1)
    log = tmp_path / "log"
    honest: set[bytes] = set()
    raw = RawPublisher(stack.settings.amqp_url)
    async with CutProxy(stack.settings.amqp_url).running() as proxy:
        env = {"AMQP_URL": proxy.url, "TRANSPORT": transport, "LOG_FORMAT": "json"}
        with worker(stack.settings, log=log, **env) as process:
            numbers = [await stack.prepare(5)]
            assert (await stack.confirm(numbers[0]))["status"] == "accepted"
            await stack.finished(numbers[0])
            connections, taken = proxy.connections, 0
            for at, message in enumerate(messages):
                taken += await raw.publish(message)
                if at % every == 0:
                    numbers.append(await stack.prepare(5))
                    assert (await stack.confirm(numbers[-1]))["status"] == "accepted"
                    opened = event(numbers[0], 1, "open", f"honest-{at}")
                    honest.add(json.dumps([opened]).encode())
                    await tracking.publish(stack, opened)
                    answer = await stack.request(routing.COMPUTE_STATS, {"delivery_id": numbers[0]})
                    assert (answer["to_deliver"], answer["sent"]) == (5, 5)
            for number in numbers:
                assert (await stack.finished(number))["sent"] == 5
            await until(lambda: _drained(stack))
            found = await stack.rows("SELECT event_id FROM sendoff.tracking_log ORDER BY 1")
            assert len([row for row in found if row["event_id"].startswith("honest-")]) == len(honest)
            assert process.poll() is None
            process.terminate()
            assert await asyncio.to_thread(process.wait, 60) == 0
        assert proxy.connections == connections
    await raw.close()
    assert taken > len(messages) * 0.9
    lines = [json.loads(line) for line in (await asyncio.to_thread(log.read_text)).splitlines()]
    assert not [line for line in lines if line["level"] == "error" or "lost" in line["event"]]
    assert not honest & {body for body, _ in await stack.dead()}


async def _drained(stack: Stack) -> bool:
    return not any([await stack.depth(queue) for _, _, queue in PLACES])
