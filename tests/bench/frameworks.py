"""Celery, FastStream, TaskIQ and Dramatiq doing the same durable job, in an environment of their own.

N recipients in Postgres; a confirmation; each read; N persistent send messages through RabbitMQ, confirmed;
the null send; N result messages; one durable row each. Two worker processes each, for two cores.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import venv
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
from aio_pika.exceptions import ChannelNotFoundEntity

from tests.bench.installation import DELIVERY, SECONDS, WARM_UP
from tests.bench.machine import Case, CaseFailed, Measured, Meter
from worker.lifecycle import pause

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.bench.installation import Installation

FOLDER = Path(__file__).parent / "peers"
LOCK = FOLDER / "requirements.lock"
ENVIRONMENT = Path(__file__).parents[2] / ".venv-peers"
INSTALL_SECONDS = 300
START_SECONDS = 60
RUN_SECONDS = 180

_TABLES = """
CREATE SCHEMA peers;
CREATE TABLE peers.recipient (
    delivery_id bigint, recipient int, address text NOT NULL, variables json NOT NULL,
    PRIMARY KEY (delivery_id, recipient));
CREATE TABLE peers.outcome (
    delivery_id bigint, recipient int, attempt smallint NOT NULL, sent_at timestamptz NOT NULL, reply text,
    times int NOT NULL DEFAULT 1, PRIMARY KEY (delivery_id, recipient));
CREATE TABLE peers.counter (delivery_id bigint PRIMARY KEY, sent bigint NOT NULL);
INSERT INTO peers.recipient
SELECT d.number, n, format('user%s@mail.example.org', lpad(n::text, 7, '0')), json_build_object(
    'first_name', 'Ekaterina', 'city', 'Nizhny Novgorod', 'plan', 'premium', 'language', 'ru')
FROM (VALUES ({warm_up}, 1), ({delivery}, {recipients})) AS d (number, size), generate_series(1, d.size) AS n;
ANALYZE peers.recipient
"""
_COUNT = "SELECT count(*) AS rows, coalesce(sum(times), 0) AS times FROM peers.outcome WHERE delivery_id = $1"


@dataclass(frozen=True)
class Peer:
    """One framework: its module in `peers/`, its queues, and how its workers are started."""

    name: str
    module: str
    queues: tuple[str, ...]
    consumers: int
    """How many one command has on these queues, once it is ready."""
    documented: tuple[str, ...]
    """A command line that runs two processes."""
    tuned: tuple[tuple[str, ...], ...]
    """One or several, two processes in all."""

    def commands(self, *, tuned: bool) -> tuple[tuple[str, ...], ...]:
        return self.tuned if tuned else (self.documented,)


_CELERY = ("celery", "-A", "celery_peer", "worker", "--loglevel", "WARNING")
_FASTSTREAM = ("faststream", "run", "faststream_peer:app", "--workers", "2", "--log-level", "warning")
_TASKIQ = ("taskiq", "worker", "taskiq_peer:broker", "--workers", "2", "--log-level", "WARNING")
_DRAMATIQ = ("dramatiq", "dramatiq_peer", "--processes", "2", "--threads", "8")
_THREADS = ("--pool", "threads", "--concurrency", "8", "--without-gossip", "--without-mingle")

PEERS = (
    Peer(
        "Celery",
        "celery_peer",
        ("bench_celery",),
        1,
        (*_CELERY, "--concurrency", "2"),
        tuple((*_CELERY, *_THREADS, "--hostname", f"{node}@%h") for node in ("one", "two")),
    ),
    Peer(
        "FastStream",
        "faststream_peer",
        tuple(f"bench_faststream_{end}" for end in ("commands", "pages", "sends", "results")),
        8,
        _FASTSTREAM,
        (_FASTSTREAM,),
    ),
    Peer(
        "TaskIQ",
        "taskiq_peer",
        ("bench_taskiq", "taskiq.dead_letter"),
        2,
        _TASKIQ,
        ((*_TASKIQ, "--no-parse", "--max-async-tasks", "500"),),
    ),
    Peer(
        "Dramatiq",
        "dramatiq_peer",
        tuple(f"bench_dramatiq{end}" for end in ("", ".DQ", ".XQ")),
        4,
        _DRAMATIQ,
        (_DRAMATIQ,),
    ),
)


class PeersAbsent(Exception):
    """The peers cannot be installed; the message says why."""


def install() -> None:
    """Builds the environment of the peers from its hashed lock, unless it stands.

    Raises:
        PeersAbsent: they cannot be had.
    """
    mark, key = ENVIRONMENT / "built", hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()
    if mark.exists() and mark.read_text() == key:
        return
    print("bench: installing the peers into .venv-peers", file=sys.stderr, flush=True)  # noqa: T201
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet", "--require-hashes"]
    try:
        venv.create(ENVIRONMENT, with_pip=True)
        subprocess.run([*pip, "--requirement", str(LOCK)], timeout=INSTALL_SECONDS, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        status = getattr(error, "returncode", None)
        why = f"pip ended with status {status}" if status else str(error)
        raise PeersAbsent(
            f"The peers could not be installed, so they are left out: {why}. Run it again with a package"
            " index in reach."
        ) from error
    mark.write_text(key)


def versions() -> str:
    """Names the peers' versions."""
    pinned = dict(
        line.split(" ")[0].split("==") for line in LOCK.read_text().splitlines() if "==" in line.split(" ")[0]
    )
    names = ("celery", "faststream", "taskiq", "taskiq-aio-pika", "dramatiq", "aio-pika", "pika", "uvloop")
    return ", ".join(f"{name} {pinned[name]}" for name in names)


def name(peer: Peer, *, tuned: bool) -> str:
    """Names a case."""
    return f"{peer.name}, {'tuned' if tuned else 'as documented'}"


def cases(installation: Installation, *, documented: int, tuned: int, rounds: int) -> list[Case]:
    """Returns every peer both ways, with so many recipients each."""
    return [
        Case("peers", name(peer, tuned=t), partial(measure, installation, peer, size, tuned=t), rounds)
        for t, size in ((False, documented), (True, tuned))
        for peer in PEERS
    ]


async def measure(installation: Installation, peer: Peer, recipients: int, *, tuned: bool) -> Measured:
    """Has a peer do the job.

    Raises:
        CaseFailed: it did not finish, or lost or doubled any.
    """
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(installation.cloned(await template(installation, recipients)))
        environment = os.environ | {
            "SENDOFF_DATABASE_URL": url,
            "BENCH_TUNED": "1" if tuned else "0",
            "PATH": f"{ENVIRONMENT / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(FOLDER),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        stack.push_async_callback(_delete_queues, installation, peer)
        await _delete_queues(installation, peer)
        log = installation.folder / f"{peer.module}.log"
        commands = peer.commands(tuned=tuned)
        workers = [await stack.enter_async_context(_worker(c, environment, log)) for c in commands]
        try:
            await _ready(installation, peer, workers)
        except CaseFailed as error:
            raise CaseFailed(f"{error} Its last words: {_last_words(log)}") from None
        client = await stack.enter_async_context(_client(peer, environment))
        database = await asyncpg.connect(url, timeout=30)
        stack.push_async_callback(database.close, timeout=30)
        await _confirmed(client, database, WARM_UP, 1)
        meter = Meter({"workers": [worker.pid for worker in workers]})
        await _confirmed(client, database, DELIVERY, recipients)
        measured = meter.read(recipients)
        counted = await count_rows(database, DELIVERY)
        if counted["times"] != recipients:
            raise CaseFailed(
                f"{counted['rows']:,} of {recipients:,} recipients have a row,"
                f" written {counted['times']:,} times."
            )
    return measured


async def template(installation: Installation, recipients: int) -> str:
    """Returns the name of a database with the recipients of the same two deliveries as everywhere."""

    async def fill(url: str) -> None:
        connection = await asyncpg.connect(url, timeout=30)
        text = _TABLES.format(warm_up=WARM_UP, delivery=DELIVERY, recipients=recipients)
        await connection.execute(text, timeout=SECONDS)
        await connection.close(timeout=30)

    return await installation.template(f"peers {recipients}", fill)


async def count_rows(database: asyncpg.Connection, delivery: int) -> asyncpg.Record:
    """Returns how many `rows` a delivery has, and how many `times` they were written."""
    return await database.fetchrow(_COUNT, delivery)


@asynccontextmanager
async def _worker(
    command: tuple[str, ...], environment: dict[str, str], log: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    program = str(ENVIRONMENT / "bin" / command[0])
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *(program, *command[1:]),
            env=environment,
            cwd=FOLDER,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        await _end_group(process)


@asynccontextmanager
async def _client(peer: Peer, environment: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        str(ENVIRONMENT / "bin" / "python"),
        "client.py",
        peer.module,
        env=environment,
        cwd=FOLDER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            if await process.stdout.readline() != b"ready\n":
                raise CaseFailed("Its client ended while it started.")
        yield process
    finally:
        await _end_group(process)


async def _end_group(process: asyncio.subprocess.Process) -> None:
    """Ends a process and all that it started: in their own way, then by force."""
    for number, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            await asyncio.wait_for(process.wait(), seconds)
        except TimeoutError:
            continue
        if number == signal.SIGTERM:
            await asyncio.sleep(0.2)  # its children end after it


async def _confirmed(
    client: asyncio.subprocess.Process, database: asyncpg.Connection, delivery: int, recipients: int
) -> None:
    """Confirms a delivery and waits until every recipient has a row."""
    assert client.stdin is not None
    client.stdin.write(f"{delivery}\n".encode())
    await client.stdin.drain()
    never, seconds = asyncio.Event(), START_SECONDS if delivery == WARM_UP else RUN_SECONDS
    rows = 0
    try:
        async with asyncio.timeout(seconds):
            while (rows := (await count_rows(database, delivery))["rows"]) < recipients:
                await pause(never, 0.05)
    except TimeoutError:
        raise CaseFailed(f"{rows:,} of {recipients:,} recipients have a row after {seconds} s.") from None


async def _ready(installation: Installation, peer: Peer, workers: list[asyncio.subprocess.Process]) -> None:
    """Waits until the broker knows every consumer: what is published before would have no queue."""
    never, consumers, wanted = asyncio.Event(), 0, peer.consumers * len(workers)
    try:
        async with asyncio.timeout(START_SECONDS):
            while consumers < wanted:
                for worker in workers:
                    if worker.returncode is not None:
                        raise CaseFailed(f"Its worker ended with status {worker.returncode}.")
                await pause(never, 0.1)
                consumers = sum([await _consumers(installation, queue) for queue in peer.queues])
    except TimeoutError:
        raise CaseFailed(f"{consumers} of {wanted} consumers were there after {START_SECONDS} s.") from None


async def _consumers(installation: Installation, queue: str) -> int:
    channel = await installation.connection.channel()
    try:
        declared = await channel.declare_queue(queue, passive=True)
    except ChannelNotFoundEntity:
        return 0
    finally:
        await channel.close()
    return declared.declaration_result.consumer_count or 0


def _last_words(log: Path) -> str:
    return " / ".join(log.read_text(errors="replace").split("\n")[-6:])


async def _delete_queues(installation: Installation, peer: Peer) -> None:
    """Deletes what a peer declares, so that no run finds messages of the one before."""
    channel = await installation.connection.channel()
    for queue in peer.queues:
        await channel.queue_delete(queue)
    await channel.close()
