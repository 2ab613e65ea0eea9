"""What the tests on real servers share."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import aio_pika
import pytest

from tests.integration.stack import Stack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from worker.db.pool import Database
    from worker.settings import Settings


@pytest.fixture
def sendoff(settings: Settings) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command as a user would, on the test's own database and queues; `env` changes variables."""

    def run(*args: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        own = {"SENDOFF_DATABASE_URL": settings.database_url, "SENDOFF_QUEUE_PREFIX": settings.queue_prefix}
        return subprocess.run(
            [sys.executable, "-m", "worker", *map(str, args)],
            env=os.environ | own | (env or {}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
async def stack(settings: Settings, db: Database, tmp_path: Path) -> AsyncIterator[Stack]:
    """A whole installation of the test's own."""
    async with (
        await aio_pika.connect(settings.amqp_url, timeout=10) as connection,
        Stack(settings, db, connection, tmp_path).set_up() as installation,
    ):
        yield installation
