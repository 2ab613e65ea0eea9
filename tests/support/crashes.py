"""Worker processes that die at a crash point, one after the other, over one installation."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

from tests.support.checker import Checker
from tests.support.processes import worker
from worker.crashing import POINTS, VARIABLE

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.support.checker import Findings
    from tests.support.stack import Stack

CONNECTIONS = 2
QUICK: dict[str, Any] = {
    "PAGE_SIZE": 10,
    "PAGE_LEASE": 1,
    "EVENT_LEASE": 2,
    "CLAIM_LEASE": 2,
    "RESULT_LEASE": 2,
    "PAGE_LOOK_AFTER": 0.3,
    "TICK": 0.1,
    "RETRY_DELAYS": "0.2",
    "SMTP_CONNECTIONS": CONNECTIONS,
}
"""Leases that are short enough to wait for: what a dead process held is nobody's until they run out."""
SECONDS = 60


class Crashes:
    """Lets workers die over one installation, and says what came of it."""

    def __init__(self, stack: Stack, index: Path | None = None, **env: object) -> None:
        """Takes the installation, the index of its sink, and more of the workers' environment."""
        self.stack = stack
        self.checker = Checker(stack, index)
        self._env = {**QUICK, **env}

    async def at(
        self,
        point: str,
        *services: str,
        begin: Callable[[subprocess.Popen[bytes]], Awaitable[object]] | None = None,
        **env: object,
    ) -> None:
        """Runs a worker until it dies at a point.

        Args:
            point: The point.
            services: What the worker runs.
            begin: What is done once it is started.
            env: More of its environment.
        """
        assert point in POINTS
        own = self._env | {VARIABLE.removeprefix("SENDOFF_"): point} | env
        with worker(self.stack.settings, *services, **own) as victim:
            if begin is not None:
                await begin(victim)
            status = await asyncio.to_thread(victim.wait, SECONDS)
        assert status == -signal.SIGKILL, f"{point}: {status}"
        await self.checker.interrupted()

    async def converge(self, *services: str, **env: object) -> Findings:
        """Runs a worker that does not die until nothing is left to be done; returns what is found then."""
        with worker(self.stack.settings, *services, **(self._env | env)) as process:
            await self.checker.at_rest(SECONDS)
            process.terminate()
            assert await asyncio.to_thread(process.wait, SECONDS) == 0
        found = await self.checker.findings()
        assert found.violations == []
        return found
