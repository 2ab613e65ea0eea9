"""`make bench-console`: how soon pages of a large delivery are painted, and what 500 open pages cost.

The console is a process of its own. Chromium says when it painted the first content of a page, counted from
the click (Paint Timing). Open pages are streams and requests as a browser makes them. Absolute figures belong
to the machine and the minute.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import shutil
import statistics
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import asyncpg
import httpx2
from playwright.async_api import async_playwright
from rich.console import Console
from rich.table import Table

from tests.bench.filling import Shape, fill
from worker.db.operators import add_operator
from worker.db.pool import open_database
from worker.domain.operators import Role
from worker.lifecycle import pause
from worker.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Page

    from worker.settings import Settings

_SECONDS: Final = 60
_WINDOW: Final = 30.0
"""Seconds in which the cost of open pages is measured."""
_BEGIN: Final = 10.0
"""Seconds over which pages are opened."""
_FLAGS: Final = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
_PAINTED: Final = """() => new Promise((done) => {
    const look = () => {
        const found = performance.getEntriesByName("first-contentful-paint")[0];
        found ? done(found.startTime) : setTimeout(look, 5);
    };
    look();
})"""
_WHOLE: Final = (
    "() => document.querySelector('main') && !document.querySelector('.reading') && performance.now()"
)


@asynccontextmanager
async def console(settings: Settings) -> AsyncIterator[tuple[int, httpx2.AsyncClient]]:
    """Runs the console, and signs in; yields its process id and a client."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", "run", "console"),
        env=os.environ | {"SENDOFF_CONSOLE_PORT": "0", "SENDOFF_DATABASE_URL": settings.database_url},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        link = ""
        while not link:
            line = (await asyncio.wait_for(process.stdout.readline(), _SECONDS)).decode()  # type: ignore[union-attr]
            if not line:
                raise SystemExit("The console ended: its log says why.")
            link = (re.findall(r"http\S+/sign-in/\S+", line) or [""])[0]
        # The console closes a connection that is idle for 10 s: ours is given up before, as by a browser.
        limits = httpx2.Limits(max_connections=2_000, max_keepalive_connections=2_000, keepalive_expiry=5)
        base = link.partition("/sign-in")[0]
        async with httpx2.AsyncClient(base_url=base, limits=limits, timeout=_SECONDS) as client:
            if (await client.post(link, data={"operator": "ana"})).status_code != 303:
                raise SystemExit("The console lets nobody in.")
            yield process.pid, client
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def painted(client: httpx2.AsyncClient, paths: dict[str, str], times: int) -> list[list[str]]:
    """Measures pages, the first visit of a browser and then later ones: milliseconds to the first paint."""
    found = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=_FLAGS)
        cookies = [
            {"name": c.name, "value": c.value or "", "url": str(client.base_url)} for c in client.cookies.jar
        ]
        for name, path in paths.items():
            context = await browser.new_context(base_url=str(client.base_url))
            await context.add_cookies(cookies)  # type: ignore[arg-type]
            page = await context.new_page()
            (first, _), *later = [await visit(page, path) for _ in range(times + 1)]
            paints, wholes = zip(*later, strict=True)
            found.append(
                [
                    name,
                    f"{first:,.0f}",
                    f"{statistics.median(paints):,.0f}",
                    f"{max(paints):,.0f}",
                    f"{statistics.median(wholes):,.0f}",
                ]
            )
            await context.close()
        await browser.close()
    return found


async def visit(page: Page, path: str) -> tuple[float, float]:
    """Loads a page; returns when the first content was painted, and when nothing was waited for any more."""
    await page.goto(path, wait_until="commit")
    paint = await page.evaluate(_PAINTED)
    whole = await (await page.wait_for_function(_WHOLE)).json_value()
    await page.goto("about:blank")
    return float(paint), float(whole)


async def look(client: httpx2.AsyncClient, number: int, stop: asyncio.Event) -> None:
    """Keeps a page of a delivery open, as a browser does."""
    part = {"hx-request": "true"}
    if await pause(stop, random.uniform(0, _BEGIN)):  # noqa: S311 - when somebody comes
        return

    async def repeat(path: str, seconds: float) -> None:
        while not await pause(stop, seconds):
            (await client.get(f"/deliveries/{number}/{path}", headers=part)).raise_for_status()

    async def follow() -> None:
        address = f"/deliveries/{number}/live?state=in_progress"
        async with client.stream("GET", address, headers=part) as stream:
            async for _ in stream.aiter_bytes():
                if stop.is_set():
                    return

    async with asyncio.TaskGroup() as group:
        group.create_task(follow())
        for path, seconds in (("curve", 10), ("bounces", 10), ("story", 30)):
            group.create_task(repeat(path, seconds))


async def cost(
    client: httpx2.AsyncClient, pid: int, connection: asyncpg.Connection, numbers: list[int], viewers: int
) -> list[str]:
    """Measures what open pages cost: the processor of the console, and transactions of the database."""
    stop, turn = asyncio.Event(), asyncio.Lock()

    async def change() -> None:
        """Lets deliveries go on, five times a second."""
        while not await pause(stop, 0.2):
            async with turn:
                await connection.execute(
                    "UPDATE sendoff.delivery_counter SET sent = sent + 7, sending = sending - 7"
                    " WHERE delivery_id = ANY ($1)",
                    numbers,
                )

    async def measure() -> list[str]:
        await pause(stop, _BEGIN + 5)
        async with turn:
            began, cpu, done = time.monotonic(), processor(pid), await transactions(connection)
        await pause(stop, _WINDOW)
        took = time.monotonic() - began
        async with turn:
            used, made = processor(pid) - cpu, await transactions(connection) - done
        stop.set()
        return [f"{viewers}", f"{100 * used / took:.0f} %", f"{made / took:.1f}"]

    async with asyncio.TaskGroup() as group:
        group.create_task(change())
        for at in range(viewers):
            group.create_task(look(client, numbers[at % len(numbers)], stop))
        measured = group.create_task(measure())
    return measured.result()


def processor(pid: int) -> float:
    """Returns the seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def transactions(connection: asyncpg.Connection) -> float:
    """Returns how many transactions the console's connections have begun."""
    return float(
        await connection.fetchval(
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        )
    )


async def measure(rows: int, viewers: int, times: int) -> None:
    """Fills, measures and prints."""
    out, settings = Console(width=150), read_settings()
    migrating = await asyncio.create_subprocess_exec(sys.executable, "-m", "worker", "migrate")
    if await migrating.wait():
        raise SystemExit("The servers cannot be set up.")
    connection = await asyncpg.connect(settings.database_url, timeout=settings.connect_timeout)
    db = await open_database(
        settings.database_url, size=2, connect_timeout=10, command_timeout=600, application="sendoff bench"
    )
    await add_operator(db, "ana", [Role.START_DELIVERIES])
    await db.close()
    began = time.perf_counter()
    wanted = [Shape(rows), Shape(rows // 10, "in_progress"), Shape(rows // 20, "in_progress")]
    over, *going = await fill(connection, wanted, profiles=rows)
    await connection.execute("VACUUM (ANALYZE)", timeout=600)
    out.print(f"{rows:,} recipients and some more: {time.perf_counter() - began:,.0f} s")
    async with console(settings) as (pid, client):
        base = f"/deliveries/{over}"
        paths = {
            "the list": "/",
            "the delivery": base,
            **{name: f"{base}/{name}" for name in ("curve", "domains", "bounces", "links", "history")},
            **{name: f"{base}/{name}" for name in ("log", "tracking", "exclusions")},
            "unknown": f"{base}/log?status=unknown",
            "a recipient": f"{base}/recipients/{rows // 2}",
        }
        table = Table("page", title=f"First paint, {rows:,} recipients, ms")
        for heading in ("first visit", "then, median", "max", "whole, median"):
            table.add_column(heading, justify="right")
        for line in await painted(client, paths, times):
            table.add_row(*line)
        out.print(table)
        table = Table("open pages", title="What open pages cost, of two deliveries that change")
        for heading in ("of a core", "transactions a second, 5 of them the changes"):
            table.add_column(heading, justify="right")
        for many in (10, viewers):
            table.add_row(*await cost(client, pid, connection, going, many))
        out.print(table)
    await connection.close(timeout=10)


def main() -> None:
    """Reads the sizes."""
    parser = argparse.ArgumentParser(prog="make bench-console", description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--rows", type=int, default=1_000_000, help="recipients of each large delivery")
    parser.add_argument("--viewers", type=int, default=500, help="open pages")
    parser.add_argument("--times", type=int, default=7, help="how often each page is loaded")
    options = parser.parse_args()
    asyncio.run(measure(options.rows, options.viewers, options.times))


if __name__ == "__main__":
    main()
