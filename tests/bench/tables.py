"""`make bench-tables`: what the examples of docs/tables.md and compute stats take on ten million recipients.

Dashboards are ordinary clients: their questions go over an ordinary connection with the server's settings,
and compute stats over the pool of the services. Absolute figures belong to the machine and the minute.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from rich.console import Console
from rich.table import Table

from tests.bench.examples import Example, examples
from tests.bench.filling import Shape, fill, shapes
from worker.db.migrate import migrate
from worker.db.pool import Database, open_database
from worker.db.stats import Statistics
from worker.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

_SECONDS: Final = 600
_SETS: Final = 4


@dataclass(frozen=True, slots=True)
class Measured:
    """One line of the table: what was asked of what, its times in milliseconds, its rows and its plan."""

    what: str
    of: str
    first: float
    times: list[float]
    rows: int
    plan: str = ""


async def timed(ask: Callable[[], Awaitable[Sequence[Any]]], times: int) -> tuple[list[float], int]:
    """Asks once more than `times` times; returns the milliseconds of each and the number of rows."""
    rows, found = 0, []
    for _ in range(times + 1):
        began = time.perf_counter()
        rows = len(await ask())
        found.append((time.perf_counter() - began) * 1_000)
    return found, rows


async def question(connection: asyncpg.Connection, what: str, of: str, sql: str, times: int) -> Measured:
    """Measures one statement, as a client that sends its text each time, and explains it."""

    async def ask() -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = await connection.fetch(sql, timeout=_SECONDS)
        return rows

    (first, *found), rows = await timed(ask, times)
    plan = await connection.fetch(f"EXPLAIN (ANALYZE, COSTS OFF, SUMMARY OFF) {sql}", timeout=_SECONDS)
    return Measured(what, of, first, found, rows, "\n".join(line[0] for line in plan))


async def recount(db: Database, of: str, number: int, times: int) -> Measured:
    """Measures compute stats as the service does it: lock, snapshot, recount, comparison."""

    async def ask() -> list[Any]:
        found = await Statistics(db).recount(number, deadline=_SECONDS)
        if found is None or found.drift:
            raise SystemExit(f"The recount of delivery {number} found {found and found.drift}.")
        return [found]

    (first, *found), rows = await timed(ask, times)
    return Measured("compute stats", of, first, found, rows)


class Tables:
    """Fills the database and measures."""

    def __init__(self, connection: asyncpg.Connection, db: Database, console: Console, times: int) -> None:
        self._connection = connection
        self._db = db
        self._console = console
        self._times = times

    async def fill(self, wanted: Sequence[Shape], profiles: int, sets: int) -> list[int]:
        rows, began = sum(s.recipients for s in wanted), time.perf_counter()
        numbers = await fill(self._connection, wanted, profiles=profiles, sets=sets)
        self._console.print(
            f"{rows:,} recipients in {len(wanted):,} deliveries: {time.perf_counter() - began:,.0f} s"
        )
        return numbers

    async def recounts(self, asked: dict[str, int]) -> list[Measured]:
        return [await recount(self._db, of, number, self._times) for of, number in asked.items()]

    async def views(self, asked: dict[str, int], profile: str) -> list[Measured]:
        found = []
        for example in examples():
            targets = asked if example.asks == "delivery" else {example.asks or "all": 0}
            for of, number in targets.items():
                sql = example.filled(number, profile)
                found.append(await question(self._connection, _title(example), of, sql, self._times))
        return found

    async def vacuum(self) -> None:
        began = time.perf_counter()
        await self._connection.execute("VACUUM (ANALYZE)", timeout=_SECONDS)
        self._console.print(f"vacuum and analyze: {time.perf_counter() - began:,.0f} s")


def memory() -> str:
    """Says what pages the server's memory is in: it matters for what reads much of it."""
    meminfo = Path("/proc/meminfo").read_text("ascii")
    pages = int((meminfo.partition("HugePages_Total:")[2].split() or ["0"])[0])
    return f"The server's memory is in {f'{pages:,} large pages' if pages else 'pages of 4 kB'}."


def _title(example: Example) -> str:
    where = example.sql.partition("WHERE")[2].partition("ORDER BY")[0].partition("LIMIT")[0]
    return f"{example.view}: {' '.join(where.split()) or 'the latest'}"


def show(console: Console, title: str, found: Sequence[Measured]) -> None:
    """Prints the time of the first execution, and median and greatest of those that follow."""
    table = Table("asked", "of", title=title)
    for heading in ("rows", "first ms", "then, median ms", "max ms", "runs"):
        table.add_column(heading, justify="right")
    for m in found:
        times = (m.first, statistics.median(m.times), max(m.times))
        table.add_row(m.what, m.of, f"{m.rows:,}", *(f"{t:,.2f}" for t in times), f"{len(m.times)}")
    console.print(table)


async def measure(rows: int, times: int) -> None:
    """Fills, measures and prints."""
    console = Console(width=150)
    console.print(memory())
    settings = read_settings()
    await migrate(settings.database_url, timeout=settings.connect_timeout)
    connection = await asyncpg.connect(settings.database_url, timeout=settings.connect_timeout)
    db = await open_database(
        settings.database_url,
        size=2,
        connect_timeout=10,
        command_timeout=_SECONDS,
        application="sendoff bench",
    )
    try:
        # Vacuum runs when this says so, that the figures before and after it can be told apart.
        await connection.execute("ALTER SYSTEM SET autovacuum = off")
        await connection.execute("SELECT pg_reload_conf()")
        tables = Tables(connection, db, console, times)
        largest, *others = shapes(rows)
        # The large one comes last, beside those of middle size: what was there before it has been vacuumed.
        others.reverse()
        numbers = await tables.fill(others, largest.recipients, _SETS)
        await tables.vacuum()
        (large,) = await tables.fill([largest], largest.recipients, 1)
        middle = max((s.recipients, n) for n, s in zip(numbers, others, strict=True) if s.state == "finished")
        asked = {f"{largest.recipients:,}": large, f"{middle[0]:,}": middle[1]}
        show(console, "Just written, before any vacuum", await tables.recounts(asked))
        await tables.vacuum()
        found = await tables.recounts(asked) + await tables.views(asked, "p100")
        show(console, f"{rows:,} recipients", found)
        for m in found:
            if m.plan:
                console.print(f"\n{m.what}, {m.of}", style="bold")
                console.print(m.plan, markup=False, highlight=False, soft_wrap=True)
    finally:
        await db.close()
        await connection.close(timeout=10)


def main() -> None:
    """Reads the size."""
    parser = argparse.ArgumentParser(prog="make bench-tables", description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--rows", type=int, default=10_000_000, help="recipients of all deliveries together")
    parser.add_argument("--times", type=int, default=7, help="how often each question is asked")
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    asyncio.run(measure(options.rows, options.times))


if __name__ == "__main__":
    main()
