"""The scheduler: starts due deliveries, ends expired ones, and repairs losses. Any number may run at once.

Each duty is one guarded statement or transaction for each delivery. It looks for rows older than a limit,
never for rows in a window of time. So a duty that was missed while everything was down is done at the next
tick. A duty for which the database is too busy is done at the next tick too; other deliveries and duties go
on.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import structlog

from contracts import routing
from contracts.states import State
from worker.db.retrying import Idempotent
from worker.domain.authority import check_start
from worker.domain.failures import Busy
from worker.domain.states import Move
from worker.lifecycle import pause

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime
    from typing import Any

    from worker.db.accounts import Expired
    from worker.db.alerts import Raised
    from worker.db.pages import Inspected, PagesDue, RetriesLeft
    from worker.db.retrying import Retrying
    from worker.domain.deliveries import Delivery
    from worker.domain.operators import Operator
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

T = TypeVar("T")

_PAGES_AT_ONCE: Final = 200
_LONGEST_SLEEP: Final = 0.5
"""Seconds between two looks for due deliveries: a confirmed delivery is seen within this time."""
_SHORTEST_SLEEP: Final = 0.02


class Deliveries(Protocol):
    """Finds deliveries with due work, and finishes them: `worker.db.deliveries.Deliveries`."""

    async def due(self) -> list[int]:
        """Lists deliveries that must start."""

    async def seconds_to_next_start(self) -> float | None:
        """Returns the seconds until the next contact date; None if no delivery waits."""

    async def expired(self) -> list[int]:
        """Lists deliveries whose validity is over and whose rest is not yet cancelled."""

    async def running(self) -> list[int]:
        """Lists running deliveries."""

    async def await_retries(self, delivery_id: int) -> None:
        """Moves a delivery from *in progress* to *retry pending*."""

    async def finish(self, delivery_id: int) -> bool:
        """Finishes a delivery whose recipients all have an outcome; returns whether this call did."""


class Start(Protocol):
    """The reads and writes of one delivery's start, in a transaction: `worker.db.starts.Start`."""

    async def close_claims(self) -> None:
        """Waits for the claims under way, and blocks new ones until the transaction ends."""

    async def delivery(self) -> Delivery | None:
        """Reads and locks the delivery."""

    async def now(self) -> datetime:
        """Returns the database's time."""

    async def authority(self) -> tuple[str, bool]:
        """Returns the operator under whose authority it starts, and whether a token gave the authority."""

    async def operator(self, name: str) -> Operator | None:
        """Reads an operator."""

    async def move(self, by: Move, reason: str | None = None) -> None:
        """Moves the delivery."""

    async def cancel_remaining(self) -> None:
        """Counts the recipients that were not tried as cancelled."""

    async def open_pages(self) -> None:
        """Opens the pages for the fan-out."""


class Starts(Protocol):
    """Opens the transactions in which deliveries start: `worker.db.starts.Starts`."""

    def begin(self, delivery_id: int) -> AbstractAsyncContextManager[Start]:
        """Opens a transaction for a delivery."""


class Accounts(Protocol):
    """Ends expired claims and cancels recipients: `worker.db.accounts.Accounts`."""

    async def expired(self) -> list[int]:
        """Lists deliveries in which leases of claims have expired."""

    async def expire(self, delivery_id: int, *, result_lease: float) -> Expired:
        """Ends claims with expired leases: they are undone, or become unknown."""

    async def cancel(self, delivery_id: int) -> None:
        """Counts the recipients of a delivery that were not tried as cancelled."""


class Pages(Protocol):
    """The pages of all deliveries: `worker.db.pages.Pages`."""

    async def with_retries(self) -> list[RetriesLeft]:
        """Lists the deliveries with recipients that wait for a retry."""

    async def open_due_retries(self, delivery_id: int) -> int:
        """Opens pages with due retries, to be published again; returns how many."""

    async def to_inspect(self) -> list[PagesDue]:
        """Lists the deliveries with pages to inspect."""

    async def inspect(self, delivery_id: int, again_after: float, limit: int) -> list[Inspected]:
        """Counts the progress of published pages, and sets the time of their next inspection."""

    async def reopen(self, delivery_id: int, pages: Sequence[int]) -> None:
        """Opens pages, to be published again."""

    async def close(self, delivery_id: int, pages: Sequence[int]) -> None:
        """Closes pages."""


class Alerts(Protocol):
    """Raises alerts about deliveries: `worker.db.alerts.Alerts`."""

    async def sample(self) -> None:
        """Stores the progress of each delivery."""

    async def raise_due(self) -> list[Raised]:
        """Raises the alerts that were not raised yet; returns them."""


class Depth(Protocol):
    """Returns how many messages wait in a queue: `worker.amqp.topology.QueueDepth`."""

    async def ready(self, queue: str) -> int | None:
        """Returns how many wait in a queue, by its full name; None if it is not known."""


@dataclass(frozen=True, slots=True)
class ScheduleParts:
    """The parts of the service."""

    retrying: Retrying
    """Executes transactions."""
    deliveries: Deliveries
    """Finds due deliveries, and finishes those that are done."""
    starts: Starts
    """The transactions that start deliveries."""
    accounts: Accounts
    """Ends expired claims."""
    pages: Pages
    """The pages that are inspected here."""
    alerts: Alerts
    """Raises alerts."""
    depth: Depth
    """Says whether the messages of a page may still be in their queue."""
    names: routing.Names
    """The installation's names."""
    metrics: Metrics
    """The metrics."""


@dataclass(frozen=True, slots=True)
class ScheduleLimits:
    """The limits of the service. The numbers are seconds."""

    tick: float
    """Between two looks at deliveries that have started."""
    result_lease: float
    """From a hand-over until a claim without a result becomes `unknown`."""
    look_after: float
    """Between two inspections of a published page."""
    redelivery_after: float
    """From the publish of a page until its unclaimed recipients are published again in any case."""
    alert_interval: float
    """Between two looks for alerts."""
    own_channels: Collection[str]
    """The channels that we send over. In other channels, a foreign sender that does not ask for claims may
    hold unclaimed recipients."""


class ScheduleService:
    """Does its duties at every tick."""

    name = "schedule"

    def __init__(self, parts: ScheduleParts, limits: ScheduleLimits) -> None:
        """Takes its parts and its limits."""
        self._parts = parts
        self._limits = limits

    async def run(self, stop: asyncio.Event) -> None:
        """Starts deliveries at their time, does the other duties at every tick, and alerts, until `stop`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_starting(stop))
            group.create_task(self._keep_looking(stop))
            group.create_task(self._keep_alerting(stop))

    async def _keep_starting(self, stop: asyncio.Event) -> None:
        """Starts due deliveries, and waits for the next date.

        Not long, since an earlier one may be confirmed.
        """
        while not stop.is_set():
            await pause(stop, await self.start_due())

    async def _keep_looking(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self.handle()
            await pause(stop, self._limits.tick)

    async def _keep_alerting(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self.alert()
            await pause(stop, self._limits.alert_interval)

    async def handle(self) -> None:
        """Does one tick for the started deliveries: ends, reopens, repairs and finishes.

        Raises:
            Broken, Stopped: as `worker.db.retrying.Retrier.until_done`. So do the other two duties.
        """
        deliveries, pages = self._parts.deliveries, self._parts.pages
        await self._for_each(self._parts.accounts.expired, self._expire, "ending expired claims")
        await self._for_each(deliveries.expired, self._cancel, "cancelling what is over")
        await self._for_each(pages.with_retries, self._open_retries, "opening due retries")
        await self._for_each(pages.to_inspect, self._inspect_pages, "looking after pages")
        await self._for_each(deliveries.running, self._finish, "finishing what is done")

    async def start_due(self) -> float:
        """Starts due deliveries; returns the seconds until the next look."""
        deliveries, doing = self._parts.deliveries, "starting what is due"
        await self._for_each(deliveries.due, self._start, doing)
        seconds = await self._unless_busy(deliveries.seconds_to_next_start, doing)
        return _LONGEST_SLEEP if seconds is None else min(max(seconds, _SHORTEST_SLEEP), _LONGEST_SLEEP)

    async def alert(self) -> None:
        """Stores the progress of deliveries, and raises alerts."""
        await self._unless_busy(self._alert, "looking for alerts")

    async def _for_each(
        self,
        find: Callable[[], Coroutine[Any, Any, list[T]]],
        duty: Callable[[T], Coroutine[Any, Any, None]],
        doing: str,
    ) -> None:
        """Does a duty for each delivery that is found; skips one for which the database is too busy."""
        for found in await self._unless_busy(find, doing) or []:
            await self._unless_busy(partial(duty, found), doing)

    async def _unless_busy(self, action: Callable[[], Coroutine[Any, Any, T]], doing: str) -> T | None:
        """Returns the action's result; None if the database is too busy: the next tick tries again."""
        try:
            return await self._parts.retrying.until_done(Idempotent(action), doing)
        except Busy:  # already logged and counted
            return None

    async def _alert(self) -> None:
        await self._parts.alerts.sample()
        for raised in await self._parts.alerts.raise_due():
            self._parts.metrics.alerts.labels(raised.criterion.value).inc()
            log.warning(
                "alert",
                delivery_id=raised.delivery_id,
                criterion=raised.criterion.value,
                because=raised.sentence,
            )

    async def _start(self, delivery_id: int) -> None:
        """Starts a delivery, skips it if it is too late, or pauses it if its operator lost the right.

        If several schedulers try, one of them does it.
        """
        async with self._parts.starts.begin(delivery_id) as start:
            # Before the lock of the row, as everywhere: a skip counts the rest as cancelled.
            await start.close_claims()
            delivery = await start.delivery()
            if delivery is None or delivery.state is not State.START_PENDING:
                return
            late = delivery.too_late(await start.now())
            if late is not None:
                reason = f"Skipped: {late}."
                await start.move(Move.FAIL, reason)
                await start.cancel_remaining()
                log.warning("delivery skipped", delivery_id=delivery_id, because=reason)
                return
            name, by_token = await start.authority()
            unauthorised = check_start(await start.operator(name), name, by_token=by_token)
            if unauthorised is not None:
                await start.move(Move.PAUSE, unauthorised)
                log.warning("delivery paused", delivery_id=delivery_id, because=unauthorised)
                return
            await start.move(Move.START)
            await start.open_pages()
        log.info("delivery started", delivery_id=delivery_id)

    async def _expire(self, delivery_id: int) -> None:
        """Ends claims by their leases only; the state of their pages does not matter."""
        ended = await self._parts.accounts.expire(delivery_id, result_lease=self._limits.result_lease)
        self._parts.metrics.claims_expired.inc(ended.unknown)
        self._parts.metrics.claims_given_back.inc(ended.given_back)
        if ended.unknown:
            log.warning(
                "claims without a result are unknown now", delivery_id=delivery_id, recipients=ended.unknown
            )
        if ended.given_back:
            log.info(
                "claims of a sender that is gone are given to others",
                delivery_id=delivery_id,
                recipients=ended.given_back,
            )

    async def _cancel(self, delivery_id: int) -> None:
        await self._parts.accounts.cancel(delivery_id)
        log.warning("validity over: what was not tried is cancelled", delivery_id=delivery_id)

    async def _open_retries(self, left: RetriesLeft) -> None:
        opened = await self._parts.pages.open_due_retries(left.delivery_id)
        self._parts.metrics.pages_reopened.labels("retry").inc(opened)
        if left.only_retries:
            await self._parts.deliveries.await_retries(left.delivery_id)

    async def _inspect_pages(self, due: PagesDue) -> None:
        look_after = self._limits.look_after
        for page in await self._parts.pages.inspect(due.delivery_id, look_after, _PAGES_AT_ONCE):
            await self._act_on_page(due, page)

    async def _act_on_page(self, due: PagesDue, page: Inspected) -> None:
        delivery_id = due.delivery_id
        if due.running and page.unclaimed and await self._is_lost(due.channel, page):
            log.warning(
                "page to be published again",
                delivery_id=delivery_id,
                page=page.page,
                unclaimed=page.unclaimed,
            )
            await self._parts.pages.reopen(delivery_id, [page.page])
            self._parts.metrics.pages_reopened.labels("lost").inc()
        elif due.over or not page.unclaimed:
            await self._parts.pages.close(delivery_id, [page.page])

    async def _is_lost(self, channel: str, page: Inspected) -> bool:
        """Returns whether a page's messages are lost: the queue is empty, or they have waited too long.

        If they still wait and are published again, the second ones are refused: claims decide.
        """
        too_old = page.age > self._limits.redelivery_after
        if channel not in self._limits.own_channels:
            return too_old
        waiting = await self._parts.depth.ready(self._parts.names.queue(routing.send_queue(channel)))
        return waiting is not None and (waiting == 0 or too_old)

    async def _finish(self, delivery_id: int) -> None:
        if await self._parts.deliveries.finish(delivery_id):
            log.info("delivery finished", delivery_id=delivery_id)
