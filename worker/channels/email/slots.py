"""Places for messages under way: as many as the server takes connections, and none while it wants a pause."""

from __future__ import annotations

import asyncio
from typing import Final

from worker.channels.email.capacity import Connections, Pace

_NEVER: Final = float("inf")


class Slots:
    """Hands out places. Any number of tasks of one event loop may ask."""

    def __init__(self, size: int) -> None:
        """Takes the most places."""
        self.connections = Connections(size)
        self.pace = Pace()
        self._taken = 0
        self._nobody_waits = False
        self._waiters: dict[asyncio.Future[None], float] = {}
        """Who waits, in their order, and until when."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def because(self) -> str:
        """The server's words, while it wants a pause; else empty."""
        return self.pace.because if self.pace.feeling else ""

    def paused(self, now: float) -> bool:
        """Whether no message may be sent now."""
        return now < self.pace.until

    async def take(self, deadline: float) -> None:
        """Waits for a place. Give it back with `give`.

        Raises:
            TimeoutError: There was none until the deadline, which is a time of the event loop; or there is
                none now and nobody waits any more.
        """
        loop = asyncio.get_running_loop()
        while (free_at := self._free_at(loop.time())) > loop.time():
            if loop.time() >= deadline or self._nobody_waits:
                raise TimeoutError
            await self._woken(min(free_at, deadline))
        self._taken += 1

    async def _woken(self, until: float) -> None:
        """Returns when there may be a place, and at `until` at the latest.

        One timer serves all who wait: most are woken long before, and a timer for each would cost them more
        than the rest of their wait.
        """
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = until
        self._look_at(until)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._wake_one()  # it was woken and cannot use it, so another may
            raise
        finally:
            del self._waiters[waiter]

    def _look_at(self, when: float) -> None:
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(when, self._look)

    def _look(self) -> None:
        """Wakes those whose time has come."""
        self._timer = None
        now = asyncio.get_running_loop().time()
        later = _NEVER
        for waiter, until in self._waiters.items():
            if until > now:
                later = min(later, until)
            elif not waiter.done():
                waiter.set_result(None)
        if later < _NEVER:
            self._look_at(later)

    def _free_at(self, now: float) -> float:
        """Returns when there may be a free place without another being given back; a past time for now."""
        most = self.connections.allowed(now)
        if self.pace.feeling:
            most = 1
        if self._taken < most:
            return self.pace.until
        if not self.pace.feeling and self._taken == self.connections.limit < self.connections.most:
            return max(self.pace.until, self.connections.next_try)
        return _NEVER

    def give(self) -> None:
        """Gives a place back."""
        self._taken -= 1
        self._wake_one()

    def _wake_one(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
                return

    def wake(self) -> None:
        """Lets all who wait look again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def stop_waiting(self) -> None:
        """From now on nobody waits."""
        self._nobody_waits = True
        self.wake()
