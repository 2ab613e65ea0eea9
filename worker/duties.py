"""Duties: what the scheduler does again and again, each for every delivery that needs it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import structlog

from worker.db.retrying import Idempotent
from worker.domain.failures import Busy

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from prometheus_client import Gauge

    from worker.db.alerts import Raised
    from worker.db.retrying import Retrying
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Duty(Generic[T]):
    """What is done at every tick, for each delivery that is found."""

    name: str
    """Its label in the metrics."""
    doing: str
    """What is done, for the log."""
    find: Callable[[], Coroutine[Any, Any, list[T]]]
    do: Callable[[T], Coroutine[Any, Any, None]]


class DuePages(Protocol):
    """Knows how long pages wait: `worker.db.pages.Pages`."""

    async def oldest_due(self) -> dict[str, float]:
        """Returns, for each channel with due pages, how many seconds the oldest of them has waited."""


def waiting(pages: DuePages, gauge: Gauge) -> Duty[tuple[str, float]]:
    """Returns the duty that measures how long pages wait.

    Args:
        pages: The pages of all deliveries.
        gauge: Shows the wait by channel, and 0 for a channel that has no due page any more.
    """
    known: set[str] = set()

    async def look() -> list[tuple[str, float]]:
        found = await pages.oldest_due()
        known.update(found)
        return [(channel, found.get(channel, 0)) for channel in sorted(known)]

    async def show(found: tuple[str, float]) -> None:
        channel, seconds = found
        gauge.labels(channel).set(seconds)

    return Duty("waiting", "looking how long pages wait", look, show)


class Alerts(Protocol):
    """Raises alerts about deliveries: `worker.db.alerts.Alerts`."""

    async def sample(self) -> None:
        """Stores the progress of each delivery."""

    async def raise_due(self) -> list[Raised]:
        """Raises the alerts that were not raised yet; returns them."""


class Suppression(Protocol):
    """The quarantine and the denylist: `worker.db.suppression.Suppression`."""

    async def expired(self) -> list[str]:
        """Lists the tables in which something has expired."""

    async def lift(self, table: str) -> None:
        """Deletes what has expired in one of them."""

    async def with_successes(self) -> list[int]:
        """Lists the deliveries whose successes are to be looked through."""

    async def forgive(self, delivery_id: int) -> None:
        """Ends the count of errors of addresses to which a delivery was sent."""


def suppression_duties(lists: Suppression) -> tuple[Duty[Any], ...]:
    """Returns what is done for the lists of those who are not written to."""
    return (
        Duty("expiry", "lifting what has expired", lists.expired, lists.lift),
        Duty("successes", "looking for successes", lists.with_successes, lists.forgive),
    )


class Duties:
    """Does duties, so that no delivery holds up the others. Any number may be done side by side."""

    def __init__(self, retrying: Retrying, metrics: Metrics, deadline: float) -> None:
        """Takes what executes transactions, the metrics, and the seconds that one delivery may take."""
        self._retrying = retrying
        self._metrics = metrics
        self._deadline = deadline

    async def do(self, duty: Duty[Any]) -> None:
        """Does a duty for each delivery that is found; one that is too much for now is left out.

        Raises:
            Broken, Stopped: as `worker.db.retrying.Retrier.until_done`.
        """
        self._metrics.duty_timeouts.labels(duty.name)  # there from the first look, at 0
        found = await self.unless_busy(duty.find, duty.doing)
        if found is None:
            return
        done = [await self._in_time(duty, one) for one in found]
        if all(done):
            self.succeeded(duty.name)

    def succeeded(self, name: str) -> None:
        """Notes in the metrics that a duty was done just now."""
        self._metrics.duty_last_success.labels(name).set_to_current_time()

    async def unless_busy(self, action: Callable[[], Coroutine[Any, Any, T]], doing: str) -> T | None:
        """Returns the action's result; None if the database is too busy: the next tick tries again."""
        try:
            return await self._retrying.until_done(Idempotent(action), doing)
        except Busy:  # already logged and counted
            return None

    async def _in_time(self, duty: Duty[T], found: T) -> bool:
        """Does a duty for one delivery; returns whether it could be done within the deadline."""

        async def action() -> bool:
            await duty.do(found)
            return True

        deadline = asyncio.timeout(self._deadline)
        try:
            async with deadline:
                return bool(await self.unless_busy(action, duty.doing))
        except TimeoutError:
            if not deadline.expired():
                raise
        log.warning("duty took too long", doing=duty.doing, found=str(found), seconds=self._deadline)
        self._metrics.duty_timeouts.labels(duty.name).inc()
        return False
