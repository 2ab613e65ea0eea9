"""What every test may ask for: the servers of `dev/servers.py`, and a database of its own on them."""

from __future__ import annotations

import asyncio
import os
import secrets
from typing import TYPE_CHECKING

import aio_pika
import hypothesis
import pytest

from tests.support.database import SECONDS, administer, created, renamed
from tests.support.stack import Stack
from worker.db.migrate import migrate
from worker.db.pool import Database, open_database
from worker.settings import Settings, read_settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

# How long an example takes says how busy the machine is, and nothing about the code.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(scope="session")
def server_settings() -> Settings:
    """The settings of the local servers, as the environment has them."""
    if "SENDOFF_DATABASE_URL" not in os.environ:
        pytest.exit("This test needs the local servers: run make test (ARGS='-k name').", returncode=2)
    return read_settings()


@pytest.fixture(scope="session")
def template_database(server_settings: Settings) -> Iterator[str]:
    """The name of a database that was migrated once, for the others to be copied from."""
    name = f"sendoff_test_{secrets.token_hex(6)}"
    url = server_settings.database_url
    asyncio.run(administer(url, f"CREATE DATABASE {name}"))
    try:
        asyncio.run(migrate(renamed(url, name), timeout=SECONDS))
        yield name
    finally:
        asyncio.run(administer(url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
async def database_url(server_settings: Settings, template_database: str) -> AsyncIterator[str]:
    """The address of a migrated database of the test's own."""
    name = f"{template_database}_{secrets.token_hex(4)}"
    async with created(server_settings.database_url, name, f"TEMPLATE {template_database}") as url:
        yield url


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    """The same database, opened."""
    database = await open_database(
        database_url, size=8, connect_timeout=SECONDS, command_timeout=SECONDS, application="sendoff tests"
    )
    try:
        yield database
    finally:
        await database.close()


@pytest.fixture
def prefix() -> str:
    """A queue prefix of the test's own."""
    return f"t{secrets.token_hex(5)}"


@pytest.fixture
def settings(server_settings: Settings, database_url: str, prefix: str) -> Settings:
    """The settings with the test's own database and queue prefix."""
    return server_settings.model_copy(update={"database_url": database_url, "queue_prefix": prefix})


@pytest.fixture
async def stack(settings: Settings, db: Database, tmp_path: Path) -> AsyncIterator[Stack]:
    """A whole installation of the test's own."""
    async with (
        await aio_pika.connect(settings.amqp_url, timeout=10) as connection,
        Stack(settings, db, connection, tmp_path).set_up() as installation,
    ):
        yield installation
