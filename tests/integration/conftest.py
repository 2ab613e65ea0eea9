"""What the tests on real servers share."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.database import created
from worker.db import stats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.processes import Sendoff
    from worker.settings import Settings


@pytest.fixture
def sendoff(settings: Settings) -> Sendoff:
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
async def empty_database(server_settings: Settings) -> AsyncIterator[str]:
    """The address of a database without a schema."""
    async with created(server_settings.database_url, f"sendoff_test_{secrets.token_hex(6)}") as url:
        yield url


@pytest.fixture(params=["on one connection", "on two"])
def counting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has deliveries of any size recounted as small ones are, or as large ones."""
    if request.param == "on two":
        monkeypatch.setattr(stats, "_LARGE", 0)
