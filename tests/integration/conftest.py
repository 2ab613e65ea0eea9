"""What the tests on real servers share."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

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
