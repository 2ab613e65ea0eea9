"""A broker that is short of memory takes no publishes: commands, the check and readiness say so at once."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import aio_pika
import pytest

from tests.integration.test_health import probed
from tests.support.brokers import own_broker, program
from tests.support.stack import Stack
from worker.amqp.messages import Outgoing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tests.support.processes import Sendoff
    from worker.db.pool import Database
    from worker.settings import Settings

SHORT = "The broker takes no publishes: it is short of memory or disk"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with own_broker(tmp_path_factory.mktemp("broker")) as servers:
        yield servers


@pytest.fixture
def memory(servers: Any) -> Iterator[Callable[[float], None]]:
    """Sets the share of the memory beyond which the broker is short of it."""

    def share(of_all: float) -> None:
        servers.wait(
            "memory", [program("rabbitmqctl"), "set_vm_memory_high_watermark", str(of_all)], **servers.erlang
        )

    yield share
    share(0.3)


@pytest.fixture
async def own(settings: Settings, db: Database, tmp_path: Path, servers: Any) -> AsyncIterator[Stack]:
    url = servers.settings()["SENDOFF_AMQP_URL"]
    ours = settings.model_copy(update={"amqp_url": url, "queue_prefix": ""})
    async with (
        await aio_pika.connect(url, timeout=10) as connection,
        Stack(ours, db, connection, tmp_path).set_up() as stack,
    ):
        yield stack


async def test_the_check_and_a_command_say_that_the_broker_takes_no_publishes(
    own: Stack, memory: Callable[[float], None], sendoff: Sendoff
) -> None:
    env = {"SENDOFF_AMQP_URL": own.settings.amqp_url, "SENDOFF_QUEUE_PREFIX": ""}
    await asyncio.to_thread(memory, 0)
    checked = await asyncio.to_thread(sendoff, "check", "--json", env=env)
    broker = next(f for f in json.loads(checked.stdout) if f["part"] == "broker")
    assert (checked.returncode, broker["standing"]) == (1, "wrong")
    assert broker["message"].startswith(SHORT)
    command = ("pause", "1", "--operator", "ana", "--reason", "x")
    asked = await asyncio.to_thread(sendoff, *command, env=env)
    assert (asked.returncode, SHORT in asked.stderr) == (3, True)
    await asyncio.to_thread(memory, 0.3)
    assert (await asyncio.to_thread(sendoff, "check", env=env)).returncode == 0


async def test_a_worker_that_cannot_publish_is_not_ready(own: Stack, memory: Callable[[float], None]) -> None:
    async with probed(own, "stats") as worker:
        await asyncio.to_thread(memory, 0)
        # Nobody is told before they publish, as a worker does when it answers.
        answer = Outgoing(b"{}", "answer")
        publishing = asyncio.create_task(worker.of.publisher.publish("", "nobody", [answer], mandatory=False))
        parts = await worker.until(503)
        assert parts["broker"].startswith(SHORT)
        await asyncio.to_thread(memory, 0.3)
        await worker.until(200)
        await publishing
