"""Places for messages under way: as many as the server takes connections, and none while it wants a pause."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from worker.channels.email.capacity import Connections, Pace

if TYPE_CHECKING:
    from worker.channels.email.envelope import Enveloped, Offers
    from worker.channels.email.session import Session

_NEVER: Final = float("inf")


class Waiter:
    """One who waits for a place."""

    __slots__ = ("deadline", "enveloped", "until", "woken")

    def __init__(
        self,
        enveloped: Enveloped | None,
        deadline: float,
        until: float,
        woken: asyncio.Future[Session | None],
    ) -> None:
        """Takes its parts.

        Args:
            enveloped: The message; None if it is none.
            deadline: When it gives up.
            until: When it looks again at the latest.
            woken: Set when there may be a place: to None, or to a session on which the message was begun, and
                whose place is now the message's.
        """
        self.enveloped: Final = enveloped
        self.deadline: Final = deadline
        self.until = until
        self.woken: Final = woken


class Slots:
    """Hands out places. Any number of tasks of one event loop may ask."""

    def __init__(self, size: int) -> None:
        """Takes the most places."""
        self.connections = Connections(size)
        self.pace = Pace()
        self._taken = 0
        self._nobody_waits = False
        self._waiters: dict[Waiter, None] = {}
        """Who waits, in their order."""
        self._begun: set[Waiter] = set()
        """Who waits for the session on which its message was begun."""
        self._timer: asyncio.TimerHandle | None = None

    @property
    def because(self) -> str:
        """The server's words, while it wants a pause; else empty."""
        return self.pace.because if self.pace.feeling else ""

    def paused(self, now: float) -> bool:
        """Whether no message may be sent now."""
        return now < self.pace.until

    async def take(self, deadline: float, enveloped: Enveloped | None = None) -> Session | None:
        """Waits for a place. Give it back with `give`, or pass it on with `hand`.

        Args:
            deadline: Until when, in the time of the event loop.
            enveloped: The message that waits, if it may be begun on a session that is not free yet.

        Returns:
            The session on which the message was begun; None if it was not begun.

        Raises:
            TimeoutError: There was none until the deadline; or there is none now and nobody waits any more.
        """
        loop = asyncio.get_running_loop()
        while (free_at := self._free_at(loop.time())) > loop.time():
            if loop.time() >= deadline or self._nobody_waits:
                raise TimeoutError
            waiter = Waiter(enveloped, deadline, min(free_at, deadline), loop.create_future())
            session = await self._woken(waiter)
            if session is not None:
                return session
        self._taken += 1
        return None

    async def _woken(self, waiter: Waiter) -> Session | None:
        """Returns when there may be a place, and when it is to look again at the latest.

        One timer serves all who wait: most are woken long before, and a timer for each would cost them more
        than the rest of their wait.
        """
        self._waiters[waiter] = None
        self._look_at(waiter.until)
        try:
            return await waiter.woken
        except asyncio.CancelledError:
            if waiter.woken.done() and not waiter.woken.cancelled():
                self._left(waiter.woken.result())
            raise
        finally:
            self._waiters.pop(waiter, None)
            self._begun.discard(waiter)

    def _left(self, session: Session | None) -> None:
        """Lets another have what one who was woken cannot use."""
        if session is None:
            self._wake_one()
        else:
            session.abort()
            self.give()

    def begin_next(self, offers: Offers) -> Waiter | None:
        """Returns the first who waits, if its message may be begun behind another; then it waits for `hand`.

        Args:
            offers: What the server of the session offers.
        """
        waiter = self._first()
        if waiter is None or waiter.enveloped is None or not waiter.enveloped.fits(offers):
            return None
        waiter.until = waiter.deadline
        del self._waiters[waiter]
        self._begun.add(waiter)
        return waiter

    def hand(self, waiter: Waiter, session: Session) -> bool:
        """Passes a place on, with the session on which a message was begun.

        Returns:
            Whether the message still waits for it and may be sent now. If not, the caller keeps the place.
        """
        if waiter.woken.done():
            return False
        usable = session.usable and not self.pace.feeling
        waiter.woken.set_result(session if usable else None)
        return usable

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
        for waiter in (*self._waiters, *self._begun):
            if waiter.until > now:
                later = min(later, waiter.until)
            elif not waiter.woken.done():
                waiter.woken.set_result(None)
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

    def _first(self) -> Waiter | None:
        return next((waiter for waiter in self._waiters if not waiter.woken.done()), None)

    def _wake_one(self) -> None:
        waiter = self._first()
        if waiter is not None:
            waiter.woken.set_result(None)

    def wake(self) -> None:
        """Lets all who wait look again, but for those whose message was begun."""
        for waiter in self._waiters:
            if not waiter.woken.done():
                waiter.woken.set_result(None)

    def stop_waiting(self) -> None:
        """From now on nobody waits."""
        self._nobody_waits = True
        for waiter in (*self._waiters, *self._begun):
            if not waiter.woken.done():
                waiter.woken.set_result(None)
