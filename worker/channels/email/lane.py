"""A lane: what one provider of mailboxes takes at a time. Pure: the caller gives the time.

A lane is a provider, or a domain that belongs to none. A lane that is slow, that wants a pause or that has a
limit of its own gets its share of the connections and not more, so that the others do not wait for it. As
long as there is no such lane, nothing is limited.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from worker.channels.email.budget import Budget, Part
from worker.channels.email.capacity import Pace

if TYPE_CHECKING:
    from worker.channels.email.lanes import Lanes
    from worker.channels.email.providers import Limit
    from worker.channels.protocol import HeldLane

SLOW_SECONDS: Final = 0.25
"""A lane whose messages take less on a connection is not slow."""
_WEIGHT: Final = 1 / 16
"""What the last message weighs in the mean of the seconds."""
_OUTLIER: Final = 4
"""A message counts for so many times the bound of slowness at most: it takes a few of them to be slow."""
_RELAYS_OWN: Final = 3
"""If so many lanes are refused in a row, and no message passes, the limit is the relay's."""
_RELAYS_OWN_SECONDS: Final = 1.0
"""And if that goes on for so long: providers may also be refused at the same time by chance."""
_PROVEN: Final = 1.0
"""Seconds after an answer for which a lane is known not to hang."""
_FEWEST_TO_SHARE: Final = 4
"""Connections. With fewer, a lane that hangs may get all of them."""
_NO_LIMIT: Final = 1 << 30


class Lane:
    """What one provider, or one domain, takes."""

    __slots__ = (
        "_busy",
        "_deferred",
        "_lanes",
        "_limit",
        "_limited",
        "_number",
        "_own",
        "_part",
        "answered",
        "answered_at",
        "budgets",
        "claimed",
        "most",
        "name",
        "pace",
        "seconds",
        "waiting",
    )

    def __init__(self, lanes: Lanes, limit: Limit) -> None:
        """Takes its name and its limits."""
        self.name = limit.name
        self.most = limit.connections or _NO_LIMIT
        self._part = Part(f"{lanes.relay} {limit.name} connections", self.most) if limit.connections else None
        """Its connections, of all processes together."""
        self._own = Budget(f"{lanes.relay} {limit.name}", limit.per_minute) if limit.per_minute else None
        self.budgets: tuple[Budget, ...] = (*([self._own] if self._own else []), *lanes.budgets)
        """What it may send of limits that all processes share."""
        self.waiting = 0
        """How many of its messages were read and are not claimed."""
        self.claimed = 0
        """How many of its messages are claimed now."""
        self.answered = 0
        """How many of its messages passed."""
        self.pace = Pace()
        self._lanes = lanes
        self._limit = _NO_LIMIT
        """Connections at a time since the last refusal; one more with each message that passes."""
        self._limited = self._always_limited
        """Whether it has a limit of any kind."""
        self._busy: dict[int, float] = {}
        """When each of its messages that are on a connection now began, by a number."""
        self._deferred = False
        """Whether the last message that was answered is to be tried later."""
        self._number = 0
        self.seconds = 0.0
        """The mean time of a message on a connection."""
        self.answered_at = float("-inf")
        """When a message last gave its connection back."""

    @property
    def busy(self) -> int:
        """How many connections it has."""
        return len(self._busy)

    @property
    def named(self) -> bool:
        """Whether it has a limit of its own by the file of providers."""
        return self.most < _NO_LIMIT or self._own is not None

    @property
    def _always_limited(self) -> bool:
        return self.most < _NO_LIMIT or bool(self.budgets)

    @property
    def in_use(self) -> bool:
        """Whether there is something to remember."""
        return bool(self.waiting or self.claimed or self._busy or self._limit < _NO_LIMIT)

    @property
    def part(self) -> Part | None:
        """Its part of a limit of connections, while it needs one."""
        return self._part if self.waiting or self.claimed else None

    @property
    def opens_at(self) -> float:
        """When its pause ends; a past time for none."""
        return self.pace.until

    @property
    def because(self) -> str:
        """Why it is held back, in words for a sentence."""
        return self.pace.because or "it takes its share of the connections"

    def room(self, now: float) -> int:
        """Returns how many more of its messages may be claimed."""
        feeling = self._lanes.pace.feeling
        if not feeling and self._calm(now):
            return _NO_LIMIT
        allowed = self._allowed(now)
        if feeling:  # one of each lane is enough to find out whether the relay takes one
            allowed = min(allowed, 1)
        if self._part:
            allowed = min(allowed, self._part.connections(now))
        room = max(allowed - self.claimed, 0)
        if not self.budgets or not room:
            return room
        return min([room, *(budget.room(now) for budget in self.budgets)])

    def free(self, now: float) -> bool:
        """Whether one more of its messages may have a connection."""
        if self._calm(now):
            return True
        allowed = self._allowed(now)
        return len(self._busy) < (min(allowed, self._lanes.size // 2) if self._unproven(now) else allowed)

    def _calm(self, now: float) -> bool:
        """Whether nothing limits it: nearly always, and so it is asked first. It takes 0.2 µs."""
        if self._limited or self.seconds > SLOW_SECONDS:
            return False
        return not self._busy or (now - self.answered_at <= _PROVEN and not self._waited_for(now))

    def _waited_for(self, now: float) -> bool:
        """Whether one of its messages has been on a connection for so long as a slow one."""
        return bool(self._busy) and now - next(iter(self._busy.values())) > SLOW_SECONDS

    def held(self, now: float) -> HeldLane | None:
        """Returns how it is held back now; None if it is not."""
        if not self._limited and self.seconds <= SLOW_SECONDS and not self._waited_for(now):
            return None
        allowed = min(self._allowed(now), self._part.connections(now) if self._part else _NO_LIMIT)
        short = self._own if self._own and self._own.hungry else None
        if allowed >= self._lanes.size and not short:
            return None
        if self.pace.feeling or self._limit < _NO_LIMIT:
            because = self.pace.because
        elif short:
            because = short.because
        elif self._part and allowed == self._part.connections(now):
            because = "it has this limit"
        else:
            because = "it is slow, or answers nothing, and takes its share of the connections"
        return self._lanes.report(
            self.name, min(allowed, self._lanes.size), self.answered, self.pace, because
        )

    def wait(self) -> None:
        """Notes that one of its messages was read, and waits to be claimed."""
        self.waiting += 1
        self._lanes.there.add(self)

    def drop(self, count: int = 1) -> None:
        """Notes that some that waited will not be claimed here."""
        self.waiting -= count
        self._gone()

    def enter(self, count: int = 1) -> None:
        """Notes that some that waited are about to be claimed."""
        self.waiting -= count
        self.claimed += count
        for budget in self.budgets:
            budget.take(count)

    def leave(self, *, unused: bool = False) -> None:
        """Notes that one is not claimed any more; whether it was not tried."""
        self.claimed -= 1
        if unused:
            for budget in self.budgets:
                budget.give_back()
        self._gone()

    def _gone(self) -> None:
        if not self.claimed and not self.waiting:
            self._lanes.there.discard(self)

    def begin(self, now: float) -> int:
        """Notes that one of its messages got a connection; returns a number for `end`."""
        self._number += 1
        self._busy[self._number] = now
        self._lanes.busy += 1
        return self._number

    def end(self, number: int, now: float) -> None:
        """Notes that a message gave its connection back."""
        seconds = now - self._busy.pop(number)
        self._lanes.busy -= 1
        self.answered_at = now
        if seconds > SLOW_SECONDS:
            seconds = min(seconds, _OUTLIER * self._lanes.slow_bound(now))
        self.seconds += (seconds - self.seconds) * _WEIGHT

    def passed(self, now: float) -> None:
        """Notes that the server took one of its messages, or refused it for a reason of the message's own."""
        self.answered += 1
        self._deferred = False
        lanes = self._lanes
        if lanes.refused:
            lanes.refused.clear()
        if lanes.last is not self:
            lanes.other_at, lanes.last = lanes.last_at, self
        lanes.last_at = now
        if self._limited and self._limit < _NO_LIMIT and now >= self.pace.until:
            self.pace.went_well(now)
            self._limit += 1
            if self._limit >= self._lanes.size:
                self._limit = _NO_LIMIT
                self._limited = self._always_limited

    def deferred(self) -> bool:
        """Notes a refusal that says to try later; returns whether it is not the first in a row."""
        again, self._deferred = self._deferred, True
        return again

    def others_active(self, now: float) -> bool:
        """Whether a message of another lane passed lately."""
        return self._lanes.others_active(self, now)

    def own_limit(self, now: float) -> bool:
        """Notes a refusal for speed; returns whether the limit is this lane's, and not the relay's."""
        lanes = self._lanes
        if not lanes.refused:
            lanes.refused_at = now
        lanes.refused.add(self)
        if len(lanes.refused) >= _RELAYS_OWN and now - lanes.refused_at >= _RELAYS_OWN_SECONDS:
            return False
        return self._others(now) or lanes.passed_beside(self) > float("-inf")

    def slow_down(self, because: str, now: float) -> None:
        """Notes a refusal for speed: a pause, and then one message at a time."""
        self.pace.slow_down(because, now)
        self._limit = 1
        self._limited = True

    def _others(self, now: float) -> bool:
        """Whether there are others that might wait for it."""
        lanes = self._lanes
        return len(lanes.there) > (self in lanes.there) or lanes.others_active(self, now)

    def _allowed(self, now: float) -> int:
        """Returns how many connections it may have."""
        lanes = self._lanes
        if now < self.pace.until:
            return 0
        allowed = min(self.most, self._limit)
        if not self._slow(now):
            lanes.slow.discard(self)
            return allowed
        lanes.slow.add(self)
        answers = self.seconds > lanes.slow_bound(now)
        return min(allowed, lanes.share(self, now, answers=answers))

    def _unproven(self, now: float) -> bool:
        """Whether it has answered nothing lately, while others are there: it may hang.

        Then it gets half of the connections, so that it cannot get all of them before it is known as slow.
        """
        lately = now - self.answered_at <= _PROVEN
        return not lately and self._lanes.size >= _FEWEST_TO_SHARE and self._others(now)

    def _slow(self, now: float) -> bool:
        """Whether it is slow: on average, or because a quarter of the connections waits for it for long."""
        bound = self._lanes.slow_bound(now)
        if self.seconds <= bound:
            quarter = self._lanes.quarter
            if len(self._busy) < quarter:
                return False
            if now - next(islice(self._busy.values(), quarter - 1, None)) <= bound:
                return False
        return self._others(now)
