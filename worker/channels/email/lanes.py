"""The lanes of one relay, by domain; and what is known of them together. Pure: the caller gives the time."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Final

from worker.channels.email.budget import Budget
from worker.channels.email.lane import SLOW_SECONDS, Lane
from worker.channels.protocol import HeldLane

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.channels.email.budget import Part
    from worker.channels.email.capacity import Connections, Pace
    from worker.channels.email.providers import Providers
    from worker.channels.protocol import Share, Want

_SLOW_TIMES: Final = 3
"""A slow lane takes so many times as long as the others."""
_LATELY: Final = 10.0
"""Seconds for which another lane counts as active after its last message."""
_KEPT: Final = 10_000
"""Domains whose lanes are remembered; those in use come on top."""
_EVERYBODY: Final = "*"
"""The name under which the limit of the relay is shown."""


class Lanes:
    """The lanes of one relay."""

    def __init__(
        self, relay: str, providers: Providers, connections: Connections, pace: Pace, per_minute: int = 0
    ) -> None:
        """Takes its parts.

        Args:
            relay: The relay's name. Processes share the limits of messages by it.
            providers: Which domains belong together, and their limits.
            connections: How many connections the relay takes.
            pace: The pauses that the relay wants.
            per_minute: The most messages a minute to the relay, of all processes; 0 for no limit.
        """
        self.relay: Final = relay
        self._connections = connections
        self.pace: Final = pace
        self.budgets: Final = (Budget(f"{relay} {_EVERYBODY}", per_minute),) if per_minute else ()
        self.busy = 0
        """How many connections they have, all together."""
        self.there: set[Lane] = set()
        """Lanes with messages that wait or are claimed."""
        self.slow: set[Lane] = set()
        self.refused: set[Lane] = set()
        """Lanes that were refused since any message passed."""
        self.refused_at = float("-inf")
        """When the first of them was."""
        self._need = 0.0
        """How many connections lanes that are not slow had at a time lately."""
        self._need_at = 0.0
        self._bound = SLOW_SECONDS
        self._bound_until = float("-inf")
        self._providers = providers
        self._by_domain: dict[str, Lane] = {}
        self._by_name: dict[str, Lane] = {}
        self.last: Lane | None = None
        """The lane of the last message that passed."""
        self.last_at = self.other_at = float("-inf")
        """When that was, and when one of another lane passed."""

    @property
    def size(self) -> int:
        """How many connections there are now."""
        return self._connections.limit

    def of(self, address: str) -> Lane:
        """Returns the lane of an address."""
        domain = address.rpartition("@")[2]
        return self._by_domain.get(domain) or self._new(domain)

    def _new(self, domain: str) -> Lane:
        if len(self._by_domain) >= _KEPT:
            self._by_domain = {d: lane for d, lane in self._by_domain.items() if lane.in_use}
            self._by_name = {lane.name: lane for lane in self._by_domain.values()}
            self.slow &= set(self._by_name.values())
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
        relay = [budget.because for budget in self.budgets if budget.hungry]
        size = self.size
        if self.pace.feeling:
            relay, size = [self.pace.because], int(now >= self.pace.until)
        everybody = [self.report(_EVERYBODY, size, passed, self.pace, because) for because in relay]
        return [*everybody, *(held for held in found if held)]

    def report(self, name: str, connections: int, answered: int, pace: Pace, because: str) -> HeldLane:
        """Returns how a lane of this relay, or all of it, is held back."""
        return HeldLane(self.relay, name, connections, answered, pace.until, because)

    def _budgets(self) -> dict[str, Budget]:
        limited = (lane for lane in self._by_name.values() if lane.budgets)
        return {budget.name: budget for lane in limited for budget in lane.budgets}

    def wants(self) -> list[Want]:
        """Returns what is to be leased: for limits that messages wait for."""
        return [budget.want for budget in self._budgets().values() if budget.hungry]

    def _parts(self) -> dict[str, Part]:
        return {lane.part.name: lane.part for lane in self.there if lane.part}

    def shares(self) -> list[Share]:
        """Returns the connections that are to be leased: of lanes that are in use."""
        return [part.share for part in self._parts().values()]

    def grant(self, granted: Mapping[str, int], now: float) -> None:
        """Takes what was leased, by the names of the limits."""
        limits: dict[str, Budget | Part] = self._budgets() | self._parts()
        for name, count in granted.items():
            if name in limits:
                limits[name].grant(count, now)

    def slow_bound(self, now: float) -> float:
        """Returns from how many seconds on a lane is slow: by how long most of the active lanes take."""
        if now >= self._bound_until:
            lately = (lane for lane in self._by_name.values() if now - lane.answered_at < _LATELY)
            means = sorted(lane.seconds for lane in lately)
            typical = means[len(means) // 4] if means else 0.0
            self._bound = max(SLOW_SECONDS, _SLOW_TIMES * typical)
            self._bound_until = now + SLOW_SECONDS
        return self._bound

    @property
    def quarter(self) -> int:
        """A quarter of the connections, one at least."""
        return max(self.size // 4, 1)

    def share(self, lane: Lane, now: float, *, answers: bool) -> int:
        """Returns how many connections a slow lane may have.

        A quarter while the others need the rest; half for all slow ones together. If it answers, it may have
        what the others leave, but for a quarter that they find free at any time: it gives it back soon.
        """
        slow = sum(other.claimed for other in self.slow if other is not lane)
        least = min(self.quarter, max(self.size // 2 - slow, 0 if slow else 1))
        if not answers:
            return least
        # Not what they have in this moment: between two batches they have none, and need them again.
        others = self.busy - sum(other.busy for other in self.slow)
        self._need = max(others, self._need * 0.5 ** ((now - self._need_at) / _LATELY))
        self._need_at = now
        return max(least, self.size - ceil(self._need) - self.quarter - slow)

    def others_active(self, lane: Lane, now: float) -> bool:
        """Whether a message of another lane passed lately."""
        return now - self.passed_beside(lane) < _LATELY

    def passed_beside(self, lane: Lane) -> float:
        """Returns when a message of another lane passed; minus infinity for never."""
        return self.other_at if lane is self.last else self.last_at
