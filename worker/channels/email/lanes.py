"""Lanes: what each provider of mailboxes takes at a time. Pure: the caller gives the time.

A lane is a provider, or a domain that belongs to none. A lane that is slow, that wants a pause or that has a
limit of its own gets its share of the connections and not more, so that the others do not wait for it. As
long as there is no such lane, nothing is limited.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from worker.channels.email.budget import Budget
from worker.channels.email.capacity import Pace
from worker.channels.email.patience import Patience
from worker.channels.protocol import HeldLane

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from worker.channels.email.providers import Limit, Providers
    from worker.channels.protocol import Want

SLOW_SECONDS: Final = 0.25
"""A lane whose messages take less on a connection is not slow."""
_SLOW_TIMES: Final = 3
"""A slow lane takes so many times as long as the others."""
_LATELY: Final = 10.0
"""Seconds for which another lane counts as active after its last message."""
_WEIGHT: Final = 1 / 16
"""What the last message weighs in the mean of the seconds."""
_OUTLIER: Final = 4
"""A message counts for so many times the bound of slowness at most: it takes a few of them to be slow."""
_RELAYS_OWN: Final = 3
"""If so many lanes are refused in a row, and no message passes, the limit is the relay's."""
_ROUNDS_ALONE: Final = 8
"""So often a message is put off while none of its lane passes, over four minutes. Then the refusal stands."""
_FEWEST_TO_SHARE: Final = 4
"""Connections. With fewer, a lane that hangs may get all of them."""
_KEPT: Final = 10_000
"""Domains whose lanes are remembered; those in use come on top."""
_NO_LIMIT: Final = 1 << 30
_EVERYBODY: Final = "*"
"""The name under which the limit of the relay is shown."""


class Lane:
    """What one provider, or one domain, takes."""

    __slots__ = (
        "_busy",
        "_lanes",
        "_limit",
        "_limited",
        "_number",
        "_own",
        "_seconds",
        "_unanswered",
        "answered",
        "budgets",
        "claimed",
        "most",
        "name",
        "pace",
        "patience",
    )

    def __init__(self, lanes: Lanes, limit: Limit) -> None:
        """Takes its name and its limits."""
        self.name = limit.name
        self.most = limit.connections or _NO_LIMIT
        self._own = Budget(f"lane {limit.name}", limit.per_minute) if limit.per_minute else None
        self.budgets: tuple[Budget, ...] = (*([self._own] if self._own else []), *lanes.budgets)
        """What it may send of limits that all processes share."""
        self.claimed = 0
        """How many of its messages are claimed now."""
        self.answered = 0
        """How many of its messages passed."""
        self.pace = Pace()
        self.patience = Patience(_ROUNDS_ALONE)
        self._lanes = lanes
        self._limit = _NO_LIMIT
        """Connections at a time since the last refusal; one more with each message that passes."""
        self._limited = self._always_limited
        """Whether it has a limit of any kind."""
        self._busy: dict[int, float] = {}
        """When each of its messages that are on a connection now began, by a number."""
        self._unanswered = 0
        """How many began since the last one ended: all of them, if it answers nothing."""
        self._number = 0
        self._seconds = 0.0
        """The mean time of a message on a connection."""

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
        return bool(self.claimed or self._busy or self._limit < _NO_LIMIT or self in self._lanes.slow)

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
        if self._calm(now):
            return _NO_LIMIT
        if now < self.pace.until:
            return 0
        room = max(self._allowed(now) - self.claimed, 0)
        if not self.budgets or not room:
            return room
        return min([room, *(budget.room(now) for budget in self.budgets)])

    def free(self, now: float) -> bool:
        """Whether one more of its messages may have a connection."""
        return self._calm(now) or (now >= self.pace.until and len(self._busy) < self._allowed(now))

    def _calm(self, now: float) -> bool:
        """Whether nothing limits it: nearly always, and so it is asked first. It takes 0.1 µs."""
        if self._limited or self._seconds > SLOW_SECONDS or (self._unanswered > 1 and self._may_hang()):
            return False
        return not self._waited_for(now)

    def _waited_for(self, now: float) -> bool:
        """Whether one of its messages has been on a connection for so long as a slow one."""
        for began in self._busy.values():
            return now - began > SLOW_SECONDS
        return False

    def held(self, now: float) -> HeldLane | None:
        """Returns how it is held back now; None if it is not."""
        if not self._limited and self._seconds <= SLOW_SECONDS and not self._waited_for(now):
            return None
        paused = now < self.pace.until
        allowed = 0 if paused else self._allowed(now)
        short = self._own if self._own and self._own.hungry else None
        if allowed >= self._lanes.size() and not short:
            return None
        if self.pace.feeling or self._limit < _NO_LIMIT:
            because = self.pace.because
        elif short:
            because = short.because
        elif allowed == self.most:
            because = "it has this limit"
        else:
            because = "it is slow, or answers nothing, and takes its share of the connections"
        return HeldLane(self.name, min(allowed, self._lanes.size()), self.answered, self.pace.until, because)

    def enter(self) -> None:
        """Notes that one of its messages is about to be claimed."""
        self.claimed += 1
        for budget in self.budgets:
            budget.take()
        if self.claimed == 1:
            self._lanes.present += 1

    def leave(self, *, unused: bool = False) -> None:
        """Notes that one is not claimed any more; whether it was not tried."""
        self.claimed -= 1
        if unused:
            for budget in self.budgets:
                budget.give_back()
        if not self.claimed:
            self._lanes.present -= 1

    def begin(self, now: float) -> int:
        """Notes that one of its messages got a connection; returns a number for `end`."""
        self._number += 1
        self._busy[self._number] = now
        self._unanswered += 1
        return self._number

    def end(self, number: int, now: float) -> None:
        """Notes that a message gave its connection back."""
        seconds = now - self._busy.pop(number)
        self._unanswered = 0
        lanes, mean = self._lanes, self._seconds
        if seconds <= SLOW_SECONDS >= mean:  # nearly always
            self._seconds = mean + (seconds - mean) * _WEIGHT
            lanes.typical += (seconds - lanes.typical) * _WEIGHT
            return
        bound = lanes.slow_bound
        self._seconds += (min(seconds, _OUTLIER * bound) - mean) * _WEIGHT
        if self._seconds <= bound:
            lanes.typical += (seconds - lanes.typical) * _WEIGHT

    def passed(self, now: float) -> None:
        """Notes that the server took one of its messages, or refused it for a reason of the message's own."""
        self.answered += 1
        lanes = self._lanes
        if lanes.refused:
            lanes.refused.clear()
        if lanes.last is not self:
            lanes.other_at, lanes.last = lanes.last_at, self
        lanes.last_at = now
        if self._limited and self._limit < _NO_LIMIT and now >= self.pace.until:
            self.pace.went_well(now)
            self._limit += 1
            if self._limit >= self._lanes.size():
                self._limit = _NO_LIMIT
                self._limited = self._always_limited

    def others_active(self, now: float) -> bool:
        """Whether a message of another lane passed lately."""
        return self._lanes.others_active(self, now)

    def own_limit(self, now: float) -> bool:
        """Notes a refusal for speed; returns whether the limit is this lane's, and not the relay's."""
        refused = self._lanes.refused
        refused.add(self)
        others = self._lanes.present > (self.claimed > 0) or self._lanes.others_active(self, now)
        return others and len(refused) < _RELAYS_OWN

    def slow_down(self, because: str, now: float) -> None:
        """Notes a refusal for speed: a pause, and then one message at a time."""
        self.pace.slow_down(because, now)
        self._limit = 1
        self._limited = True

    def _allowed(self, now: float) -> int:
        allowed = min(self.most, self._limit)
        if self._may_hang():
            return 0
        slow = self._lanes.slow
        if not self._slow(now):
            if self in slow:
                slow.remove(self)
            return allowed
        slow.add(self)
        others = sum(lane.claimed for lane in slow if lane is not self)
        return min(allowed, self._lanes.share(), max(self._lanes.size() // 2 - others, 0 if others else 1))

    def _may_hang(self) -> bool:
        """Whether it has half of the connections, and has answered over none of them, while others are there.

        Its next messages wait for its first answer, so that a lane that hangs cannot get all of them at once.
        """
        size = self._lanes.size()
        return (
            size >= _FEWEST_TO_SHARE
            and self._unanswered >= size // 2
            and self._lanes.present > (self.claimed > 0)
        )

    def _slow(self, now: float) -> bool:
        """Whether it is slow: on average, or because a share of the connections waits for it for long."""
        bound = self._lanes.slow_bound
        if self._seconds <= bound:
            share = self._lanes.share()
            if len(self._busy) < share:
                return False
            if now - next(islice(self._busy.values(), share - 1, None)) <= bound:
                return False
        return self._lanes.others_active(self, now)


class Lanes:
    """The lanes of one relay."""

    def __init__(self, providers: Providers, size: Callable[[], int], per_minute: int = 0) -> None:
        """Takes its parts.

        Args:
            providers: Which domains belong together, and their limits.
            size: Says how many connections there are now.
            per_minute: The most messages a minute to the relay, of all processes; 0 for no limit.
        """
        self.size: Final = size
        self.budgets: Final = (Budget("relay", per_minute),) if per_minute else ()
        self.typical = 0.0
        """The mean time of a message on a connection, of the lanes that are not slow."""
        self.present = 0
        """How many lanes have claimed messages."""
        self.slow: set[Lane] = set()
        self.refused: set[Lane] = set()
        """Lanes that were refused since any message passed."""
        self._providers = providers
        self._by_domain: dict[str, Lane] = {}
        self._by_name: dict[str, Lane] = {}
        self.last: Lane | None = None
        """The lane of the last message that passed."""
        self.last_at = self.other_at = float("-inf")
        """When that was, and when one of another lane passed."""

    def of(self, address: str) -> Lane:
        """Returns the lane of an address."""
        domain = address.rpartition("@")[2]
        return self._by_domain.get(domain) or self._new(domain)

    def _new(self, domain: str) -> Lane:
        if len(self._by_domain) >= _KEPT:
            self._by_domain = {d: lane for d, lane in self._by_domain.items() if lane.in_use}
            self._by_name = {lane.name: lane for lane in self._by_domain.values()}
        limit = self._providers.of(domain)
        lane = self._by_name.get(limit.name)
        if lane is None:
            lane = self._by_name[limit.name] = Lane(self, limit)
        self._by_domain[domain] = lane
        return lane

    def held(self, now: float) -> list[HeldLane]:
        """Returns the lanes that are held back now, and are in use."""
        lanes = list(self._by_name.values())
        found = (lane.held(now) for lane in lanes if lane.in_use or lane.named)
        passed = sum(lane.answered for lane in lanes)
        relay = [
            HeldLane(_EVERYBODY, self.size(), passed, 0.0, budget.because)
            for budget in self.budgets
            if budget.hungry
        ]
        return [*relay, *(held for held in found if held)]

    def _budgets(self) -> dict[str, Budget]:
        limited = (lane for lane in self._by_name.values() if lane.budgets)
        return {budget.name: budget for lane in limited for budget in lane.budgets}

    def wants(self) -> list[Want]:
        """Returns what is to be leased: for limits that messages wait for."""
        return [budget.want for budget in self._budgets().values() if budget.hungry]

    def grant(self, granted: Mapping[str, int], now: float) -> None:
        """Takes what was leased, by the names of the limits."""
        budgets = self._budgets()
        for name, count in granted.items():
            if name in budgets:
                budgets[name].grant(count, now)

    @property
    def slow_bound(self) -> float:
        """From how many seconds on a lane is slow."""
        return max(SLOW_SECONDS, _SLOW_TIMES * self.typical)

    def share(self) -> int:
        """Returns the share of the connections that a slow lane gets; all slow ones get half together."""
        return max(self.size() // 4, 1)

    def others_active(self, lane: Lane, now: float) -> bool:
        """Whether a message of another lane passed lately."""
        return now - (self.other_at if lane is self.last else self.last_at) < _LATELY
