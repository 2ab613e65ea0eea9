"""The project on the local servers: deliveries ready to be confirmed, and services in processes of their own.

A run has a database of its own, cloned from one in which its delivery was prepared, and new processes: no run
carries what the one before has left, and the time for preparing is spent once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg

from contracts.commands import Confirm, Reply, Status
from contracts.routing import CONFIRM, Names, send_queue
from tests.bench.machine import CaseFailed
from tests.bench.smtp_client import CONTENTS
from tests.bench.tracker_links import BASE, KEYS
from worker.amqp import topology
from worker.amqp.pika.client import ask
from worker.amqp.pika.connection import open_connection
from worker.bootstrap import SERVICES
from worker.db.migrate import migrate
from worker.db.pool import open_database
from worker.lifecycle import pause
from worker.operations import prepare as preparing
from worker.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aio_pika.abc import AbstractRobustConnection

    from tests.bench.machine import Processes
    from worker.db.pool import Database
    from worker.settings import Settings

HOT = ("fanout", "send", "results")
"""Services that may run several times in a bench; the others share one process."""
WARM_UP, DELIVERY = 1, 2
"""The deliveries of a clone: one recipient, and as many as asked."""
SECONDS = 600
DOMAINS = ("mail.example.org",)

TRACKER = {"SENDOFF_TRACKER_URL": BASE, "SENDOFF_TRACKER_KEYS": KEYS}
"""What the services of a tracked delivery need."""


@dataclass(frozen=True)
class Mail:
    """What a delivery says: a content of `tests.bench.smtp_client`, and whether it is tracked."""

    content: str = "short"
    tracked: bool = False

    def file(self, channel: str) -> str:
        """Returns its delivery file. A JSON text of ASCII is one of TOML too."""
        content = dict(CONTENTS[self.content])
        headers = content.pop("headers", {})
        tables = {"email": content, "email.headers": headers}
        if self.tracked:
            tables["tracking"] = {"opens": True, "clicks": True}
        lines = ['label = "Bench"', f'channel = "{channel}"']
        for table, values in tables.items():
            lines += [f"[{table}]", *(f"{name} = {json.dumps(value)}" for name, value in values.items())]
        return "\n".join(lines)


SHORT = Mail()


@dataclass(frozen=True)
class Run:
    """One run's database, open, with its services at work."""

    db: Database
    url: str
    processes: Processes


class Installation:
    """What all cases share: servers, queues, and prepared databases to clone."""

    def __init__(self, settings: Settings, connection: AbstractRobustConnection, folder: Path) -> None:
        self.settings = settings
        self.connection = connection
        self.folder = folder
        self._templates: dict[str, str] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Installation]:
        """Connects, declares the queues, and in the end drops the databases that it made."""
        settings = read_settings()
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            broker = await open_connection(settings.amqp_url, name="bench", timeout=settings.connect_timeout)
            await stack.enter_async_context(broker)
            await topology.declare(broker, Names(settings.queue_prefix), settings.channels)
            installation = cls(settings, broker, folder)
            stack.push_async_callback(installation._drop_templates)
            yield installation

    async def prepared(
        self, channel: str, recipients: int, domains: tuple[str, ...] = DOMAINS, mail: Mail = SHORT
    ) -> str:
        """Returns the name of a database with a delivery in it, prepared, and a small one to warm up with."""

        async def prepare(url: str) -> None:
            await migrate(url, timeout=self.settings.connect_timeout)
            async with opened(url) as db:
                async with db.transaction() as tx:
                    await tx.execute("add_operator", name="ana")
                    await tx.execute("grant_role", name="ana", role="start_deliveries")
                for number, size in ((WARM_UP, 1), (DELIVERY, recipients)):
                    if await self.prepare(db, channel, size, domains=domains, mail=mail) != number:
                        raise CaseFailed("The deliveries of a new database are not numbered from 1.")

        return await self.template(f"{channel} {recipients} {domains} {mail}", prepare)

    async def prepare(
        self,
        db: Database,
        channel: str,
        recipients: int,
        channels: tuple[str, ...] = (),
        domains: tuple[str, ...] = DOMAINS,
        mail: Mail = SHORT,
    ) -> int:
        """Prepares a delivery as `sendoff prepare` does, to domains in turn; returns its number."""
        file, csv = self.folder / "delivery.toml", self.folder / "recipients.csv"
        file.write_text(mail.file(channel))
        with csv.open("w") as rows:
            rows.write("address,first_name,city,plan,language\n")
            rows.writelines(
                f"user{i:07d}@{domains[i % len(domains)]},Ekaterina,Nizhny Novgorod,premium,ru\n"
                for i in range(recipients)
            )
        request = preparing.PreparationRequest(
            file, csv, "ana", None, channels or self.settings.channels, tracker=mail.tracked
        )
        return (await preparing.prepare(db, request)).delivery_id

    async def template(self, key: str, fill: Callable[[str], Any]) -> str:
        """Returns the name of a database that `fill` has filled, given its address; made once by `key`."""
        if key not in self._templates:
            name = f"bench_{secrets.token_hex(6)}"
            await self._administer(f"CREATE DATABASE {name}")
            self._templates[key] = name
            await fill(self._renamed(name))
        return self._templates[key]

    @asynccontextmanager
    async def cloned(self, template: str) -> AsyncIterator[str]:
        """Yields the address of a copy of a database, and drops it in the end."""
        name = f"bench_{secrets.token_hex(6)}"
        await self._administer(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        try:
            yield self._renamed(name)
        finally:
            await self._administer(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    @asynccontextmanager
    async def running(
        self,
        channel: str,
        recipients: int,
        *,
        copies: int = 1,
        settings: dict[str, str] | None = None,
        domains: tuple[str, ...] = DOMAINS,
        mail: Mail = SHORT,
    ) -> AsyncIterator[Run]:
        """Yields a clone with every service at work, warm: each has sent to one recipient.

        Args:
            channel: The channel of both deliveries.
            recipients: Those of the one to be measured.
            copies: Processes of each of the services in `HOT`.
            settings: Further settings of the services, by their variables.
            domains: Those of the recipients, in turn.
            mail: What both deliveries say.
        """
        template = await self.prepared(channel, recipients, domains, mail)
        async with AsyncExitStack() as stack:
            url = await stack.enter_async_context(self.cloned(template))
            variables = (settings or {}) | {"SENDOFF_DATABASE_URL": url} | (TRACKER if mail.tracked else {})
            rest = [name for name in SERVICES if name not in HOT]
            commands = [("the rest", rest), *((name, [name]) for name in HOT for _ in range(copies))]
            processes = await stack.enter_async_context(self.services(variables, commands))
            db = await stack.enter_async_context(opened(url))
            await self.confirm(WARM_UP)
            await finished(db, WARM_UP)
            yield Run(db, url, processes)

    async def purge(self, channel: str) -> None:
        """Empties the queue of a channel, of which the services have ended."""
        broker = await self.connection.channel()
        queue = Names(self.settings.queue_prefix).queue(send_queue(channel))
        await (await broker.get_queue(queue, ensure=False)).purge()
        await broker.close()

    async def versions(self) -> str:
        """Names the versions of the servers."""
        transport = self.connection.transport
        broker = transport.connection.server_properties["version"] if transport else "unknown"
        database = await asyncpg.connect(self.settings.database_url, timeout=30)
        try:
            version = await database.fetchval("SHOW server_version")
        finally:
            await database.close(timeout=30)
        return f"RabbitMQ {broker}, Postgres {version.split()[0]}"

    async def confirm(self, number: int) -> None:
        """Confirms a delivery as upstream would.

        Raises:
            CaseFailed: it was not accepted.
        """
        command = Confirm(delivery_id=number, operator="ana", preparation=1, definitive=True)
        body = command.model_dump_json().encode()
        names = Names(self.settings.queue_prefix)
        reply = Reply.model_validate_json(await ask(self.connection, names, CONFIRM, body, timeout=30))
        if reply.status is not Status.ACCEPTED:
            raise CaseFailed(reply.message)

    @asynccontextmanager
    async def services(
        self, variables: dict[str, str], commands: list[tuple[str, list[str]]]
    ) -> AsyncIterator[Processes]:
        """Yields processes, each a name to show and its services, once they work, and ends them."""
        environment = os.environ | {"SENDOFF_LOG_LEVEL": "warning"} | variables
        started: list[tuple[str, int, asyncio.subprocess.Process]] = []
        try:
            for name, services in commands:
                port = free_port()
                command = (sys.executable, "-m", "worker", "run", *services)
                process = await asyncio.create_subprocess_exec(
                    *command, env=environment | {"SENDOFF_HTTP_PORT": str(port)}
                )
                started.append((name, port, process))
            for name, port, process in started:
                await _ready(name, port, process)
            processes: Processes = {}
            for name, _, process in started:
                processes.setdefault(name, []).append(process.pid)
            yield processes
        finally:
            await end([process for _, _, process in started])

    def _renamed(self, name: str) -> str:
        return urlsplit(self.settings.database_url)._replace(path=f"/{name}").geturl()

    async def _administer(self, statement: str) -> None:
        connection = await asyncpg.connect(self.settings.database_url, timeout=30)
        try:
            await connection.execute(statement, timeout=SECONDS)
        finally:
            await connection.close(timeout=30)

    async def _drop_templates(self) -> None:
        for name in self._templates.values():
            await self._administer(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    """Opens a database for the bench's own questions."""
    db = await open_database(
        url, size=3, connect_timeout=10, command_timeout=SECONDS, application="sendoff bench"
    )
    try:
        yield db
    finally:
        await db.close()


async def finished(db: Database, number: int, every: float = 0.02) -> asyncpg.Record:
    """Waits until a delivery is finished; asks the view every so many seconds and returns its row."""
    never = asyncio.Event()
    async with asyncio.timeout(SECONDS):
        while True:
            row = await db.fetchrow("read_deployment", delivery_id=number)
            if row is not None and row["state"] == "finished":
                return row
            if row is not None and row["state"] in {"paused", "stopped", "failed"}:
                raise CaseFailed(f"The delivery is {row['state']}.")
            await pause(never, every)


async def end(processes: list[asyncio.subprocess.Process]) -> None:
    """Ends processes in their own way, and by force those that do not within a minute."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
    for process in processes:
        try:
            await asyncio.wait_for(process.wait(), 60)
        except TimeoutError:
            process.kill()
            await process.wait()


def free_port() -> int:
    """Returns a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _ready(name: str, port: int, process: asyncio.subprocess.Process) -> None:
    """Waits until a process says that all its parts do their work."""
    never = asyncio.Event()
    async with asyncio.timeout(60):
        while True:
            if process.returncode is not None:
                raise CaseFailed(f"The process with {name} ended with status {process.returncode}.")
            if await asyncio.to_thread(_answers, f"http://127.0.0.1:{port}/health/ready"):
                return
            await pause(never, 0.05)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own address
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
