"""Gathers results, publishes them with confirms, and then acknowledges their send messages."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from contracts import results
from contracts.batch import MAX_ITEMS
from worker.amqp.buffer import Buffer
from worker.amqp.messages import Outgoing
from worker.crashing import crash_point

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.amqp.messages import Consumer, Incoming, Publisher

Result = results.Taken | results.Bounce | results.Error

_AGE: Final = 0.02
"""Seconds that a report waits for others at most, and only while others come."""
_MOST: Final = 10_000
"""The most reports that are published together."""


class Report(NamedTuple):
    """What became of one send message."""

    consumer: Consumer
    message: Incoming
    result: Result | None
    """None if there is nothing to publish: the message is only acknowledged."""
    done: Callable[[], None] | None = None
    """Called when the broker has the result."""


class Reports:
    """The results of one sender."""

    def __init__(
        self, publisher: Publisher, exchange: str, count: Callable[[str, int], None], *, enough: int = 1
    ) -> None:
        """Takes its parts.

        Args:
            publisher: Publishes the results.
            exchange: Their exchange, by its full name.
            count: Called with a routing key and the number of results published with it.
            enough: So many reports wait for no others. Fewer wait a moment, as long as others come.
        """
        self._publisher = publisher
        self._exchange = exchange
        self._count = count
        self._enough = enough
        self._waiting: Buffer[Report] = Buffer()
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, reports: Sequence[Report]) -> None:
        """Adds reports. They are published together when the publisher is free."""
        if reports:
            self._idle.clear()
            self._waiting.add(reports)

    async def flush(self) -> None:
        """Returns when the broker has confirmed all added reports, and their messages are acknowledged."""
        await self._idle.wait()

    async def run(self) -> None:
        """Publishes until it is cancelled."""
        while True:
            taken = await self._waiting.batch(_MOST, _AGE, self._enough)
            by_key: dict[str, list[Any]] = {}
            for report in taken:
                if report.result is not None:
                    by_key.setdefault(results.routing_key(report.result), []).append(report.result)
            async with asyncio.TaskGroup() as group:
                for key, found in by_key.items():
                    group.create_task(self._publish(key, found))
            if by_key:
                crash_point("result.confirmed")
            by_consumer: dict[Consumer, list[Incoming]] = {}
            for report in taken:
                by_consumer.setdefault(report.consumer, []).append(report.message)
                if report.done is not None:
                    report.done()
            for consumer, messages in by_consumer.items():
                consumer.acknowledge(messages)
            if not len(self._waiting):
                self._idle.set()

    async def _publish(self, key: str, found: list[Any]) -> None:
        bodies = [
            Outgoing(results.encode(found[i : i + MAX_ITEMS]), key) for i in range(0, len(found), MAX_ITEMS)
        ]
        await self._publisher.publish(self._exchange, key, bodies)
        self._count(key, len(found))
