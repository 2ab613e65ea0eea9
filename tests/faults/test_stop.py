"""A worker that is told to stop while a server is away does not wait for it, and ends well."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.support.processes import sink, worker
from tests.support.proxy import CutProxy
from tests.support.stack import until

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from tests.support.stack import Stack

RECIPIENTS = 8_000
GRACE = 60
LEASES = {"PAGE_SIZE": 100, "PAGE_LEASE": 2, "CLAIM_LEASE": 3, "RESULT_LEASE": 3, "PAGE_LOOK_AFTER": 1}
SECONDS = 20
"""A third of the grace: a process that takes longer has waited for it."""


@pytest.mark.parametrize(
    ("server", "transport", "said"),
    [
        ("database", "bulk", "database out of reach, waiting"),
        ("amqp", "bulk", "connection to the broker lost"),
        ("amqp", "aio-pika", "publishing again"),
    ],
)
async def test_a_stop_does_not_wait_for_a_server_that_is_away(
    stack: Stack, tmp_path: Path, server: str, transport: str, said: str
) -> None:
    number = await stack.prepare(RECIPIENTS)
    log = tmp_path / "log"
    async with CutProxy(getattr(stack.settings, f"{server}_url")).running() as proxy:
        env = {f"{server}_URL".upper(): proxy.url, "TRANSPORT": transport, **LEASES}
        with worker(stack.settings, log=log, SHUTDOWN_GRACE=GRACE, LOG_FORMAT="json", **env) as process:
            await stack.confirm(number)
            await until(lambda: _begun(stack, number))
            proxy.cut()
            await until(lambda: _says(log, said))
            assert await _status_after_stop(process) == 0, log.read_text()[-4_000:]
    assert not await _says(log, "service died")
    async with stack.running(claim_lease=3, result_lease=3, page_look_after=0.5, tick=0.1):
        row = await stack.finished(number, seconds=60)
    assert row["sent"] + row["unknown"] == RECIPIENTS


async def test_a_stop_does_not_wait_for_a_relay_that_is_away(stack: Stack, tmp_path: Path) -> None:
    number = await stack.prepare(20, "email")
    log = tmp_path / "log"
    with sink(tmp_path / "sink") as (smtp_url, _):
        async with CutProxy(smtp_url).running() as proxy:
            proxy.cut()
            env = {"SMTP_URL": proxy.url.replace("None:None@", ""), "LOG_FORMAT": "json"}
            with worker(stack.settings, log=log, SHUTDOWN_GRACE=GRACE, **env) as process:
                await stack.confirm(number)
                await until(lambda: _says(log, "channel out of reach, waiting"))
                assert await _status_after_stop(process) == 0, log.read_text()[-4_000:]
    assert (await stack.deployment(number))["pending"] == 20


async def test_a_stop_does_not_wait_for_a_relay_that_says_nothing(stack: Stack) -> None:
    asked = asyncio.Event()

    async def keep_quiet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        writer.transport.abort()

    number = await stack.prepare(20, "email")
    quiet = await asyncio.start_server(keep_quiet, "127.0.0.1", 0)
    async with quiet:
        smtp_url = f"smtp://127.0.0.1:{quiet.sockets[0].getsockname()[1]}"
        with worker(stack.settings, SHUTDOWN_GRACE=GRACE, SMTP_URL=smtp_url) as process:
            await stack.confirm(number)
            await asyncio.wait_for(asked.wait(), SECONDS)
            assert await _status_after_stop(process) == 0
    assert (await stack.deployment(number))["pending"] == 20


async def _status_after_stop(process: subprocess.Popen[bytes]) -> int:
    process.terminate()
    return await asyncio.to_thread(process.wait, SECONDS)


async def _begun(stack: Stack, number: int) -> bool:
    return bool((await stack.deployment(number))["sent"])


async def _says(log: Path, event: str) -> bool:
    return f'"{event}"' in await asyncio.to_thread(log.read_text)
