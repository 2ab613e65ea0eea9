"""The roles of deploy/postgres: each can do what it is for, and nothing else."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from typing import TYPE_CHECKING

import aio_pika
import asyncpg
import pytest

from contracts import routing
from tests.support.database import administer, created
from tests.support.roles import Installed, roles
from tests.support.stack import Stack
from worker.db.migrate import migrate
from worker.db.pool import open_database

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from worker.settings import Settings

    Sendoff = Callable[..., subprocess.CompletedProcess[str]]

SECONDS = 20


@pytest.fixture
async def installed(server_settings: Settings) -> AsyncIterator[Installed]:
    async with (
        created(server_settings.database_url, f"sendoff_test_{secrets.token_hex(4)}") as admin,
        roles(admin) as found,
    ):
        await migrate(found.url("owner"), timeout=SECONDS)
        await administer(admin, found.sql)
        yield found


@pytest.fixture
async def stack(
    installed: Installed, server_settings: Settings, prefix: str, tmp_path: Path
) -> AsyncIterator[Stack]:
    """An installation whose every process is the worker."""
    settings = server_settings.model_copy(
        update={"database_url": installed.url("worker"), "queue_prefix": prefix}
    )
    db = await open_database(
        settings.database_url,
        size=8,
        connect_timeout=SECONDS,
        command_timeout=SECONDS,
        application="sendoff tests",
    )
    try:
        async with (
            await aio_pika.connect(settings.amqp_url, timeout=SECONDS) as connection,
            Stack(settings, db, connection, tmp_path).set_up() as installation,
        ):
            yield installation
    finally:
        await db.close()


async def refused(url: str, statement: str) -> bool:
    connection = await asyncpg.connect(url, timeout=SECONDS)
    try:
        await connection.execute(statement)
    except asyncpg.InsufficientPrivilegeError:
        return True
    finally:
        await connection.close(timeout=SECONDS)
    return False


async def test_a_delivery_goes_its_whole_way_as_the_worker_also_into_a_new_set(
    installed: Installed, stack: Stack
) -> None:
    for first in (1, 100_001):
        number = await stack.prepare(25)
        assert number == first
        async with stack.running():
            await stack.confirm(number)
            assert (await stack.finished(number))["sent"] == 25
            stats = await stack.request(routing.COMPUTE_STATS, {"delivery_id": number})
            assert (stats["sent"], stats["drift"]) == (25, {})
        await administer(installed.admin, "UPDATE sendoff.partition_set SET opened_at = '2000-01-01'")


async def test_the_owner_migrates_and_removes_what_is_old(
    installed: Installed, stack: Stack, sendoff: Sendoff
) -> None:
    number = await stack.prepare(3)
    async with stack.running():
        await stack.confirm(number)
        await stack.finished(number)
    await administer(installed.admin, "UPDATE sendoff.partition_set SET opened_at = '2000-01-01'")
    await stack.prepare(1)
    await administer(
        installed.admin, "UPDATE sendoff.delivery_record SET finished_at = '2000-01-01' WHERE delivery_id = 1"
    )

    async def call(role: str, *command: str) -> subprocess.CompletedProcess[str]:
        env = {
            "SENDOFF_QUEUE_PREFIX": stack.settings.queue_prefix,
            "SENDOFF_DATABASE_URL": installed.url(role),
        }
        return await asyncio.to_thread(sendoff, *command, env=env)

    retention = ("retention", "--older-than", "400d", "--yes", "--json")
    refused = await call("worker", *retention)
    assert refused.returncode == 3
    assert "permission denied" in refused.stderr
    assert (await call("owner", "migrate")).returncode == 0
    done = await call("owner", *retention)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["removed"] == [1]


async def test_the_worker_changes_rows_and_not_the_schema(installed: Installed) -> None:
    url = installed.url("worker")
    for statement in (
        "ALTER TABLE sendoff.outcome ADD COLUMN x int",
        "DROP VIEW sendoff.alert",
        "CREATE TABLE sendoff.mine (x int)",
        "TRUNCATE sendoff.command",
        "DELETE FROM sendoff.migration",
        "UPDATE sendoff.partition_set SET leaving_at = now()",
        "CREATE SCHEMA mine",
    ):
        assert await refused(url, statement), statement
    assert not await refused(url, "UPDATE sendoff.delivery_record SET label = 'x'")


async def test_the_reader_reads_every_view_and_writes_nothing(installed: Installed) -> None:
    reader = await asyncpg.connect(installed.url("reader"), timeout=SECONDS)
    try:
        kinds = await reader.fetch(
            "SELECT relname, relkind FROM pg_class WHERE relnamespace = 'sendoff'::regnamespace"
            " AND relkind IN ('v', 'r', 'p')"
        )
        for name, kind in kinds:
            if kind == b"v":
                await reader.fetch(f"TABLE sendoff.{name} LIMIT 1")
            else:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await reader.fetch(f"TABLE sendoff.{name} LIMIT 1")
        await reader.execute("SET default_transaction_read_only = off")
        for statement in ("UPDATE sendoff.delivery SET label = 'x'", "CREATE TEMPORARY TABLE x (y int)"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await reader.execute(statement)
    finally:
        await reader.close(timeout=SECONDS)


async def test_nobody_else_gets_into_the_database(installed: Installed) -> None:
    name = f"other_{installed.suffix}"
    await administer(installed.admin, f"CREATE ROLE {name} LOGIN PASSWORD '{installed.password}'")
    try:
        url = re.sub(r"//[^@]*@", f"//{name}:{installed.password}@", installed.admin)
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="CONNECT"):
            await asyncpg.connect(url, timeout=SECONDS)
    finally:
        await administer(installed.admin, f"DROP ROLE {name}")


@pytest.mark.parametrize(
    ("role", "status", "sentence"),
    [
        ("worker", 0, "reads and writes rows, and owns nothing"),
        ("owner", 0, "owns the schema: for migrate and retention; it is too much for run"),
        ("reader", 1, "may not look: permission denied"),
    ],
)
async def test_the_check_says_who_we_are_to_the_database(
    installed: Installed, stack: Stack, sendoff: Sendoff, role: str, status: int, sentence: str
) -> None:
    env = {"SENDOFF_QUEUE_PREFIX": stack.settings.queue_prefix, "SENDOFF_DATABASE_URL": installed.url(role)}
    done = await asyncio.to_thread(sendoff, "check", "--json", env=env)
    (finding,) = [f for f in json.loads(done.stdout) if f["part"] == "role"]
    assert sentence in finding["message"]
    assert done.returncode == status


async def test_the_check_tells_of_a_worker_that_will_not_be_able_to_open_the_next_partitions(
    installed: Installed, stack: Stack, sendoff: Sendoff
) -> None:
    # As a migration leaves it that makes the function anew, until roles.sql has run.
    await administer(installed.admin, "ALTER FUNCTION sendoff.open_partition_set(interval) SECURITY INVOKER")
    env = {
        "SENDOFF_QUEUE_PREFIX": stack.settings.queue_prefix,
        "SENDOFF_DATABASE_URL": installed.url("worker"),
    }
    done = await asyncio.to_thread(sendoff, "check", "--json", env=env)
    (finding,) = [f for f in json.loads(done.stdout) if f["part"] == "role"]
    assert (done.returncode, finding["standing"]) == (1, "wrong")
    assert "may not open the next set of partitions" in finding["message"]
