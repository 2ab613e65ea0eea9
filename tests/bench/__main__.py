"""`make bench`: recipients per second from the confirmation to the last outcome durable in Postgres.

Every service runs in a process of its own, as in production, beside the broker and the database on the same
machine. Absolute figures belong to that machine and that minute; compare what one run prints.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from contracts.commands import Confirm, Reply, Status
from contracts.routing import CONFIRM, Names
from worker.amqp import topology
from worker.amqp.client import ask
from worker.amqp.connection import open_connection
from worker.db.migrate import migrate
from worker.db.pool import open_database
from worker.lifecycle import pause
from worker.services import prepare as preparing
from worker.settings import Settings, read_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    import asyncpg
    from aio_pika.abc import AbstractRobustConnection

    from worker.db.pool import Database

_PROCESSES = (("confirm", "stats", "schedule"), ("fanout",), ("send",), ("results",))
_MAIL = """
[email]
from = "News <news@example.org>"
subject = "Hello {{ first_name }}"
text = "Dear {{ first_name }} of {{ city }}, this is what is new."
html = "<p>Dear {{ first_name }} of {{ city }},</p><p>this is what is new.</p>"
"""


@dataclass(frozen=True)
class Run:
    """One delivery: how long it took, and what it cost."""

    seconds: float
    cpu_seconds: float
    peak_mib: float


@contextmanager
def workers() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Runs each service in a process of its own."""
    quiet = os.environ | {"SENDOFF_LOG_LEVEL": "warning"}
    started = [
        subprocess.Popen([sys.executable, "-m", "worker", "run", *names], env=quiet) for names in _PROCESSES
    ]
    try:
        yield started
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(timeout=60)


def cpu_seconds(pid: int) -> float:
    """Returns the processor time that a process has used (proc(5), fields 14 and 15 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int) -> float:
    """Returns the most memory that a process has held at once."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


class Bench:
    """Prepares, confirms and waits, once per run."""

    def __init__(
        self, settings: Settings, db: Database, connection: AbstractRobustConnection, folder: Path
    ) -> None:
        self._settings = settings
        self._db = db
        self._connection = connection
        self._folder = folder

    async def run(self, channel: str, recipients: int) -> Run:
        number = await self._prepare(channel, recipients)
        with workers() as processes:
            await self._warm_up()
            before = sum(cpu_seconds(p.pid) for p in processes)
            started = time.perf_counter()
            await self._confirm(number)
            row = await self._finished(number)
            seconds = time.perf_counter() - started
            cpu = sum(cpu_seconds(p.pid) for p in processes) - before
            memory = max(peak_mib(p.pid) for p in processes)
        if row["sent"] != recipients:
            raise SystemExit(f"{row['sent']} of {recipients} recipients were sent to.")
        return Run(seconds, cpu, memory)

    async def _prepare(self, channel: str, recipients: int) -> int:
        file, csv = self._folder / "delivery.toml", self._folder / "recipients.csv"
        file.write_text(f'label = "Bench"\nchannel = "{channel}"\n{_MAIL}')
        with csv.open("w") as rows:
            rows.write("address,first_name,city,plan,language\n")
            rows.writelines(
                f"user{i:07d}@mail.example.org,Ekaterina,Nizhny Novgorod,premium,ru\n"
                for i in range(recipients)
            )
        request = preparing.Request(file, csv, "ana", None, self._settings.channels)
        return (await preparing.prepare(self._db, request)).delivery_id

    async def _warm_up(self) -> None:
        """Sends to one recipient, so that every service is connected and has its plans at hand."""
        number = await self._prepare("null", 1)
        await self._confirm(number)
        await self._finished(number)

    async def _finished(self, number: int) -> asyncpg.Record:
        never = asyncio.Event()
        while True:
            row = await self._db.fetchrow("read_deployment", number)
            if row is not None and row["state"] == "finished":
                return row
            await pause(never, 0.02)

    async def _confirm(self, number: int) -> None:
        command = Confirm(delivery_id=number, operator="ana", preparation=1, definitive=True)
        body = command.model_dump_json().encode()
        names = Names(self._settings.queue_prefix)
        reply = Reply.model_validate_json(await ask(self._connection, names, CONFIRM, body, timeout=30))
        if reply.status is not Status.ACCEPTED:
            raise SystemExit(reply.message)


async def measure(cases: list[tuple[str, int]], rounds: int) -> dict[tuple[str, int], list[Run]]:
    """Runs every case, round by round, so that a machine that changes its speed does so for all of them."""
    settings = read_settings()
    await migrate(settings.database_url, timeout=settings.connect_timeout)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        connection = await open_connection(settings.amqp_url, name="bench", timeout=settings.connect_timeout)
        await stack.enter_async_context(connection)
        await topology.declare(connection, Names(settings.queue_prefix), settings.channels)
        db = await open_database(
            settings.database_url,
            size=3,
            connect_timeout=10,
            command_timeout=600,
            application="sendoff bench",
        )
        stack.push_async_callback(db.close)
        async with db.transaction() as tx:
            await tx.execute("add_operator", "ana")
            await tx.execute("grant_role", "ana", "start_deliveries")
        bench = Bench(settings, db, connection, folder)
        runs: dict[tuple[str, int], list[Run]] = {case: [] for case in cases}
        for _ in range(rounds):
            for case in cases:
                runs[case].append(await bench.run(*case))
    return runs


def show(runs: dict[tuple[str, int], list[Run]]) -> None:
    """Prints the median of each case, with its spread."""
    table = Table(title="From the confirmation to the last outcome durable")
    for heading in (
        "channel",
        "recipients",
        "recipients/s",
        "spread",
        "worker CPU µs each",
        "peak MiB",
        "runs",
    ):
        table.add_column(heading, justify="left" if heading == "channel" else "right")
    for (channel, recipients), found in runs.items():
        rates = [recipients / run.seconds for run in found]
        table.add_row(
            channel,
            f"{recipients:,}",
            f"{statistics.median(rates):,.0f}",
            f"{min(rates):,.0f}-{max(rates):,.0f}",
            f"{statistics.median(run.cpu_seconds for run in found) / recipients * 1e6:,.0f}",
            f"{max(run.peak_mib for run in found):,.0f}",
            f"{len(found)}",
        )
    console = Console()
    console.print(table, width=max(console.width, 100), crop=False)


def main() -> None:
    """Reads the sizes and prints the table."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--recipients", type=int, default=20_000, help="over the null channel")
    parser.add_argument("--mails", type=int, default=5_000, help="over SMTP, to the local sink")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    show(asyncio.run(measure([("null", options.recipients), ("email", options.mails)], options.rounds)))


main()
