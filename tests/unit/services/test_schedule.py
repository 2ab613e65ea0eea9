"""The scheduler: what a tick does for which delivery, what it leaves alone, and how it looks at a page."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from contracts import routing
from contracts.events import Criterion
from contracts.states import State
from tests.support.fakes import FakeDepth, FakeRetrying, counts, metrics
from tests.support.fakes_schedule import (
    ANA,
    CONFIRMED,
    NOON,
    FakeAccounts,
    FakeAlerts,
    FakeDeliveries,
    FakePages,
    FakeStarts,
)
from worker.db.accounts import Expired
from worker.db.alerts import Raised
from worker.db.pages import Inspected, PagesDue, RetriesLeft
from worker.domain.failures import Broken, Busy
from worker.services.schedule import ScheduleLimits, ScheduleParts, ScheduleService

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.domain.deliveries import Delivery
    from worker.domain.operators import Operator

NAMES = routing.Names("p")
QUEUE = NAMES.queue(routing.send_queue("null"))
RUNNING = PagesDue(1, "null", running=True, over=False)
PAUSED = PagesDue(1, "null", running=False, over=False)
OVER = PagesDue(1, "null", running=False, over=True)


def inspected(*, unclaimed: int = 0, age: float = 60, page: int = 1) -> Inspected:
    return Inspected(page, age=age, unclaimed=unclaimed)


class Setup:
    """A service on fakes; the send queue is empty."""

    def __init__(
        self, fails: Mapping[str, Exception] | None = None, deadline: float = 60, result_lease: float = 900
    ) -> None:
        self.deliveries = FakeDeliveries()
        self.starts = FakeStarts()
        self.accounts = FakeAccounts()
        self.pages = FakePages()
        self.alerts = FakeAlerts()
        self.depth = FakeDepth({QUEUE: 0})
        self.metrics = metrics()
        parts = ScheduleParts(
            retrying=FakeRetrying(fails),
            deliveries=self.deliveries,
            starts=self.starts,
            accounts=self.accounts,
            pages=self.pages,
            alerts=self.alerts,
            depth=self.depth,
            names=NAMES,
            metrics=self.metrics,
        )
        limits = ScheduleLimits(
            tick=1,
            result_lease=result_lease,
            look_after=30,
            redelivery_after=3_600,
            alert_interval=60,
            own_channels={"null"},
            deadline=deadline,
        )
        self.service = ScheduleService(parts, limits)

    async def start(self, delivery: Delivery | None = CONFIRMED) -> list[str]:
        """Starts one delivery; returns what was committed."""
        self.deliveries.due_now = [1]
        self.starts.deliveries = {} if delivery is None else {1: delivery}
        await self.service.start_due()
        return self.starts.committed[1]


async def test_a_due_delivery_starts_and_its_pages_are_opened() -> None:
    assert await Setup().start() == ["close claims", "start", "open pages"]


@pytest.mark.parametrize(
    "delivery", [None, replace(CONFIRMED, state=State.IN_PROGRESS)], ids=["gone", "started by another"]
)
async def test_a_delivery_that_waits_no_more_is_left_alone(delivery: Delivery | None) -> None:
    assert await Setup().start(delivery) == ["close claims"]


async def test_a_delivery_that_is_too_late_is_skipped_and_its_rest_cancelled() -> None:
    setup = Setup()
    setup.starts.time = NOON + timedelta(hours=2)
    closed, failed, cancelled = await setup.start(replace(CONFIRMED, late_limit=timedelta(hours=1)))
    assert (closed, cancelled) == ("close claims", "cancel the rest")
    assert failed.startswith("fail: Skipped: it was due at 2026-12-01T12:00:00+00:00 and may start 1h late")


@pytest.mark.parametrize(
    "operator", [None, replace(ANA, roles=frozenset()), replace(ANA, active=False)], ids=repr
)
async def test_a_delivery_whose_operator_may_not_start_it_any_more_is_paused(
    operator: Operator | None,
) -> None:
    setup = Setup()
    setup.starts.operators = {} if operator is None else {"ana": operator}
    closed, paused = await setup.start()
    assert closed == "close claims"
    assert paused.startswith("pause: It was not started: “ana”")


async def test_a_delivery_confirmed_with_a_token_starts_without_an_operator_in_the_directory() -> None:
    setup = Setup()
    setup.starts.operators, setup.starts.by_token = {}, True
    assert await setup.start() == ["close claims", "start", "open pages"]


async def test_a_delivery_that_cannot_be_started_now_does_not_hold_up_the_next() -> None:
    setup = Setup()
    setup.deliveries.due_now = [1, 2]
    setup.starts.failing[1] = Busy("too busy")
    await setup.service.start_due()
    assert setup.starts.committed == {2: ["close claims", "start", "open pages"]}


@pytest.mark.parametrize(
    ("next_start", "sleeps"),
    [(None, 0.5), (3_600, 0.5), (0.25, 0.25), (0, 0.02), (-5, 0.02)],
    ids=["none", "late", "soon", "now", "past"],
)
async def test_the_next_look_comes_with_the_next_contact_date(
    next_start: float | None, sleeps: float
) -> None:
    setup = Setup()
    setup.deliveries.next_start = next_start
    assert await setup.service.start_due() == sleeps


async def test_a_busy_database_puts_the_start_off() -> None:
    setup = Setup(fails={"starting what is due": Busy("too busy")})
    setup.deliveries.due_now, setup.deliveries.next_start = [1], 0
    assert await setup.service.start_due() == 0.5
    assert setup.starts.committed == {}


async def test_the_rest_of_each_delivery_whose_validity_is_over_is_cancelled() -> None:
    setup = Setup()
    setup.deliveries.over = [3, 5, 8]
    setup.accounts.busy = {5}
    await setup.service.handle()
    assert setup.accounts.cancelled == [3, 8]


async def test_due_retries_are_opened_and_a_delivery_with_nothing_else_left_awaits_them() -> None:
    setup = Setup()
    setup.pages.opened = 2
    setup.pages.retries = [RetriesLeft(3, only_retries=False), RetriesLeft(5, only_retries=True)]
    await setup.service.handle()
    assert setup.deliveries.retry_pending == [5]
    assert counts(setup.metrics.pages_reopened) == {("retry",): 4}


async def test_every_running_delivery_is_finished_but_those_for_which_the_database_is_too_busy() -> None:
    setup = Setup()
    setup.deliveries.under_way, setup.deliveries.busy = [3, 5, 8], {5}
    await setup.service.handle()
    assert setup.deliveries.finished == [3, 8]


@pytest.mark.parametrize(
    ("due", "page", "reopened", "closed"),
    [
        (RUNNING, inspected(), False, True),
        (PAUSED, inspected(), False, True),
        (RUNNING, inspected(unclaimed=1), True, False),
        (PAUSED, inspected(unclaimed=1), False, False),
        (OVER, inspected(unclaimed=1), False, True),
    ],
)
async def test_a_page_is_opened_again_where_it_is_lost_and_closed_where_nothing_is_left_to_do(
    due: PagesDue, page: Inspected, *, reopened: bool, closed: bool
) -> None:
    setup = Setup()
    setup.pages.due = {due: [page]}
    await setup.service.handle()
    assert setup.pages.reopened == ([(1, [1])] if reopened else [])
    assert setup.pages.closed == ([(1, [1])] if closed else [])
    assert counts(setup.metrics.pages_reopened) == ({("lost",): 1} if reopened else {})


async def test_the_pages_of_a_delivery_are_closed_and_opened_in_a_statement_each() -> None:
    setup = Setup()
    setup.pages.due = {RUNNING: [inspected(unclaimed=page % 2, page=page) for page in range(1, 7)]}
    await setup.service.handle()
    assert (setup.pages.closed, setup.pages.reopened) == ([(1, [2, 4, 6])], [(1, [1, 3, 5])])
    assert counts(setup.metrics.pages_reopened) == {("lost",): 3}


@pytest.mark.parametrize(
    ("waiting", "age", "lost"),
    [(0, 0, True), (1, 3_600, False), (1, 3_601, True), (None, 3_601, False)],
    ids=["the queue is empty", "they wait", "they wait for too long", "nobody can say"],
)
async def test_an_unclaimed_page_is_lost_where_its_messages_are_gone(
    waiting: int | None, age: float, *, lost: bool
) -> None:
    setup = Setup()
    setup.depth.waiting = {} if waiting is None else {QUEUE: waiting}
    setup.pages.due = {RUNNING: [inspected(unclaimed=1, age=age)]}
    await setup.service.handle()
    assert bool(setup.pages.reopened) == lost


@pytest.mark.parametrize(
    ("waiting", "age", "result_lease", "lost"),
    [
        (0, 3_600, 900, False),
        (0, 3_601, 900, True),
        (0, 7_200, 7_200, False),
        (0, 7_201, 7_200, True),
        (1, 86_400, 900, False),
        (1, 86_401, 900, True),
        (1, 86_401, 90_000, False),
        (None, 7_201, 900, False),
    ],
)
async def test_a_page_of_somebody_elses_channel_is_lost_once_its_queue_is_empty_and_its_results_are_late(
    waiting: int | None, age: float, result_lease: float, *, lost: bool
) -> None:
    setup = Setup(result_lease=result_lease)
    setup.depth.waiting = {} if waiting is None else {NAMES.queue(routing.send_queue("sms")): waiting}
    foreign = PagesDue(1, "sms", running=True, over=False)
    setup.pages.due = {foreign: [inspected(unclaimed=1, age=age)]}
    await setup.service.handle()
    assert bool(setup.pages.reopened) == lost


async def test_the_broker_is_asked_once_a_channel_and_tick_and_not_once_a_page() -> None:
    setup = Setup()
    setup.depth.waiting = {}  # nobody can say, perhaps after ten seconds
    setup.pages.due = {RUNNING: [inspected(unclaimed=1, page=page) for page in range(1, 9)]}
    await setup.service.handle()
    assert setup.depth.asked == [QUEUE]
    await setup.service.handle()
    assert setup.depth.asked == [QUEUE, QUEUE]


async def test_a_delivery_that_takes_too_long_is_counted_and_the_next_has_its_turn() -> None:
    setup = Setup(deadline=0.01)
    setup.deliveries.over, setup.accounts.hangs = [3, 5], {3}
    await setup.service.handle()
    assert setup.accounts.cancelled == [5]
    assert counts(setup.metrics.duty_timeouts) == {("validity",): 1}
    succeeded = {s.labels["duty"] for s in next(iter(setup.metrics.duty_last_success.collect())).samples}
    assert succeeded == {"claims", "cancelled", "retries", "pages", "finish", "waiting"}


async def test_the_retries_of_what_is_cancelled_are_ended_in_turns() -> None:
    setup = Setup()
    setup.accounts.waiting = {3: 45, 5: 2}
    await setup.service.handle()
    assert setup.accounts.waiting == {3: 25, 5: 0}


async def test_expired_claims_are_undone_or_unknown_whatever_their_pages_say() -> None:
    setup = Setup()
    setup.accounts.leases = {1: Expired(given_back=3, unknown=2), 4: Expired(given_back=0, unknown=0)}
    await setup.service.handle()
    assert setup.accounts.asked == [(1, 900), (4, 900)]
    assert counts(setup.metrics.claims_expired) == {(): 2}
    assert counts(setup.metrics.claims_given_back) == {(): 3}


@pytest.mark.parametrize(
    "doing",
    [
        "ending expired claims",
        "cancelling what is over",
        "opening due retries",
        "looking after pages",
        "finishing what is done",
    ],
)
async def test_a_duty_for_which_the_database_is_too_busy_leaves_the_others_to_be_done(doing: str) -> None:
    setup = Setup(fails={doing: Busy("too busy")})
    setup.accounts.leases = {1: Expired(given_back=0, unknown=1)}
    setup.deliveries.over, setup.deliveries.under_way = [3], [5]
    setup.pages.retries, setup.pages.due = [RetriesLeft(7, only_retries=True)], {RUNNING: [inspected()]}
    await setup.service.handle()
    done = {
        "ending expired claims": setup.accounts.asked == [(1, 900)],
        "cancelling what is over": setup.accounts.cancelled == [3],
        "opening due retries": setup.deliveries.retry_pending == [7],
        "looking after pages": setup.pages.closed == [(1, [1])],
        "finishing what is done": setup.deliveries.finished == [5],
    }
    assert [name for name, was_done in done.items() if not was_done] == [doing]


async def test_alerts_are_counted_by_their_criterion() -> None:
    setup = Setup()
    setup.alerts.due = [Raised(delivery, Criterion.LOW_THROUGHPUT, "It is slow.") for delivery in (3, 5)]
    await setup.service.alert()
    await setup.service.alert()
    assert counts(setup.metrics.alerts) == {("low_throughput",): 2}


async def test_alerts_wait_where_the_database_is_too_busy() -> None:
    setup = Setup(fails={"looking for alerts": Busy("too busy")})
    await setup.service.alert()
    assert setup.alerts.sampled == 0


@pytest.mark.parametrize("doing", ["starting what is due", "finishing what is done", "looking for alerts"])
async def test_a_broken_database_ends_the_service(doing: str) -> None:
    setup: Any = Setup(fails={doing: Broken("forbidden")})
    with pytest.raises(ExceptionGroup) as caught:
        await setup.service.run(asyncio.Event())
    assert caught.group_contains(Broken)


async def test_the_wait_of_pages_is_shown_by_channel_and_0_again_when_none_is_due() -> None:
    setup = Setup()

    def shown() -> dict[str, float]:
        (family,) = setup.metrics.oldest_due_page.collect()
        return {sample.labels["channel"]: sample.value for sample in family.samples}

    setup.pages.waiting = {"email": 90.0}
    await setup.service.handle()
    assert shown() == {"email": 90.0}
    setup.pages.waiting = {"sms": 3.0}
    await setup.service.handle()
    assert shown() == {"email": 0.0, "sms": 3.0}
