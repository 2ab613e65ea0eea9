"""Publishes what calls say, many calls together, and tells each when the broker has confirmed it.

While one batch waits for its confirms, the next one gathers. So a burst costs few round trips, and a lonely
call waits for nobody.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING, Final, TypeVar

from contracts import results, routing, tracking
from worker.amqp.messages import Outgoing
from worker.crashing import crash_point

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from contracts.results import Bounce
    from contracts.routing import Names
    from contracts.tracking import TrackingEvent
    from worker.amqp.prompt import PromptPublisher

T = TypeVar("T")

_TOGETHER: Final = 1_000
"""Of one message (contracts/batch.py)."""
_MOST_WAITING: Final = 50_000
"""Facts that wait for a batch; with more, calls are to come again."""


class Outlet:
    """Makes facts safe."""

    def __init__(self, publisher: PromptPublisher, names: Names) -> None:
        """Takes what publishes with confirms, and the exchanges."""
        self._publisher = publisher
        self._names = names
        self._waiting: list[tuple[Sequence[Bounce | TrackingEvent], asyncio.Future[bool]]] = []
        self._facts = 0
        self._woken = asyncio.Event()

    async def put(self, facts: Sequence[Bounce | TrackingEvent]) -> bool:
        """Returns whether the broker has confirmed the facts; if not, they are to come again."""
        if not facts:
            return True
        if not self._publisher.takes or self._facts >= _MOST_WAITING:
            return False
        safe: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((facts, safe))
        self._facts += len(facts)
        self._woken.set()
        return await safe

    async def run(self, ended: asyncio.Event) -> None:
        """Publishes until `ended` is set and nothing waits."""
        async with asyncio.TaskGroup() as group:
            ending = group.create_task(self._wake_at(ended))
            while self._waiting or not ended.is_set():
                await self._woken.wait()
                self._woken.clear()
                if self._waiting:
                    await self._publish_waiting()
            ending.cancel()

    async def _wake_at(self, ended: asyncio.Event) -> None:
        await ended.wait()
        self._woken.set()

    async def _publish_waiting(self) -> None:
        together, self._waiting, self._facts = self._waiting, [], 0
        safe = False
        try:
            safe = await self._publish([fact for facts, _ in together for fact in facts])
        finally:
            for _, told in together:
                if not told.done():  # a client that is gone waits for nothing
                    told.set_result(safe)

    async def _publish(self, facts: Sequence[Bounce | TrackingEvent]) -> bool:
        bounces: list[Bounce] = []
        events: defaultdict[str, list[TrackingEvent]] = defaultdict(list)
        for fact in facts:
            if isinstance(fact, results.Bounce):
                bounces.append(fact)
            else:
                events[fact.kind].append(fact)
        sent = [self._send(routing.RESULTS, routing.BOUNCE, map(results.encode, _parts(bounces)))]
        for key, some in events.items():
            sent.append(self._send(routing.TRACKING, key, map(tracking.encode, _parts(some))))
        safe = all(await asyncio.gather(*sent))
        crash_point("webhook.confirmed")
        return safe

    async def _send(self, exchange: str, key: str, bodies: Iterable[bytes]) -> bool:
        messages = [Outgoing(body, key) for body in bodies]
        if not messages:
            return True
        safe = await self._publisher.publish(self._names.exchange(exchange), key, messages)
        crash_point("webhook.part")
        return safe


def _parts(facts: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(facts), _TOGETHER):
        yield facts[start : start + _TOGETHER]
