"""What was delivered and is not handed over yet, and how long a batch of it is waited for."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from worker.amqp.messages import Incoming

CALM: Final = 0.05
"""Seconds without a delivery after which the next is handed over at once: gathering is for busy times."""

LULL: Final = 0.25
"""Of the age that a batch may reach: when nothing has come for so long, it is not waited for any more."""


class Buffer:
    """Deliveries in their order."""

    def __init__(self) -> None:
        """Begins empty."""
        self._waiting: deque[Incoming] = deque()
        self._wanted = 1
        self._enough = asyncio.Event()
        self.stopped = False

    def add(self, messages: Iterable[Incoming]) -> None:
        """Takes deliveries; once stopped, it drops them."""
        if not self.stopped:
            self._waiting.extend(messages)
            # Not at each delivery: whoever waits for a thousand would be woken a hundred times.
            if len(self._waiting) >= self._wanted:
                self._enough.set()

    def clear(self) -> None:
        """Drops what waits, since it will be delivered again."""
        self._waiting.clear()

    def stop(self) -> None:
        """Drops what waits and what comes, and ends the wait."""
        self.stopped = True
        self._waiting.clear()
        self._enough.set()

    async def batch(self, size: int, age: float) -> list[Incoming]:
        """Waits for deliveries, as `worker.amqp.messages.Consumer` says."""
        loop = asyncio.get_running_loop()
        while not self.stopped:
            asked = loop.time()
            await self._reach(1)
            now = loop.time()
            if age and now - asked < CALM:
                await self._fill(size, now + age, age * LULL)
            if self._waiting:  # a lost connection may have taken it along
                break
        return [self._waiting.popleft() for _ in range(min(size, len(self._waiting)))]

    async def _fill(self, size: int, until: float, lull: float) -> None:
        loop = asyncio.get_running_loop()
        had = 0
        while had < len(self._waiting) < size and loop.time() < until:
            had = len(self._waiting)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(lull):
                    await self._reach(size)

    async def _reach(self, count: int) -> None:
        self._wanted = count
        while len(self._waiting) < count and not self.stopped:
            self._enough.clear()
            await self._enough.wait()
