"""Sends a command through the broker and waits for its answer, as upstream services do."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from aio_pika import DeliveryMode
from aio_pika import Message as Publishing
from aio_pika.exceptions import AMQPChannelError, PublishError
from aiormq.exceptions import ChannelAccessRefused

from contracts.routing import (
    AUTHORIZATION,
    COMMANDS,
    CONTENT_TYPE,
    HEADER_SCHEMA_VERSION,
    SCHEMA_VERSION,
    Names,
)
from worker.amqp.errors import BrokerForbids, BrokerUnreachable
from worker.amqp.messages import APP_ID, Unroutable
from worker.amqp.pika.connection import close_soon, open_connection, unless_blocked
from worker.amqp.pika.failures import ERRORS, classify, ignoring_outage
from worker.domain.failures import Failure

if TYPE_CHECKING:
    from aio_pika.abc import AbstractIncomingMessage, AbstractRobustConnection, HeadersType

    from contracts.base import Message
    from worker.settings import Settings


class NoAnswer(Exception):
    """The broker has the command, and nobody answered it in time."""


async def ask(
    connection: AbstractRobustConnection,
    names: Names,
    routing_key: str,
    body: bytes,
    *,
    user_id: str | None = None,
    token: str | None = None,
    command_id: str | None = None,
    timeout: float,  # noqa: ASYNC109 - the sentence of the error names it
    began: float | None = None,
) -> bytes:
    """Publishes a command and waits for its answer.

    The queue for the answer is exclusive to the connection. After a lost connection it is declared again,
    under the same name.

    Args:
        connection: A connection that nobody else uses at the same time.
        names: The installation's names.
        routing_key: The kind of command: one of the routing keys of `sendoff.commands`.
        body: The command as JSON.
        user_id: The broker user of the connection. The broker checks it, and refuses any other.
        token: The operator's signed token, if the workers require one.
        command_id: The `message_id`; None for a new one. The same one gets the answer that it got before.
        timeout: Seconds for everything together.
        began: When they began, as a time of the event loop; None for now.

    Returns:
        The answer's body.

    Raises:
        NoAnswer: The command is queued, and there was no answer in time. It will still be carried out.
        BrokerForbids: The user may not publish commands, or not declare a queue for the answer.
        Unroutable: The broker has no queue for the command, which is lost.
        BrokerUnreachable: The broker takes no publishes, or the connection was lost before it confirmed the
            command; nobody knows whether it has it.
    """
    command_id = command_id or str(uuid.uuid4())
    headers: HeadersType = {HEADER_SCHEMA_VERSION: SCHEMA_VERSION}
    if token is not None:
        headers[AUTHORIZATION] = f"Bearer {token}"
    published = False
    try:
        async with asyncio.timeout_at((began or asyncio.get_running_loop().time()) + timeout):
            channel = await connection.channel(on_return_raises=True)
            answers = await channel.declare_queue(exclusive=True, auto_delete=True)
            answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

            async def receive(message: AbstractIncomingMessage) -> None:
                if message.correlation_id == command_id and not answer.done():
                    answer.set_result(message.body)

            await answers.consume(receive, no_ack=True)
            exchange = await channel.get_exchange(names.exchange(COMMANDS), ensure=False)
            publishing = exchange.publish(
                Publishing(
                    body,
                    content_type=CONTENT_TYPE,
                    delivery_mode=DeliveryMode.PERSISTENT,
                    message_id=command_id,
                    correlation_id=command_id,
                    reply_to=answers.name,
                    type=routing_key,
                    timestamp=datetime.now(UTC),
                    app_id=APP_ID,
                    user_id=user_id,
                    headers=headers,
                ),
                routing_key,
            )

            async def answered() -> bytes:
                nonlocal published
                await publishing
                published = True
                return await answer

            doubt = f" It may have the command or not; its message_id is {command_id}."
            return await unless_blocked(connection, answered(), doubt)
    except ChannelAccessRefused as error:
        raise BrokerForbids(error) from error
    except (PublishError, AMQPChannelError) as error:
        raise Unroutable(
            f"The broker has no queue for {routing_key} behind {names.exchange(COMMANDS)}:"
            " run “sendoff migrate”, and see that SENDOFF_QUEUE_PREFIX is the workers' own."
        ) from error
    except ERRORS as error:
        if classify(error) is Failure.BROKEN:
            raise
        if not published:
            raise BrokerUnreachable(
                f"The broker did not confirm the command ({str(error) or type(error).__name__}):"
                f" it may have it or not; its message_id is {command_id}."
            ) from error
        raise NoAnswer(
            f"Nobody answered within {timeout:g} s: no worker takes {routing_key} now, or all are busy."
            f" The command stays queued and will be carried out; its message_id is {command_id}."
        ) from error


async def ask_once(
    settings: Settings,
    routing_key: str,
    body: Message,
    *,
    seconds: float,
    token: str | None = None,
    command_id: str | None = None,
) -> bytes:
    """Asks over a new connection and closes it after the answer: a person may think long before the next one.

    Args:
        settings: The settings.
        routing_key: The kind of command.
        body: The command.
        seconds: The time to wait for the answer, with the time to connect.
        token: The operator's signed token, if there is one.
        command_id: As in `ask`.

    Raises:
        BrokerUnreachable: The broker cannot be reached.
        Unroutable, NoAnswer, BrokerForbids: As `ask`.
    """
    began = asyncio.get_running_loop().time()
    connection = await open_connection(
        settings.amqp_url, name="sendoff command", timeout=min(settings.connect_timeout, seconds)
    )
    try:
        return await ask(
            connection,
            Names(settings.queue_prefix),
            routing_key,
            body.model_dump_json().encode(),
            user_id=broker_user(settings.amqp_url),
            token=token,
            command_id=command_id,
            timeout=seconds,
            began=began,
        )
    finally:
        await close_soon(connection)


async def nobody_takes(settings: Settings, queue: str, *, seconds: float) -> bool:
    """Returns whether a queue is there and nobody consumes from it.

    Args:
        settings: The settings.
        queue: Its name without the prefix.
        seconds: The time to ask.

    Raises:
        BrokerUnreachable: The broker cannot be reached.
    """
    connection = await open_connection(
        settings.amqp_url, name="sendoff command", timeout=min(settings.connect_timeout, seconds)
    )
    try:
        with ignoring_outage():
            async with asyncio.timeout(seconds):
                channel = await connection.channel()
                named = Names(settings.queue_prefix).queue(queue)
                found = await channel.declare_queue(named, passive=True)
                return found.declaration_result.consumer_count == 0
    except AMQPChannelError:
        pass  # it is not there, or is not ours to see: who asks is told then
    finally:
        await close_soon(connection)
    return False


def broker_user(url: str) -> str | None:
    """Returns the user in a broker address; None if a certificate identifies the user."""
    parts = urlsplit(url)
    if "external" in (name.lower() for name in parse_qs(parts.query).get("auth", [])):
        return None
    return unquote(parts.username or "") or "guest"
