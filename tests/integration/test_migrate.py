"""`migrate`: twice, at once, against newer, older and strange schemas, and from the wheel."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import aio_pika
import asyncpg
import pytest

import sql
import worker
from contracts.routing import COMMANDS, DEAD, EVENTS, RESULTS, SENDS, TRACKING, Names
from worker.amqp import topology
from worker.db import migrate as migrating
from worker.db import pool
from worker.db.migrate import migrate
from worker.db.pool import DatabaseUnreachable, SchemaMismatch, open_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.processes import Sendoff
    from worker.db.pool import Database
    from worker.settings import Settings

CHECKOUT = Path(worker.__path__[0]).parent
SECONDS = 20


@pytest.fixture
async def tidy_broker(settings: Settings) -> AsyncIterator[None]:
    """Takes away what the test declared under its prefix."""
    yield
    names = Names(settings.queue_prefix)
    async with await aio_pika.connect(settings.amqp_url, timeout=SECONDS) as connection:
        queues = (await topology.declare(connection, names, settings.channels)).queues
        async with connection.channel() as channel:
            for queue in queues:
                await channel.queue_delete(queue)
            for exchange in (COMMANDS, SENDS, RESULTS, TRACKING, EVENTS, DEAD):
                await channel.exchange_delete(names.exchange(exchange))


async def tables(url: str) -> set[str]:
    connection = await asyncpg.connect(url, timeout=SECONDS)
    try:
        found = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'sendoff'")
        return {row["tablename"] for row in found}
    finally:
        await connection.close()


async def test_of_two_at_once_one_applies_everything(empty_database: str) -> None:
    first, second = await asyncio.gather(*(migrate(empty_database, timeout=SECONDS) for _ in range(2)))
    assert sorted([len(first), len(second)]) == [0, len(sql.migrations())]
    assert await migrate(empty_database, timeout=SECONDS) == []


async def record_later(url: str, *works_from: int) -> None:
    """Records migrations after the last, as newer versions would, that work with code from these on."""
    connection = await asyncpg.connect(url, timeout=SECONDS)
    for number, oldest in enumerate(works_from, len(sql.migrations()) + 1):
        statement = "INSERT INTO sendoff.migration (number, name, works_from) VALUES ($1, 'later', $2)"
        await connection.execute(statement, number, oldest)
    await connection.close()


async def test_code_works_with_newer_schemas_as_long_as_they_say_so(database_url: str, db: Database) -> None:
    here = len(sql.migrations())
    await record_later(database_url, here, 1)
    assert await migrate(database_url, timeout=SECONDS) == []
    await db.check()
    assert await db.check_version() == here + 2


@pytest.mark.parametrize("later", [[1], [1, 0], [0, 1]])
async def test_a_schema_that_needs_newer_code_is_refused(
    database_url: str, db: Database, later: list[int]
) -> None:
    """Whichever of the newer migrations says so."""
    here = len(sql.migrations())
    await record_later(database_url, *(here + ahead for ahead in later))
    sentence = rf"version {here + len(later)}, which needs .* version {here + 1}; .*: upgrade Sendoff"
    with pytest.raises(SchemaMismatch, match=sentence):
        await migrate(database_url, timeout=SECONDS)
    with pytest.raises(SchemaMismatch, match=sentence):
        await db.check_version()


async def test_an_older_schema_is_to_be_migrated_whatever_its_migrations_say(
    database_url: str, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code that works with a newer schema still needs its own; the next migration then is applied."""
    known = sql.migrations()
    later = sql.Migration(len(known) + 1, "later", "CREATE TABLE sendoff.later ()", works_from=1)
    for module in (migrating, pool):
        monkeypatch.setattr(module, "migrations", lambda: [*known, later])
    with pytest.raises(SchemaMismatch, match=f"at version {len(known)}.*run “sendoff migrate”"):
        await db.check_version()
    assert await migrate(database_url, timeout=SECONDS) == [later]
    assert await db.check_version() == later.number
    monkeypatch.undo()
    assert await db.check_version() == later.number


async def test_a_database_from_before_the_first_release_is_told_so(empty_database: str) -> None:
    connection = await asyncpg.connect(empty_database, timeout=SECONDS)
    await connection.execute(
        "CREATE SCHEMA sendoff; CREATE TABLE sendoff.migration (number integer PRIMARY KEY, name text);"
        " INSERT INTO sendoff.migration VALUES (1, 'initial'), (2, 'public_views'), (19, 'finer_places')"
    )
    await connection.close()
    sentence = "before the first release .*“initial”, not “deliveries”.*: use a new database"
    with pytest.raises(SchemaMismatch, match=sentence):
        await migrate(empty_database, timeout=SECONDS)
    db = await open_database(
        empty_database, size=2, connect_timeout=SECONDS, command_timeout=SECONDS, application="sendoff tests"
    )
    with pytest.raises(SchemaMismatch, match=sentence):
        await db.check()
    await db.close()


async def test_the_start_says_to_migrate_where_there_is_no_schema(empty_database: str) -> None:
    db = await open_database(
        empty_database, size=2, connect_timeout=SECONDS, command_timeout=SECONDS, application="sendoff tests"
    )
    with pytest.raises(SchemaMismatch, match="run “sendoff migrate”"):
        await db.check()
    await db.close()


async def test_a_query_that_does_not_fit_the_schema_stops_the_start(database_url: str) -> None:
    db = await open_database(
        database_url, size=2, connect_timeout=SECONDS, command_timeout=SECONDS, application="sendoff tests"
    )
    await db.check()
    async with db.session() as session:
        await session.connection.execute("ALTER TABLE sendoff.exclusion DROP COLUMN detail CASCADE")
    with pytest.raises(SchemaMismatch, match="does not fit the schema"):
        await db.check()
    await db.close()


async def test_no_database_is_told_without_the_password() -> None:
    with pytest.raises(DatabaseUnreachable) as caught:
        await migrate("postgresql://ana:hush@127.0.0.1:1/x", timeout=SECONDS)
    assert "hush" not in str(caught.value)


@pytest.mark.usefixtures("tidy_broker")
def test_migrate_can_run_twice(sendoff: Sendoff, empty_database: str) -> None:
    env = {"SENDOFF_DATABASE_URL": empty_database}
    first, second = sendoff("migrate", env=env), sendoff("migrate", env=env)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "schema: applied 0001 deliveries" in first.stdout
    assert "schema: up to date" in second.stdout


@pytest.mark.usefixtures("tidy_broker")
async def test_the_wheel_carries_everything_that_migrate_needs(
    empty_database: str, prefix: str, tmp_path: Path
) -> None:
    """Installed into an environment of its own, which sees the dependencies but not the checkout."""
    wheels, home, elsewhere = tmp_path / "wheels", tmp_path / "venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", wheels],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
        timeout=60,
    )
    (wheel,) = wheels.iterdir()
    venv.create(home, symlinks=True)
    (site,) = home.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # A path file would bring the editable checkout along; a plain folder on the path does not read those.
    dependencies = Path(asyncpg.__file__).parent.parent
    program = "import sys, worker; print(worker.__file__); from worker.cli import main; main()"

    done = await asyncio.to_thread(
        subprocess.run,
        [home / "bin" / "python", "-c", program, "migrate"],
        cwd=elsewhere,
        env=os.environ
        | {
            "PYTHONPATH": str(dependencies),
            "SENDOFF_DATABASE_URL": empty_database,
            "SENDOFF_QUEUE_PREFIX": prefix,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    assert {"delivery_record", "recipient", "outcome", "migration"} <= await tables(empty_database)
