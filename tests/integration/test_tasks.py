"""Every task is somebody's: one that dies stops the process, and what cannot be looked at is said."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import structlog.testing

from contracts import routing
from tests.support.proxy import CutProxy
from tests.support.stack import until
from worker.amqp.bulk.errors import ConnectionLost
from worker.amqp.bulk.keeper import Keeper
from worker.amqp.bulk.publisher import BulkPublisher
from worker.amqp.topology import QueueDepth
from worker.bootstrap import open_worker
from worker.db import listen
from worker.lifecycle import ServiceDied, run_services

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.stack import Stack
    from worker.bootstrap import Worker

SECONDS = 20


@asynccontextmanager
async def dying(stack: Stack, service: str, reason: str, **changes: Any) -> AsyncIterator[Worker]:
    """Runs a service that must die of a reason within the block, or soon after."""
    settings = stack.settings.model_copy(update=changes)
    async with asyncio.timeout(SECONDS), open_worker(settings) as worker:
        built = [*worker.build(service), *worker.background()]
        running = asyncio.create_task(run_services(built, asyncio.Event(), grace=SECONDS))
        await until(lambda: _present(worker))
        yield worker
        with pytest.raises(ServiceDied, match=reason):
            await running


@pytest.mark.parametrize("transport", ["bulk", "aio-pika"])
async def test_a_consumer_whose_task_dies_stops_the_process(stack: Stack, transport: str) -> None:
    async with dying(stack, "tracking", "was cancelled", transport=transport) as worker:
        (consumer,) = worker.consumers
        named = f"keep .*{consumer.queue}" if transport == "bulk" else f"acknowledge {consumer.queue}"
        _kill(named)


async def test_a_publisher_whose_task_dies_stops_the_process(stack: Stack) -> None:
    async with dying(stack, "stats", "The service “the connection that publishes” died"):
        _kill(r"keep sendoff .* publish$")


async def test_a_broker_that_refuses_us_when_we_come_back_stops_the_process(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        CutProxy(stack.settings.amqp_url).running() as proxy,
        dying(stack, "tracking", "refuses the user or password", amqp_url=proxy.url) as worker,
    ):
        (consumer,) = worker.consumers
        wrong = stack.settings.amqp_url.replace("://", "://nobody", 1)
        monkeypatch.setattr(consumer, "_url", wrong)
        proxy.cut()


async def test_the_connection_that_publishes_in_bulk_is_part_of_readiness_and_metrics(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stack.running("stats") as worker:
        broker = worker.probes(asyncio.Event())["broker"]
        connected = worker.registry.get_sample_value
        assert (await broker(), connected("sendoff_broker_connected")) == ("", 1)
        assert isinstance(worker.bulk_publisher, BulkPublisher)
        kept = worker.bulk_publisher._keeper  # noqa: SLF001 - one connection of three is lost
        monkeypatch.setattr(Keeper, "_again", _never)
        assert kept.current is not None
        kept.current.connection.end(ConnectionLost("by the test"))
        await until(lambda: _answers(broker, "The connection to the broker is lost."))
        assert connected("sendoff_broker_connected") == 0


async def test_a_send_queue_that_is_missing_is_said_once(stack: Stack) -> None:
    queue = stack.names.queue(routing.send_queue("null"))
    depth = QueueDepth(stack.connection)
    with structlog.testing.capture_logs() as logs:
        assert await depth.ready(queue) == 0
        await stack.channel.queue_delete(queue)
        assert [await depth.ready(queue) for _ in range(3)] == [None] * 3
        await stack.channel.declare_queue(queue, durable=True)
        assert await depth.ready(queue) == 0
    assert [(log["event"], log["queue"]) for log in logs] == [
        ("queue missing: run “sendoff migrate”", queue),
        ("queue is there again", queue),
    ]


async def test_a_listener_that_is_lost_says_so_once_and_listens_again(stack: Stack) -> None:
    stop = asyncio.Event()
    async with CutProxy(stack.settings.database_url).running() as proxy:
        wakener = listen.Wakener(proxy.url, listen.PAGES, timeout=SECONDS)
        with structlog.testing.capture_logs() as logs:
            async with asyncio.timeout(SECONDS), wakener.listening():
                await wakener.wait(stop, SECONDS)  # listening begins with a look
                proxy.cut()
                await until(lambda: _said(wakener, stop, logs, "not woken by the database, polling"))
                for _ in range(3):
                    await wakener.wait(stop, 0)
                proxy.mend()
                await until(lambda: _said(wakener, stop, logs, "woken by the database again"))
                async with stack.db.session() as session:
                    await session.connection.execute(f"NOTIFY {listen.PAGES}")
                await wakener.wait(stop, SECONDS)
    assert [log["event"] for log in logs] == [
        "not woken by the database, polling",
        "woken by the database again",
    ]


def _kill(name: str) -> None:
    """Cancels the task of a name, as a fault of the program would end it."""
    (task,) = [task for task in asyncio.all_tasks() if re.match(name, task.get_name())]
    task.cancel()


async def _never(_: object) -> None:
    await asyncio.Event().wait()


async def _present(worker: Worker) -> bool:
    return all([await consumer.present() for consumer in worker.consumers])


async def _answers(probe: Any, sentence: str) -> bool:
    return bool(await probe() == sentence)


async def _said(wakener: listen.Wakener, stop: asyncio.Event, logs: list[Any], event: str) -> bool:
    await wakener.wait(stop, 0)
    return any(log["event"] == event for log in logs)
