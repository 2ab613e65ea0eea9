"""The scheduler: starts due deliveries, ends expired ones, and repairs losses. Any number may run at once.

Each duty is one guarded statement or transaction for each delivery, and looks for what is older than a limit,
never at a window of time, so that a duty missed while everything was down is done at the next tick. So is one
that the database is too busy for, or that takes too long; other deliveries go on. Duties run side by side.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from contracts import routing
from contracts.states import State
from worker.crashing import crash_point
from worker.domain.authority import check_start
from worker.domain.states import Move
from worker.duties import DuePages, Duties, Duty, waiting
from worker.lifecycle import pause

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from worker.amqp.messages import Depth
    from worker.db.accounts import Expired
    from worker.db.pages import Inspected, PagesDue, RetriesLeft
    from worker.db.retrying import Retrying
    from worker.domain.deliveries import Delivery
    from worker.domain.operators import Operator
    from worker.duties import Alerts
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_PAGES_AT_ONCE: Final = 200
_TURNS: Final = 20
"""Transactions in which retries of one delivery are ended, before the next has its turn."""
_LONGEST_SLEEP: Final = 0.5
"""Seconds between two looks for due deliveries: a confirmed delivery is seen within this time."""
_SHORTEST_SLEEP: Final = 0.02
_LONGEST_WAIT: Final = 86_400
"""Seconds for which messages may wait in the queue of a channel that is not ours."""


class Deliveries(Protocol):
    """Finds deliveries with due work, and finishes them: `worker.db.deliveries.Deliveries`."""

    async def due(self) -> list[int]:
        """Lists deliveries that must start."""

    async def seconds_to_next_start(self) -> float | None:
        """Returns the seconds until the next contact date; None if no delivery waits."""

    async def expired(self) -> list[int]:
        """Lists deliveries whose validity is over and whose rest is not yet cancelled."""

    async def complete(self) -> list[int]:
        """Lists the running ones in which nothing is open."""

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

    async def ending_retries(self) -> list[int]:
        """Lists cancelled deliveries in which somebody waits for a retry."""

    async def end_retries(self, delivery_id: int) -> bool:
        """Ends some thousand of these retries; returns whether there may be more."""

    async def cancel(self, delivery_id: int) -> None:
        """Counts the recipients of a delivery that were not tried as cancelled."""


class Pages(DuePages, Protocol):
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
    more: Sequence[Duty[Any]] = ()
    """Duties that are about no delivery's own course."""


@dataclass(frozen=True, slots=True)
class ScheduleLimits:
    """The limits of the service. The numbers are seconds."""

    tick: float
    """Between two looks at deliveries that have started."""
    result_lease: float
    """From a hand-over until a claim without a result becomes `unknown`. A foreign sender may hold unclaimed
    messages for so long."""
    look_after: float
    """Between two inspections of a published page."""
    redelivery_after: float
    """From the publish of a page until its unclaimed recipients are published again in any case."""
    alert_interval: float
    """Between two looks for alerts."""
    deadline: float
    """Within which a duty must be done for one delivery, before the next has its turn."""
    own_channels: Collection[str]
    """The channels that we send over. The others have foreign senders, of which some do not ask for
    claims."""


class ScheduleService:
    """Does its duties at every tick."""

    name = "schedule"

    def __init__(self, parts: ScheduleParts, limits: ScheduleLimits) -> None:
        """Takes its parts and its limits."""
        self._parts = parts
        self._limits = limits
        self._doing = Duties(parts.retrying, parts.metrics, limits.deadline)
        self._waiting: dict[str, int | None] = {}
        self._starting = Duty("start", "starting what is due", parts.deliveries.due, self._start)
        accounts, deliveries, pages = parts.accounts, parts.deliveries, parts.pages
        self._duties: tuple[Duty[Any], ...] = (
            Duty("claims", "ending expired claims", accounts.expired, self._expire),
            Duty("validity", "cancelling what is over", deliveries.expired, self._cancel),
            Duty("cancelled", "ending cancelled retries", accounts.ending_retries, self._end_retries),
            Duty("retries", "opening due retries", pages.with_retries, self._open_retries),
            Duty("pages", "looking after pages", self._pages_to_inspect, self._look_after_pages),
            Duty("finish", "finishing what is done", deliveries.complete, self._finish),
            waiting(pages, parts.metrics.oldest_due_page),
            *parts.more,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Starts deliveries at their time, does the other duties at every tick, and alerts, until `stop`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_starting(stop))
            group.create_task(self._keep_alerting(stop))
            for duty in self._duties:
                group.create_task(self._keep_doing(duty, stop))

    async def _keep_starting(self, stop: asyncio.Event) -> None:
        """Starts due deliveries, and waits for the next date.

        Not long, since an earlier one may be confirmed.
        """
        while not stop.is_set():
            await pause(stop, await self.start_due())

    async def _keep_doing(self, duty: Duty[Any], stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self._doing.do(duty)
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
        for duty in self._duties:
            await self._doing.do(duty)

    async def start_due(self) -> float:
        """Starts what is due; returns the seconds to the next look."""
        await self._doing.do(self._starting)
        seconds = await self._doing.unless_busy(
            self._parts.deliveries.seconds_to_next_start, self._starting.doing
        )
        return _LONGEST_SLEEP if seconds is None else min(max(seconds, _SHORTEST_SLEEP), _LONGEST_SLEEP)

    async def alert(self) -> None:
        """Notes how far deliveries are, and tells of those in trouble."""
        if await self._doing.unless_busy(self._alert, "looking for alerts"):
            self._doing.succeeded("alerts")

    async def _alert(self) -> bool:
        await self._parts.alerts.sample()
        crash_point("alerts.looked")
        for raised in await self._parts.alerts.raise_due():
            self._parts.metrics.alerts.labels(raised.criterion.value).inc()
            log.warning(
                "alert",
                delivery_id=raised.delivery_id,
                criterion=raised.criterion.value,
                because=raised.sentence,
            )
        return True

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
            crash_point("start.carried-out")
        crash_point("start.committed")
        log.info("delivery started", delivery_id=delivery_id)

    async def _expire(self, delivery_id: int) -> None:
        """Ends claims by their leases only; the state of their pages does not matter."""
        ended = await self._parts.accounts.expire(delivery_id, result_lease=self._limits.result_lease)
        if ended.unknown or ended.given_back:
            crash_point("claims.ended")
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
        crash_point("rest.cancelled")
        log.warning("validity over: what was not tried is cancelled", delivery_id=delivery_id)

    async def _end_retries(self, delivery_id: int) -> None:
        for _ in range(_TURNS):
            more = await self._parts.accounts.end_retries(delivery_id)
            crash_point("retries.ended")
            if not more:
                return

    async def _open_retries(self, left: RetriesLeft) -> None:
        opened = await self._parts.pages.open_due_retries(left.delivery_id)
        if opened:
            crash_point("retries.opened")
        self._parts.metrics.pages_reopened.labels("retry").inc(opened)
        if left.only_retries:
            await self._parts.deliveries.await_retries(left.delivery_id)

    async def _pages_to_inspect(self) -> list[PagesDue]:
        self._waiting.clear()
        return await self._parts.pages.to_inspect()

    async def _look_after_pages(self, due: PagesDue) -> None:
        delivery_id, pages = due.delivery_id, self._parts.pages
        lost: list[Inspected] = []
        done: list[int] = []
        inspected = await pages.inspect(delivery_id, self._limits.look_after, _PAGES_AT_ONCE)
        crash_point("pages.inspected")
        for page in inspected:
            if due.running and page.unclaimed and await self._is_lost(due.channel, page):
                lost.append(page)
            elif due.over or not page.unclaimed:
                done.append(page.page)
        if done:
            await pages.close(delivery_id, done)
            crash_point("pages.closed")
        if lost:
            unclaimed = sum(page.unclaimed for page in lost)
            log.warning(
                "pages to be published again", delivery_id=delivery_id, pages=len(lost), unclaimed=unclaimed
            )
            await pages.reopen(delivery_id, [page.page for page in lost])
            crash_point("pages.reopened")
            self._parts.metrics.pages_reopened.labels("lost").inc(len(lost))

    async def _is_lost(self, channel: str, page: Inspected) -> bool:
        """Returns whether a page's messages are lost: the queue is empty, or they have waited too long.

        If they still wait and are published again, our senders refuse the second ones: claims decide. A
        foreign sender that does not ask for claims sends them twice. So in its channel the queue must be
        empty, and the sender must have had the time in which a result must come. A queue that is never empty
        keeps nobody back for longer than a day.
        """
        too_old = page.age > self._limits.redelivery_after
        if channel not in self._waiting:  # once a tick: a broker that hangs takes 10 s to be given up
            queue = self._parts.names.queue(routing.send_queue(channel))
            self._waiting[channel] = await self._parts.depth.ready(queue)
        messages = self._waiting[channel]
        if messages is None:
            return False
        if channel in self._limits.own_channels:
            return messages == 0 or too_old
        late = too_old and page.age > self._limits.result_lease
        return late and (messages == 0 or page.age > _LONGEST_WAIT)

    async def _finish(self, delivery_id: int) -> None:
        if await self._parts.deliveries.finish(delivery_id):
            crash_point("delivery.finished")
            log.info("delivery finished", delivery_id=delivery_id)
