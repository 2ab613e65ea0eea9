"""The clock: starts what is due, ends what is over, and repairs what was lost. Any number may run at once.

Each duty is one guarded statement or transaction for each delivery, and looks for what is older than a limit,
never at a window of time, so that a duty missed while everything was down is done at the next tick. So is one
that the database is too busy for; other deliveries and other duties go on.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from contracts import routing
from contracts.states import State
from worker.db import accounts, alerts, commands, deliveries, pages
from worker.db.retrying import Idempotent
from worker.domain.authority import check_start
from worker.domain.failures import Busy
from worker.domain.states import Move
from worker.lifecycle import pause

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    import asyncpg

    from worker.amqp.topology import QueueDepth
    from worker.db.accounts import Accounts
    from worker.db.pages import Inspected, PagesDue, RetriesLeft
    from worker.db.pool import Database
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_PAGES_AT_ONCE: Final = 200
_LONGEST_SLEEP: Final = 0.5
"""Seconds between two looks for what is to start: within this time of its confirmation a delivery is seen."""
_SHORTEST_SLEEP: Final = 0.02


class ScheduleService:
    """Ticks."""

    name = "schedule"

    def __init__(
        self,
        depth: QueueDepth,
        db: Database,
        accounts: Accounts,
        names: routing.Names,
        metrics: Metrics,
        *,
        tick: float,
        claim_lease: float,
        look_after: float,
        redelivery_after: float,
        alert_interval: float,
    ) -> None:
        """Takes its parts.

        Args:
            depth: Tells how many messages wait in a queue.
            db: The database.
            accounts: Where claims run out.
            names: The installation's names.
            metrics: Where to count.
            tick: Seconds between two looks.
            claim_lease: Seconds after which a claim without a result is `unknown`.
            look_after: Seconds between two looks at a published page.
            redelivery_after: Seconds after which an unclaimed page is published again in any case.
            alert_interval: Seconds between two looks for alerts.
        """
        self._depth = depth
        self._db = db
        self._accounts = accounts
        self._names = names
        self._metrics = metrics
        self._tick = tick
        self._claim_lease = claim_lease
        self._look_after = look_after
        self._redelivery_after = redelivery_after
        self._alert_interval = alert_interval

    async def run(self, stop: asyncio.Event) -> None:
        """Starts deliveries at their time, does the other duties at every tick, and alerts, until `stop`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_starting(stop))
            group.create_task(self._keep_looking(stop))
            group.create_task(self._keep_alerting(stop))

    async def _keep_starting(self, stop: asyncio.Event) -> None:
        """Sleeps until the next contact date; not for long, as any moment an earlier one may be confirmed."""
        while not stop.is_set():
            await pause(stop, await self._start_due())

    async def _keep_looking(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self._cancel_expired()
            await self._open_retries()
            await self._look_after_pages()
            await self._finish_done()
            await pause(stop, self._tick)

    async def _keep_alerting(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self._do(self._alert, "looking for alerts")
            await pause(stop, self._alert_interval)

    async def _do(self, duty: Callable[[], Coroutine[Any, Any, None]], doing: str) -> None:
        """Does a duty, for one delivery where it has to do with any; not now if the database is too busy."""
        with contextlib.suppress(Busy):  # logged and counted where it is given up
            await self._db.until_done(Idempotent(duty), doing)

    async def _read(self, query: str, doing: str) -> list[asyncpg.Record]:
        with contextlib.suppress(Busy):
            return await self._db.until_done(Idempotent(lambda: self._db.fetch(query)), doing)
        return []

    async def _alert(self) -> None:
        await alerts.sample(self._db)
        for raised in await alerts.raise_due(self._db):
            self._metrics.alerts.labels(raised.criterion.value).inc()
            log.warning(
                "alert",
                delivery_id=raised.delivery_id,
                criterion=raised.criterion.value,
                because=raised.sentence,
            )

    async def _start_due(self) -> float:
        """Starts what is due; returns the seconds to the next look."""
        doing = "starting what is due"
        for row in await self._read("read_due_deliveries", doing):
            await self._do(partial(self._start, row["delivery_id"]), doing)
        rows = await self._read("read_seconds_to_next_start", doing)
        seconds = rows[0][0] if rows else None
        return _LONGEST_SLEEP if seconds is None else min(max(seconds, _SHORTEST_SLEEP), _LONGEST_SLEEP)

    async def _start(self, delivery_id: int) -> None:
        """Starts a delivery, skips it where it is too late, or pauses it where nobody stands for it any more.

        Of several schedulers, one does.
        """
        async with self._db.transaction() as tx:
            # Before the row's lock, as everywhere: a skip counts the rest as cancelled.
            await accounts.close_claims(tx, delivery_id)
            delivery = await deliveries.read_for_update(tx, delivery_id)
            if delivery is None or delivery.state is not State.START_PENDING:
                return
            late = delivery.too_late(await deliveries.now(tx))
            if late is not None:
                reason = f"Skipped: {late}."
                await deliveries.move(tx, delivery_id, Move.FAIL, reason=reason)
                await accounts.cancel_remaining(tx, delivery_id)
                log.warning("delivery skipped", delivery_id=delivery_id, because=reason)
                return
            name, by_token = await deliveries.authority(tx, delivery_id)
            unauthorised = check_start(await commands.read_operator(tx, name), name, by_token=by_token)
            if unauthorised is not None:
                await deliveries.move(tx, delivery_id, Move.PAUSE, reason=unauthorised)
                log.warning("delivery paused", delivery_id=delivery_id, because=unauthorised)
                return
            await deliveries.move(tx, delivery_id, Move.START)
            await pages.start(tx, delivery_id)
        log.info("delivery started", delivery_id=delivery_id)

    async def _cancel_expired(self) -> None:
        doing = "cancelling what is over"
        for row in await self._read("read_expired_deliveries", doing):
            await self._do(partial(self._cancel, row["delivery_id"]), doing)

    async def _cancel(self, delivery_id: int) -> None:
        async with self._db.transaction() as tx:
            await accounts.close_claims(tx, delivery_id)
            await accounts.cancel_remaining(tx, delivery_id)
        log.warning("validity over: what was not tried is cancelled", delivery_id=delivery_id)

    async def _open_retries(self) -> None:
        doing = "opening due retries"
        with contextlib.suppress(Busy):
            for left in await self._db.until_done(Idempotent(lambda: pages.with_retries(self._db)), doing):
                await self._do(partial(self._open_retries_of, left), doing)

    async def _open_retries_of(self, left: RetriesLeft) -> None:
        opened = await pages.open_due_retries(self._db, left.delivery_id)
        self._metrics.pages_reopened.labels("retry").inc(opened)
        if left.only_retries:
            async with self._db.transaction() as tx:
                await deliveries.move(tx, left.delivery_id, Move.AWAIT_RETRIES)

    async def _look_after_pages(self) -> None:
        doing = "looking after pages"
        with contextlib.suppress(Busy):
            for due in await self._db.until_done(Idempotent(lambda: pages.to_inspect(self._db)), doing):
                await self._do(partial(self._look_after_pages_of, due), doing)

    async def _look_after_pages_of(self, due: PagesDue) -> None:
        for page in await pages.inspect(self._db, due.delivery_id, self._look_after, _PAGES_AT_ONCE):
            await self._look_after_page(due, page)

    async def _look_after_page(self, due: PagesDue, page: Inspected) -> None:
        delivery_id = due.delivery_id
        if page.sending:
            lost = await self._accounts.expire(delivery_id, page.first, page.last, lease=self._claim_lease)
            self._metrics.claims_expired.inc(lost)
            if lost:
                log.warning(
                    "claims without a result are unknown now", delivery_id=delivery_id, recipients=lost
                )
        if due.running and page.unclaimed and await self._is_lost(due.channel, page):
            log.warning(
                "page to be published again",
                delivery_id=delivery_id,
                page=page.page,
                unclaimed=page.unclaimed,
            )
            await pages.reopen(self._db, delivery_id, [page.page])
            self._metrics.pages_reopened.labels("lost").inc()
        elif not page.sending and (due.over or not page.unclaimed):
            await pages.close(self._db, delivery_id, [page.page])

    async def _is_lost(self, channel: str, page: Inspected) -> bool:
        """Says whether a page's messages are gone: none waits in the queue, or they have waited too long.

        Published again though they still wait, they are merely refused: claims decide.
        """
        waiting = await self._depth.ready(self._names.queue(routing.send_queue(channel)))
        return waiting is not None and (waiting == 0 or page.age > self._redelivery_after)

    async def _finish_done(self) -> None:
        doing = "finishing what is done"
        for row in await self._read("read_active_deliveries", doing):
            await self._do(partial(self._finish, row["delivery_id"]), doing)

    async def _finish(self, delivery_id: int) -> None:
        if await deliveries.finish(self._db, delivery_id):
            log.info("delivery finished", delivery_id=delivery_id)
