"""Hand-overs: marked in batches, by whoever is about to send, beside the round trips of the envelope."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping


def seconds_since_boot() -> float:
    """Returns seconds by a clock that never goes back, and that goes on while the machine is suspended."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


class Claimed(NamedTuple):
    """A claim that is held."""

    delivery_id: int
    recipient: int
    token: int


class HandOvers:
    """Gathers the claims that are about to be handed over, and has them marked together.

    A transaction for each mark would be one more for each mail. So whatever asks while a mark is under way is
    marked with the next.
    """

    def __init__(self, mark: Callable[[int, Mapping[int, int]], Awaitable[set[int]]]) -> None:
        """Takes what marks claims of one delivery, by recipient and token, and returns those it marked."""
        self._mark = mark
        self._asked: dict[Claimed, asyncio.Future[bool]] = {}
        self._wake = asyncio.Event()

    def begin(self, claimed: Claimed) -> asyncio.Future[bool]:
        """Asks for a mark.

        Returns:
            Done once it is known whether the claim is marked. Where it is not, nothing may be sent.
        """
        answer = self._asked[claimed] = asyncio.get_running_loop().create_future()
        self._wake.set()
        return answer

    async def run(self) -> None:
        """Marks until it is cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._mark_all()

    async def _mark_all(self) -> None:
        asked, self._asked = self._asked, {}
        by_delivery: dict[int, dict[int, int]] = {}
        for one in asked:
            by_delivery.setdefault(one.delivery_id, {})[one.recipient] = one.token
        try:
            for delivery_id, claims in sorted(by_delivery.items()):
                marked = await self._mark(delivery_id, claims)
                for recipient in marked:
                    answer = asked[Claimed(delivery_id, recipient, claims[recipient])]
                    if not answer.done():
                        answer.set_result(True)
        finally:  # who has not been marked may send nothing, whatever went wrong
            for answer in asked.values():
                if not answer.done():
                    answer.set_result(False)
