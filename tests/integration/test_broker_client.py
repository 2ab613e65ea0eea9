"""Asking through the broker: the answer comes back, and what goes wrong has a sentence that is true."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aio_pika
import pytest

from contracts import routing
from worker.amqp.messages import Unroutable
from worker.amqp.pika.client import NoAnswer, ask
from worker.amqp.pika.connection import open_connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aio_pika.abc import AbstractIncomingMessage, AbstractRobustConnection

    from tests.support.stack import Stack

    Handler = Callable[[AbstractIncomingMessage], Awaitable[None]]


@pytest.fixture
async def connection(stack: Stack) -> AsyncIterator[AbstractRobustConnection]:
    async with await open_connection(stack.settings.amqp_url, name="test", timeout=10) as opened:
        yield opened


@asynccontextmanager
async def answering(stack: Stack, handler: Handler) -> AsyncIterator[None]:
    """Takes requests for statistics, as the service does."""
    queue = await stack.channel.get_queue(stack.names.queue(routing.STATS_QUEUE))
    tag = await queue.consume(handler, no_ack=True)
    yield
    await queue.cancel(tag)


async def answer(stack: Stack, message: AbstractIncomingMessage, body: bytes, correlation: str) -> None:
    assert message.reply_to
    await stack.channel.default_exchange.publish(
        aio_pika.Message(body, correlation_id=correlation), message.reply_to
    )


async def test_a_question_is_what_upstream_would_publish_and_its_own_answer_comes_back(
    stack: Stack, connection: AbstractRobustConnection
) -> None:
    asked: list[AbstractIncomingMessage] = []

    async def handle(message: AbstractIncomingMessage) -> None:
        asked.append(message)
        await answer(stack, message, b"another's", "another")
        await answer(stack, message, message.body.upper(), message.correlation_id or "")

    user = connection.url.user  # type: ignore[attr-defined]
    async with answering(stack, handle):
        got = await ask(connection, stack.names, routing.COMPUTE_STATS, b"body", user_id=user, timeout=10)
    assert got == b"BODY"
    (question,) = asked
    assert question.delivery_mode is aio_pika.DeliveryMode.PERSISTENT
    assert question.content_type == routing.CONTENT_TYPE
    assert question.type == routing.COMPUTE_STATS
    assert question.user_id == user
    assert question.app_id == "sendoff"
    assert question.headers[routing.HEADER_SCHEMA_VERSION] == routing.SCHEMA_VERSION
    assert question.message_id
    assert question.timestamp


async def test_without_an_answer_the_command_stays_queued_and_its_id_is_told(
    stack: Stack, connection: AbstractRobustConnection
) -> None:
    with pytest.raises(NoAnswer, match=r"within 0\.3 s: .* stays queued .* message_id is") as raised:
        await ask(connection, stack.names, routing.COMPUTE_STATS, b"{}", timeout=0.3)
    queue = await stack.channel.get_queue(stack.names.queue(routing.STATS_QUEUE))
    queued = await queue.get(no_ack=True, timeout=10)
    assert queued is not None
    assert str(queued.message_id) in str(raised.value)


@pytest.mark.parametrize("names", ["other", None])
async def test_asking_where_no_queue_listens_says_to_migrate(
    stack: Stack, connection: AbstractRobustConnection, names: str | None
) -> None:
    key = routing.COMPUTE_STATS if names else "delivery.nonsense"
    with pytest.raises(Unroutable, match="run “sendoff migrate”"):
        await ask(connection, routing.Names(names) if names else stack.names, key, b"{}", timeout=10)


async def test_an_answer_that_comes_after_the_connection_was_lost_still_arrives(
    stack: Stack, connection: AbstractRobustConnection
) -> None:
    taken: asyncio.Future[AbstractIncomingMessage] = asyncio.get_running_loop().create_future()

    async def handle(message: AbstractIncomingMessage) -> None:
        taken.set_result(message)

    async with answering(stack, handle):
        question = asyncio.create_task(ask(connection, stack.names, routing.COMPUTE_STATS, b"{}", timeout=20))
        message = await asyncio.wait_for(taken, 10)
        back = asyncio.Event()
        connection.reconnect_callbacks.add(lambda *_: back.set())
        await connection.transport.connection.close(ConnectionError("cut"))  # type: ignore[union-attr]
        await asyncio.wait_for(back.wait(), 10)
        await answer(stack, message, b"late", message.correlation_id or "")
        assert await question == b"late"
