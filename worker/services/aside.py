"""Messages that are put aside: their lane takes no more now. They stay unacknowledged, and hold up nobody."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from worker.channels.protocol import Lane
    from worker.services.asked import Asked

_LONGEST: Final = 600.0
"""Seconds for which a message is held. RabbitMQ ends a consumer that holds one for 30 minutes."""


_LOOK_EVERY: Final = 0.5
"""Seconds between two looks at lanes that wait: what opens one may be told to nobody."""

_Queue = OrderedDict[int, tuple["Asked", float]]
"""The messages of a lane and a delivery by recipient, with the time when they were put aside."""


class Aside:
    """Holds a bounded number of messages, by lane and delivery. What is too much leaves the longest queue.

    What leaves must be acknowledged. Its page is published again, as after any other loss.
    """

    def __init__(self, most: int) -> None:
        """Takes the most messages to hold."""
        self._most = most
        self._queues: dict[tuple[Lane, int], _Queue] = {}
        self._count = 0
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """Returns how many it holds."""
        return self._count

    def enter(self, asked: dict[int, Asked], now: float) -> tuple[dict[int, Asked], list[Asked]]:
        """Enters the lanes of a delivery's messages, and puts aside those whose lane takes no more now.

        Returns:
            The messages that may be claimed, and those to be acknowledged, as of `put`.
        """
        if not self._queues and all(
            one.lane is None or one.lane.room(now) > len(asked) for one in asked.values()
        ):
            for one in asked.values():
                if one.lane is not None:
                    one.lane.enter()
            return asked, []
        entered, left = {}, []
        for recipient, one in asked.items():
            lane = one.lane
            if lane is not None:
                waits = (lane, one.send.delivery_id) in self._queues
                if waits or not lane.room(now):
                    left += self.put(one, lane, now)
                    continue
                lane.enter()
            entered[recipient] = one
        return entered, left

    def keep(self, one: Asked, now: float) -> list[Asked] | None:
        """Puts a message aside that was tried and waits, if it waits for its lane.

        Returns:
            The messages to be acknowledged, as of `put`; None if its lane takes it now.
        """
        lane = one.lane
        if lane is None:
            return None
        lane.leave(unused=True)  # it does not count for itself
        held = not lane.room(now)
        lane.enter()
        return self.put(one, lane, now) if held else None

    def put(self, asked: Asked, lane: Lane, now: float) -> list[Asked]:
        """Puts a message aside; returns those that are to be acknowledged instead.

        These are the double of the message, and what is too much.
        """
        queue = self._queues.setdefault((lane, asked.send.delivery_id), OrderedDict())
        double, since = queue.get(asked.send.recipient, (None, now))
        queue[asked.send.recipient] = asked, since
        self._changed.set()
        if double is not None:
            return [double]
        self._count += 1
        if self._count <= self._most:
            return []
        key, longest = max(self._queues.items(), key=lambda item: len(item[1]))
        self._count -= 1
        (left, _) = longest.popitem()[1]
        if not longest:
            del self._queues[key]
        return [left]

    def take(self, most: int, now: float) -> list[Asked]:
        """Takes out messages whose lanes take them now, and enters them; lanes and deliveries have turns."""
        taken: list[Asked] = []
        for (lane, delivery_id), queue in list(self._queues.items()):
            count = min(lane.room(now), len(queue), most - len(taken))
            for _ in range(count):
                taken.append(queue.popitem(last=False)[1][0])
                lane.enter()
            if count:
                del self._queues[lane, delivery_id]
                if queue:
                    self._queues[lane, delivery_id] = queue  # behind those that had none
        self._count -= len(taken)
        return taken

    def expire(self, now: float) -> list[Asked]:
        """Takes out the messages that were held for too long."""
        old: list[Asked] = []
        for key, queue in list(self._queues.items()):
            while queue and now - next(iter(queue.values()))[1] >= _LONGEST:
                old.append(queue.popitem(last=False)[1][0])
            if not queue:
                del self._queues[key]
        self._count -= len(old)
        return old

    def clear(self) -> None:
        """Forgets all messages."""
        self._queues.clear()
        self._count = 0

    def leave(self, asked: Iterable[Asked], *, unused: bool = False) -> None:
        """Notes that messages are not claimed any more: their lanes may take others.

        Args:
            asked: The messages.
            unused: Whether they were not tried.
        """
        for one in asked:
            if one.lane is not None:
                one.lane.leave(unused=unused)
        if self._count:
            self._changed.set()

    async def wait(self) -> None:
        """Returns when a lane with waiting messages may take one, or one was held for too long."""
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            if any(
                lane.room(now) or now - next(iter(queue.values()))[1] >= _LONGEST
                for (lane, _), queue in self._queues.items()
            ):
                return
            pauses = [lane.opens_at for lane, _ in self._queues if lane.opens_at > now]
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min([now + _LOOK_EVERY, *pauses]) if self._queues else None):
                    await self._changed.wait()
