"""What has come and nobody has taken yet, such as messages of the broker, and the wait for a batch of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from worker.amqp.messages import Incoming

T = TypeVar("T")

CALM: Final = 0.05
"""Seconds without an item after which the next one is returned at once. Batches are for busy times."""

LULL: Final = 0.25
"""Share of a batch's greatest age. If no item comes for that long, the wait for the batch ends."""

USUAL: Final = 4
"""The priority of messages without one, as RabbitMQ 4 has it; a message with more goes first."""


def has_priority(message: Incoming) -> bool:
    """Whether a message goes before those without a priority."""
    return message.priority > USUAL


class Buffer(Generic[T]):
    """Items in their order, or some of them before the others."""

    def __init__(self, urgent: Callable[[T], bool] | None = None) -> None:
        """Begins empty.

        Args:
            urgent: Which items overtake the others here, such as messages with a priority; None for none.
        """
        self._urgent = urgent
        self._first: deque[T] = deque()
        self._waiting: deque[T] = deque()
        self._wanted = 1
        self._enough = asyncio.Event()
        self.stopped = False

    def __len__(self) -> int:
        """Returns how many wait."""
        return len(self._first) + len(self._waiting)

    def add(self, items: Iterable[T]) -> None:
        """Takes items; after a stop, it drops them."""
        if self.stopped:
            return
        if self._urgent:
            for item in items:
                (self._first if self._urgent(item) else self._waiting).append(item)
        else:
            self._waiting.extend(items)
        # Not at each item: a task that waits for a thousand would be woken a hundred times.
        if len(self) >= self._wanted:
            self._enough.set()

    def clear(self) -> None:
        """Drops the items that wait: the broker will deliver them again."""
        self._first.clear()
        self._waiting.clear()

    def stop(self) -> None:
        """Drops the items that wait and those that come later, and ends the wait."""
        self.stopped = True
        self._first.clear()
        self._waiting.clear()
        self._enough.set()

    async def batch(self, size: int, age: float, enough: int | None = None) -> list[T]:
        """Waits for items, as `worker.amqp.messages.Consumer` says.

        Args:
            size: The most items.
            age: How long it waits after the first item, in seconds, while others come.
            enough: So many items end the wait; None for `size`.
        """
        loop = asyncio.get_running_loop()
        while not self.stopped:
            asked = loop.time()
            await self._reach(1)
            now = loop.time()
            if age and now - asked < CALM:
                await self._fill(size if enough is None else enough, now + age, age * LULL)
            if len(self):  # a lost connection may have emptied it
                break
        first = [self._first.popleft() for _ in range(min(size, len(self._first)))]
        room = min(size - len(first), len(self._waiting))
        return first + [self._waiting.popleft() for _ in range(room)]

    async def _fill(self, enough: int, until: float, lull: float) -> None:
        loop = asyncio.get_running_loop()
        had = 0
        while had < len(self) < enough and loop.time() < until:
            had = len(self)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(lull):
                    await self._reach(enough)

    async def _reach(self, count: int) -> None:
        self._wanted = count
        while len(self) < count and not self.stopped:
            self._enough.clear()
            await self._enough.wait()
