"""Marks hand-overs in batches, at the same time as the round trips of the envelopes."""

from __future__ import annotations

import asyncio
import time
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping


def seconds_since_boot() -> float:
    """Returns seconds of a monotonic clock that also runs while the machine is suspended."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


class Claimed(NamedTuple):
    """A claim that is held."""

    delivery_id: int
    recipient: int
    token: int


class HandOvers:
    """Gathers the claims that will be handed over next, and marks them together.

    A transaction for each mark would be one more for each mail. So all claims that ask during a mark are
    marked together in the next one. If the process dies, every claim that is marked and has no published
    result is in doubt. So only so many are marked at the same time.
    """

    def __init__(
        self,
        mark: Callable[[int, Mapping[int, int]], Awaitable[set[int]]],
        at_most: int,
        on_end: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Takes its parts.

        Args:
            mark: Marks a delivery's claims, by recipient, and returns those it marked.
            at_most: The most claims that are marked and not ended.
            on_end: Called with the seconds that a claim was in doubt, from its mark to its end.
        """
        self._mark = mark
        self._at_most = at_most
        self._on_end = on_end
        self._asked: dict[Claimed, asyncio.Future[bool]] = {}
        self._marked: dict[Claimed, float | None] = {}
        """Since when each is marked; None while the answer is not known, or is no."""
        self._wake = asyncio.Event()

    def begin(self, claimed: Claimed) -> asyncio.Future[bool]:
        """Asks for a mark.

        Returns:
            Done when the answer is known. If the claim is not marked, the message must not be sent.
        """
        answer = self._asked[claimed] = asyncio.get_running_loop().create_future()
        self._wake.set()
        return answer

    def end(self, claimed: Claimed) -> None:
        """Notes that the broker has the result of a claim, or that nothing was sent; others can be marked."""
        self._asked.pop(claimed, None)
        since = self._marked.pop(claimed, None)
        if since is not None:
            self._on_end(seconds_since_boot() - since)
        self._wake.set()

    async def run(self) -> None:
        """Marks until it is cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            asked = list(islice(self._asked, self._at_most - len(self._marked)))
            if asked:
                await self._mark_all({one: self._asked.pop(one) for one in asked})

    async def _mark_all(self, asked: dict[Claimed, asyncio.Future[bool]]) -> None:
        self._marked.update(dict.fromkeys(asked))
        by_delivery: dict[int, dict[int, int]] = {}
        for one in asked:
            by_delivery.setdefault(one.delivery_id, {})[one.recipient] = one.token
        try:
            for delivery_id, claims in sorted(by_delivery.items()):
                marked = await self._mark(delivery_id, claims)
                now = seconds_since_boot()
                for recipient in marked:
                    claimed = Claimed(delivery_id, recipient, claims[recipient])
                    if claimed in self._marked:
                        self._marked[claimed] = now
                    answer = asked[claimed]
                    if not answer.done():
                        answer.set_result(True)
        finally:  # a claim that was not marked must not be sent, after any error
            for answer in asked.values():
                if not answer.done():
                    answer.set_result(False)


class Right:
    """The right to hand one claimed message over, as a channel uses it."""

    __slots__ = ("_answer", "_claimed", "_hand_overs", "_until")

    def __init__(self, hand_overs: HandOvers, claimed: Claimed, until: float) -> None:
        """Takes its parts.

        Args:
            hand_overs: Marks the claim.
            claimed: The claim.
            until: When no send is begun any more, in seconds since the boot.
        """
        self._hand_overs = hand_overs
        self._claimed = claimed
        self._until = until
        self._answer: asyncio.Future[bool] | None = None

    def begin(self) -> asyncio.Future[bool]:
        """Begins to mark the message as handed over. A repeat changes nothing."""
        if self._answer is None:
            self._answer = self._hand_overs.begin(self._claimed)
        return self._answer

    def end(self) -> None:
        """Notes that the broker has the result, or that nothing was sent."""
        if self._answer is not None:
            self._hand_overs.end(self._claimed)

    @property
    def expired(self) -> bool:
        """Whether the lease is nearly over."""
        return seconds_since_boot() >= self._until
