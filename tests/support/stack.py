"""A whole installation for one test: a database and queues of its own, services in this process."""

from __future__ import annotations

import asyncio
import json
import secrets
import uuid
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import aio_pika
from pydantic import TypeAdapter

from contracts import routing
from contracts.commands import Confirm, Control, Reply
from tests.support.database import SECONDS, created
from worker.amqp import topology
from worker.bootstrap import SERVICES, open_worker
from worker.channels.null import NULL
from worker.channels.registry import CHANNELS
from worker.db.migrate import migrate
from worker.db.pool import open_database
from worker.lifecycle import pause, run_services
from worker.operations import prepare as preparing
from worker.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from aio_pika.abc import AbstractChannel, AbstractConnection
    from pydantic import BaseModel

    from worker.bootstrap import Worker
    from worker.channels.protocol import Channel
    from worker.db.pool import Database
    from worker.settings import Settings

_REPLY: TypeAdapter[Any] = TypeAdapter(Reply)


async def until(condition: Callable[[], Awaitable[Any]], seconds: float = 30) -> Any:
    """Returns the condition's value as soon as it is true."""
    never = asyncio.Event()
    async with asyncio.timeout(seconds):
        while not (value := await condition()):
            await pause(never, 0.02)
    return value


class Stack:
    """What the tests do to an installation."""

    def __init__(
        self, settings: Settings, db: Database, connection: AbstractConnection, folder: Path
    ) -> None:
        self.settings = settings
        self.db = db
        self.connection = connection
        self.folder = folder
        self.names = routing.Names(settings.queue_prefix)
        self.channel: AbstractChannel

    @asynccontextmanager
    async def set_up(self) -> AsyncIterator[Stack]:
        queues = (await topology.declare(self.connection, self.names, self.settings.channels)).queues
        self.channel = await self.connection.channel(on_return_raises=True)
        await self.operator("ana", "start_deliveries")
        try:
            yield self
        finally:
            cleaner = await self.connection.channel()
            for queue in queues:
                await cleaner.queue_delete(queue)
            for exchange in vars(routing).values():
                if isinstance(exchange, str) and exchange.startswith("sendoff."):
                    await cleaner.exchange_delete(self.names.exchange(exchange))

    async def operator(self, name: str, *roles: str) -> None:
        async with self.db.transaction() as tx:
            await tx.execute("add_operator", name=name)
            for role in roles:
                await tx.execute("grant_role", name=name, role=role)

    async def prepare(
        self,
        recipients: int | Sequence[str],
        channel: str = "null",
        extra: str = "",
        delivery: int | None = None,
        columns: str = "address",
    ) -> int:
        """Prepares a delivery as `sendoff prepare` does, from the rows of a file; returns its number."""
        addresses = (
            [f"user{i}@example.org" for i in range(1, recipients + 1)]
            if isinstance(recipients, int)
            else recipients
        )
        mail = '[email]\nfrom = "news@example.org"\nsubject = "Hello {{ address }}"\ntext = "Hi"\n'
        file, csv = self.folder / "delivery.toml", self.folder / "recipients.csv"
        file.write_text(
            f'label = "Test"\nchannel = "{channel}"\n{extra}\n{mail if channel == "email" else ""}'
        )
        csv.write_text(f"{columns}\n" + "".join(f"{a}\n" for a in addresses))
        request = preparing.PreparationRequest(
            file, csv, "ana", delivery, self.settings.channels, tracker=bool(self.settings.tracker_url)
        )
        return (await preparing.prepare(self.db, request)).delivery_id

    @asynccontextmanager
    async def running(
        self, *services: str, channel: Channel | None = None, **changes: Any
    ) -> AsyncIterator[Worker]:
        """Runs services (none named: all) in this process; they must end well.

        Args:
            services: Their names.
            channel: Sends over this instead of the null channel.
            changes: Settings that differ from the stack's.
        """
        stop = asyncio.Event()
        channels = dict(CHANNELS)
        if channel is not None:
            channels["null"] = replace(NULL, open=lambda _: channel)
        async with open_worker(self.settings.model_copy(update=changes), channels, stop) as worker:
            built = [s for name in services or SERVICES for s in worker.build(name)]
            task = asyncio.create_task(run_services([*built, *worker.background()], stop, grace=10))
            ended = asyncio.create_task(stop.wait())
            try:
                yield worker
            finally:
                stop.set()
                await task
                ended.cancel()
                with suppress(asyncio.CancelledError):
                    await ended

    async def publish(
        self, exchange: str, routing_key: str, body: bytes | BaseModel | dict[str, Any], **properties: Any
    ) -> None:
        """Publishes as a foreign program would."""
        raw = (
            body if isinstance(body, bytes) else json.dumps(body).encode() if isinstance(body, dict) else None
        )
        if raw is None:
            raw = body.model_dump_json().encode()  # type: ignore[union-attr]
        target = await self.channel.get_exchange(self.names.exchange(exchange), ensure=False)
        message = aio_pika.Message(raw, delivery_mode=aio_pika.DeliveryMode.PERSISTENT, **properties)
        await target.publish(message, routing_key, timeout=10)

    async def request(
        self, routing_key: str, body: bytes | BaseModel | dict[str, Any], **properties: Any
    ) -> dict[str, Any]:
        """Publishes a command and returns the answer."""
        answers = await self.channel.declare_queue(exclusive=True, auto_delete=True)
        properties = {"message_id": str(uuid.uuid4()), "correlation_id": "c-1", **properties}
        await self.publish(routing.COMMANDS, routing_key, body, reply_to=answers.name, **properties)
        async with answers.iterator(no_ack=True, timeout=20) as messages:
            async for message in messages:
                assert message.correlation_id == properties["correlation_id"]
                answer: dict[str, Any] = json.loads(message.body)
                return answer
        raise AssertionError("no answer")

    async def confirm(self, delivery_id: int, preparation: int = 1, **properties: Any) -> dict[str, Any]:
        command = Confirm(delivery_id=delivery_id, operator="ana", preparation=preparation, definitive=True)
        return await self.request(routing.CONFIRM, command, **properties)

    async def control(self, routing_key: str, delivery_id: int, operator: str = "ana") -> dict[str, Any]:
        command = Control(delivery_id=delivery_id, operator=operator, reason="a test")
        return await self.request(routing_key, command)

    async def deployment(self, delivery_id: int) -> dict[str, Any]:
        """Returns the delivery's row of the view, its account checked."""
        row = await self.db.fetchrow("read_deployment", delivery_id=delivery_id)
        assert row is not None
        parts = ("sent", "bounced", "errors", "unknown", "excluded_late", "cancelled", "retrying", "sending")
        assert row["to_deliver"] == sum(row[p] for p in parts) + row["pending"]
        assert row["pending"] >= 0
        return dict(row)

    async def finished(
        self, delivery_id: int, state: str = "finished", seconds: float = 30
    ) -> dict[str, Any]:
        """Waits for a state; returns the deployment."""

        async def reached() -> dict[str, Any] | None:
            row = await self.deployment(delivery_id)
            return row if row["state"] == state else None

        found: dict[str, Any] = await until(reached, seconds)
        return found

    async def depth(self, queue: str) -> int:
        declared = await self.channel.declare_queue(self.names.queue(queue), passive=True)
        return declared.declaration_result.message_count or 0

    async def dead(self) -> list[tuple[bytes, str]]:
        """Takes all that is in the dead queue: bodies and reasons."""
        queue = await self.channel.get_queue(self.names.queue(routing.DEAD_QUEUE), ensure=False)
        found = []
        while (message := await queue.get(fail=False, no_ack=True)) is not None:
            found.append((message.body, str(message.headers.get(routing.HEADER_REASON))))
        return found

    async def rows(self, query: str, *args: object) -> list[dict[str, Any]]:
        """Reads with SQL of the test's own: what a dashboard would do."""
        async with self.db.session() as session:
            return [dict(r) for r in await session.connection.fetch(query, *args)]


@asynccontextmanager
async def installation(folder: Path) -> AsyncIterator[Stack]:
    """An installation without a test around it, on the servers of the environment."""
    settings = read_settings()
    name = f"sendoff_chaos_{secrets.token_hex(4)}"
    async with AsyncExitStack() as opened:
        url = await opened.enter_async_context(created(settings.database_url, name))
        await migrate(url, timeout=SECONDS)
        db = await open_database(
            url, size=8, connect_timeout=SECONDS, command_timeout=SECONDS, application="sendoff tests"
        )
        opened.push_async_callback(db.close)
        own = settings.model_copy(update={"database_url": url, "queue_prefix": f"c{secrets.token_hex(4)}"})
        connection = await opened.enter_async_context(await aio_pika.connect(own.amqp_url, timeout=10))
        yield await opened.enter_async_context(Stack(own, db, connection, folder).set_up())
