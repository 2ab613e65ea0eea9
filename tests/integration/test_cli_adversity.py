"""No command ends in a traceback, whatever it runs in. A new command is covered by being registered."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests.support.commands import COMMANDS, arguments
from tests.support.stack import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.stack import Stack


@pytest.fixture
async def world(stack: Stack) -> Stack:
    """An installation with a delivery, a profile, an operator who may do anything, and files to prepare."""
    await stack.operator("ana", "prepare_deliveries", "start_deliveries", "administration")
    await stack.prepare(["zoe@example.org,crm-1,Zoë"], columns="address,profile_id,first_name")
    (stack.folder / "d.toml").write_text('label = "ø"\nchannel = "null"\n', encoding="utf-8")
    (stack.folder / "odd").mkdir()
    (stack.folder / "odd/.env").write_bytes(b"SENDOFF_PAGE_SIZE=\xff")
    (stack.folder / "r.csv").write_text("address\nana@example.org\n")
    (stack.folder / "import.csv").write_text("address,profile_id\nana@example.org,crm-1\n")
    return stack


class Ran:
    """A command at work, in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, *, heard: bool) -> None:
        self._process = process
        self._heard = heard

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.returncode is not None

    def signal(self, number: signal.Signals) -> None:
        # Not by the process object: it would first reap a process that has just ended, and lose its status.
        with suppress(ProcessLookupError):
            if not self.ended:
                os.kill(self.pid, number)

    async def check(self, *statuses: int) -> str:
        """Waits for the end and sees that it is a good one; returns what was said on standard error."""
        out, err = await asyncio.wait_for(self._process.communicate(), 90)
        said = (err or b"").decode(errors="replace")
        assert "Traceback" not in said + (out or b"").decode(errors="replace")
        assert "fault of Sendoff" not in said
        assert self._process.returncode in statuses, said
        assert said or out or self._process.returncode not in (1, 2, 3) or not self._heard
        return said


@asynccontextmanager
async def running(
    world: Stack, name: str, env: dict[str, str] | None = None, **how: Any
) -> AsyncIterator[Ran]:
    """Runs a command; `env` changes variables, the other arguments are those of a subprocess."""
    own = {
        "SENDOFF_DATABASE_URL": world.settings.database_url,
        "SENDOFF_QUEUE_PREFIX": world.settings.queue_prefix,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    script = how.pop("script", 'exec "$@"')
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", script, "-", sys.executable, "-m", "worker", *arguments(name, world.folder)),
        env=os.environ | own | (env or {}),
        **{"stdin": asyncio.subprocess.DEVNULL, "stdout": pipe, "stderr": pipe} | how,
    )
    try:
        yield Ran(process, heard="2>" not in script)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def finish(world: Stack, name: str, *statuses: int, **how: Any) -> str:
    """Runs a command to its end; `run` is asked to stop once it is connected."""
    async with running(world, name, **how) as ran:
        if name == "run":

            async def at_work() -> bool:
                query = "SELECT FROM pg_stat_activity WHERE datname = $1 AND application_name ~ $2"
                database = world.settings.database_url.rpartition("/")[2]
                return bool(await world.rows(query, database, f":{ran.pid}$")) or ran.ended

            await until(at_work, 90)
            ran.signal(signal.SIGTERM)
        return await ran.check(*statuses)


async def odd_surroundings(world: Stack, name: str) -> None:
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    odd = {"TERM": "dumb", "COLUMNS": "1", "TZ": "Nowhere/Land", "SENDOFF_CHANNELS": "email,null"}
    await finish(world, name, 0, 1, 3, env=locale | odd)
    async with running(world, name, cwd=world.folder / "odd") as ran:
        said = await ran.check(1 if name == "check" else 2)
    assert name == "check" or "The file .env is not UTF-8" in said


async def no_output(world: Stack, name: str) -> None:
    for where in (">/dev/full", "<&- >&- 2>&-"):
        await finish(world, name, 0, 1, 3, script=f'exec "$@" {where}')


class Cutting:
    """Drops every connection to a server, and takes no other, once the server has spoken so many times."""

    def __init__(self, url: str, heard: int) -> None:
        self._url = urlsplit(url)
        self._left = heard
        self.refused = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            here = f"{self._url.username}:{self._url.password}@127.0.0.1:{port}"
            yield self._url._replace(netloc=here).geturl()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._left <= 0:
            self.refused += 1
            writer.transport.abort()
            return
        there_reader, there = await asyncio.open_connection(self._url.hostname, self._url.port)
        asking = asyncio.create_task(self._pass(reader, there))
        await self._pass(there_reader, writer, counted=True)
        await asking

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool = False
    ) -> None:
        with suppress(OSError):
            while self._left > 0 and (data := await reader.read(65_536)):
                writer.write(data)
                self._left -= counted
        writer.transport.abort()


async def killed_connections(world: Stack, name: str) -> None:
    for heard in (4, 11):
        database = Cutting(world.settings.database_url, heard)
        broker = Cutting(world.settings.amqp_url, heard)
        async with database.listening() as database_url, broker.listening() as amqp_url:
            env = {"SENDOFF_DATABASE_URL": database_url, "SENDOFF_AMQP_URL": amqp_url}
            async with running(world, name, env=env) as ran:

                async def over(ran: Ran = ran, servers: tuple[Cutting, ...] = (database, broker)) -> bool:
                    return ran.ended or any(server.refused > 1 for server in servers)

                await until(over, 90)
                ran.signal(signal.SIGTERM)  # to one that waits for the server, as it is meant to
                await ran.check(0, 1, 3, -signal.SIGTERM, 128 + signal.SIGTERM)


async def ctrl_c(world: Stack, name: str) -> None:
    called = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as silent:
        address = f"u:p@127.0.0.1:{silent.sockets[0].getsockname()[1]}"
        env = {"SENDOFF_DATABASE_URL": f"postgresql://{address}/x", "SENDOFF_AMQP_URL": f"amqp://{address}/"}
        async with running(world, name, env=env) as ran:
            await asyncio.wait_for(called.wait(), 60)
            ran.signal(signal.SIGINT)

            async def interrupted() -> bool:
                if name == "run":  # it takes the first as a request
                    ran.signal(signal.SIGINT)
                return ran.ended

            await until(interrupted, 90)
            await ran.check(130, *([-signal.SIGINT] if name == "run" else []))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", COMMANDS)
async def test_a_command_ends_in_a_sentence_whatever_it_runs_in(world: Stack, name: str) -> None:
    async with asyncio.TaskGroup() as group:
        for aspect in (odd_surroundings, no_output, killed_connections, ctrl_c):
            group.create_task(aspect(world, name))
