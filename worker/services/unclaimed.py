"""Messages that a sender has read and not claimed: they go on when their lane takes more."""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import islice
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from worker.channels.protocol import Lane
    from worker.services.asked import Asked

_LONGEST: Final = 600.0
"""Seconds for which a message is held. RabbitMQ ends a consumer that holds one for 30 minutes."""
_EXPIRE_EVERY: Final = 60.0
_MOMENT: Final = 1.0
"""Seconds. If the first message of a queue has waited for so long, its lane is not full just for a moment."""
_FEW: Final = 10
"""Hardly anything goes on if it is less than one for so many that are too much."""
_OVERTAKING: Final = 10
"""Deliveries in a row that go before the one that has waited longest."""
_LOOK_EVERY: Final = 0.25
"""Seconds between two looks at lanes that wait: what opens one may be told to nobody."""

_Queue = dict[int, "Asked"]
"""Messages of a lane and a delivery by recipient, in their order."""


class Unclaimed:
    """Holds messages by delivery and lane, in memory; they stay unacknowledged.

    What leaves without a claim must be acknowledged. Its page is published again, as after any other loss.
    """

    def __init__(self, most: int) -> None:
        """Takes the most messages to hold for lanes that take no more now."""
        self._most = most
        self._deliveries: dict[int, dict[Lane | None, _Queue]] = {}
        """A delivery that had a turn goes to the end."""
        self._new: set[int] = set()
        """Those among them that had no turn yet."""
        self._fewest: list[tuple[int, int]] = []
        """How many messages each came with, and its number, as a heap; some are not new any more."""
        self._overtaken = 0
        self._count = 0
        self._expire_at = self._trim_at = 0.0
        self._taken = 0
        """How many were taken since the last that were too much."""

    def __len__(self) -> int:
        """Returns how many it holds."""
        return self._count

    def add(self, messages: Collection[Asked]) -> list[Asked]:
        """Adds messages of one delivery; returns the doubles that they replace."""
        doubles = []
        for one in messages:
            if one.send.delivery_id not in self._deliveries:
                self._new.add(one.send.delivery_id)
                heappush(self._fewest, (len(messages), one.send.delivery_id))
            lanes = self._deliveries.setdefault(one.send.delivery_id, {})
            queue = lanes.get(one.lane)
            if queue is None:
                queue = lanes[one.lane] = {}
            double = queue.get(one.send.recipient)
            queue[one.send.recipient] = one
            if double is not None:
                doubles.append(double)
                continue
            self._count += 1
            if one.lane is not None:
                one.lane.wait()
        return doubles

    def ready(self, now: float) -> bool:
        """Whether a lane takes one of its messages now."""
        return any(lane is None or lane.room(now) for lanes in self._deliveries.values() for lane in lanes)

    def take(self, most: int, now: float) -> tuple[int, dict[int, Asked]] | None:
        """Takes out messages of one delivery whose lanes take them now, and enters their lanes.

        Deliveries have turns, and the lanes of a delivery. A new delivery goes before those that had a turn,
        and the one with the fewest messages first: the others take longer than it would wait.

        Returns:
            The delivery, and its messages by recipient; None if no lane takes one.
        """
        for delivery_id in self._turns():
            lanes = self._deliveries[delivery_id]
            taken = _taken(lanes, most, now)
            if taken:
                self._new.discard(delivery_id)
                del self._deliveries[delivery_id]
                if lanes:
                    self._deliveries[delivery_id] = lanes
                self._count -= len(taken)
                self._taken += len(taken)
                return delivery_id, taken
        return None

    def _turns(self) -> Iterator[int]:
        """Yields the deliveries in the order of their turns.

        A new one whose lane takes none waits with the rest.
        """
        while self._fewest and self._overtaken < _OVERTAKING:
            _, delivery_id = heappop(self._fewest)
            if delivery_id in self._new:
                self._new.discard(delivery_id)
                self._overtaken += 1
                yield delivery_id
        self._overtaken = 0
        yield from self._deliveries

    @property
    def full(self) -> bool:
        """Whether no more messages should be read."""
        return self._count > self._most

    def surplus(self, now: float) -> list[Asked]:
        """Takes out what must not be held: what is too much, and what was held for too long.

        What is too much leaves the longest queue of a lane that is held back, the last that came first. A
        lane that has no room for a moment only keeps its messages: the first of them has not waited for long.
        Then nothing more is read until they go on. While hardly anything else goes on, messages leave once a
        second at most, so that the lane does not run dry.
        """
        left = self._expired(now) if now >= self._expire_at else []
        over = self._count - self._most
        if over <= 0 or (now < self._trim_at and self._taken * _FEW < over):
            return left
        while over > 0:
            held = [
                (len(queue), delivery_id, lane)
                for delivery_id, lanes in self._deliveries.items()
                for lane, queue in lanes.items()
                if lane is not None and now - next(iter(queue.values())).since >= _MOMENT and lane.held(now)
            ]
            if not held:
                break
            longest, delivery_id, lane = max(held, key=lambda one: one[0])
            queue = self._deliveries[delivery_id][lane]
            last = list(queue)[-min(over, longest // 2 + 1) :]
            left += [self._drop(queue[recipient]) for recipient in last]
            over -= len(last)
            self._trim_at, self._taken = now + _MOMENT, 0
        return left

    def _expired(self, now: float) -> list[Asked]:
        self._expire_at = now + _EXPIRE_EVERY
        old = [
            one
            for lanes in self._deliveries.values()
            for queue in lanes.values()
            for one in queue.values()
            if now - one.since >= _LONGEST
        ]
        return [self._drop(one) for one in old]

    def _drop(self, one: Asked) -> Asked:
        lanes = self._deliveries[one.send.delivery_id]
        queue = lanes[one.lane]
        del queue[one.send.recipient]
        if not queue:
            del lanes[one.lane]
        if not lanes:
            del self._deliveries[one.send.delivery_id]
            self._new.discard(one.send.delivery_id)
        self._count -= 1
        if one.lane is not None:
            one.lane.drop()
        return one

    def clear(self) -> None:
        """Forgets all messages: the broker delivers them again."""
        for lanes in self._deliveries.values():
            for lane, queue in lanes.items():
                if lane is not None:
                    lane.drop(len(queue))
        self._deliveries.clear()
        self._new.clear()
        self._fewest.clear()
        self._count = 0

    def look_at(self, now: float) -> float | None:
        """Returns when a lane may take more without a message ending; None if nothing waits."""
        if not self._count:
            return None
        opening = (lane.opens_at for lanes in self._deliveries.values() for lane in lanes if lane is not None)
        return min([now + _LOOK_EVERY, *(at for at in opening if at > now)])


def _taken(lanes: dict[Lane | None, _Queue], most: int, now: float) -> _Queue:
    """Takes messages of one delivery out of the queues whose lanes have room, and enters the lanes."""
    taken: _Queue = {}
    for lane, queue in list(lanes.items()):
        left = most - len(taken)
        room = left if lane is None else min(left, lane.room(now))
        if not room:
            continue
        del lanes[lane]
        some = queue
        if room < len(queue):
            some = {recipient: queue.pop(recipient) for recipient in list(islice(queue, room))}
            lanes[lane] = queue
        if lane is not None:
            lane.enter(len(some))
        taken = taken | some if taken else some
    return taken
