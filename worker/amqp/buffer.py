"""The messages that the broker delivered and no service has taken yet, and the wait for a batch of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from worker.amqp.messages import Incoming

CALM: Final = 0.05
"""Seconds without a message after which the next one is returned at once. Batches are for busy times."""

LULL: Final = 0.25
"""Share of a batch's greatest age. If no message comes for that long, the wait for the batch ends."""


class Buffer:
    """Messages in their order."""

    def __init__(self) -> None:
        """Begins empty."""
        self._waiting: deque[Incoming] = deque()
        self._wanted = 1
        self._enough = asyncio.Event()
        self.stopped = False

    def add(self, messages: Iterable[Incoming]) -> None:
        """Takes messages; after a stop, it drops them."""
        if not self.stopped:
            self._waiting.extend(messages)
            # Not at each message: a task that waits for a thousand would be woken a hundred times.
            if len(self._waiting) >= self._wanted:
                self._enough.set()

    def clear(self) -> None:
        """Drops the messages that wait: the broker will deliver them again."""
        self._waiting.clear()

    def stop(self) -> None:
        """Drops the messages that wait and those that come later, and ends the wait."""
        self.stopped = True
        self._waiting.clear()
        self._enough.set()

    async def batch(self, size: int, age: float) -> list[Incoming]:
        """Waits for messages, as `worker.amqp.messages.Consumer` says."""
        loop = asyncio.get_running_loop()
        while not self.stopped:
            asked = loop.time()
            await self._reach(1)
            now = loop.time()
            if age and now - asked < CALM:
                await self._fill(size, now + age, age * LULL)
            if self._waiting:  # a lost connection may have emptied it
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
