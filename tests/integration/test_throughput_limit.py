"""The limit of a delivery's throughput: held across workers, pauses and outages, by the database's clock."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

from contracts import routing
from tests.support.claims import claim
from tests.support.database import change
from tests.support.stack import until
from worker.db.pages import Pages, Turn

if TYPE_CHECKING:
    from tests.support.stack import Stack
    from worker.db.pages import Page

PER_SECOND = 20
PAGE = 10
LIMIT = f"[limits]\nmessages_per_hour = {PER_SECOND * 3_600}"
SLACK = 3.25 * PAGE
"""What the limit is exact to: a page at once, a quarter for lateness, and two that may wait for senders."""


async def worst_excess(stack: Stack, number: int) -> float:
    """Returns by how many messages the worst stretch of time went beyond the limit alone."""
    rows = await stack.rows(
        "SELECT extract(epoch FROM claimed_at)::float8 AS at FROM sendoff.outcome WHERE delivery_id = $1"
        " ORDER BY 1",
        number,
    )
    times = [r["at"] for r in rows]
    return max(
        j - i + 1 - PER_SECOND * (times[j] - times[i])
        for i in range(len(times))
        for j in range(i, len(times))
    )


async def lease(stack: Stack) -> list[Page]:
    return await Pages(stack.db).lease_paced(limit=4, seconds=60, owner="me", channels=["email", "null"])


async def an_hour_passes(stack: Stack) -> None:
    await change(stack, "UPDATE sendoff.delivery_pace SET next_at = next_at - interval '1 hour'")


async def claim_page(stack: Stack, page: Page) -> None:
    wanted = {r: (1, f"user{r}@example.org") for r in range(page.first, page.last + 1)}
    assert len(await claim(stack.db, page.delivery_id, wanted)) == len(wanted)


async def confirmed(stack: Stack, recipients: int, extra: str = LIMIT, page_size: int = PAGE) -> int:
    number = await stack.prepare(recipients, extra=extra)
    async with stack.running("confirm", page_size=page_size):
        assert (await stack.confirm(number))["state"] == "in_progress"
    return number


async def test_the_limit_holds_across_workers_and_slows_nobody_else(stack: Stack) -> None:
    limited = await confirmed(stack, 100)
    free = await confirmed(stack, 2_000, "", 1_000)
    async with stack.running(), stack.running():
        await stack.finished(free)
        assert (await stack.deployment(limited))["sent"] < 100
        assert (await stack.finished(limited))["sent"] == 100
    assert await worst_excess(stack, limited) <= SLACK
    assert await worst_excess(stack, free) > SLACK
    # And it is used: a page less than the whole takes its time, and not much more.
    (row,) = await stack.rows(
        "SELECT extract(epoch FROM max(claimed_at) - min(claimed_at))::float8 AS took"
        " FROM sendoff.outcome WHERE delivery_id = $1",
        limited,
    )
    assert row["took"] < 2 * (100 - PAGE) / PER_SECOND


async def test_a_pause_is_not_followed_by_a_burst(stack: Stack) -> None:
    number = await confirmed(stack, 80)
    async with stack.running(), stack.running():
        await until(lambda: _sent(stack, number, 20))
        assert (await stack.control(routing.PAUSE, number))["state"] == "paused"
        await an_hour_passes(stack)
        assert (await stack.control(routing.RESUME, number))["state"] == "in_progress"
        assert (await stack.finished(number))["sent"] == 80
    assert await worst_excess(stack, number) <= SLACK


async def test_nothing_piles_up_while_the_senders_are_down(stack: Stack) -> None:
    number = await confirmed(stack, 100)
    taken = []
    for expected in (1, 1, 0, 0):
        leased = await lease(stack)
        assert len(leased) == expected
        for page in leased:
            await Pages(stack.db).published(page, "me", 30)
        taken += leased
        await an_hour_passes(stack)
    await claim_page(stack, taken[0])
    assert [p.first for p in await lease(stack)] == [21]
    assert (await stack.deployment(number))["sending"] == PAGE


async def test_a_turn_is_taken_once_and_time_is_not_saved_up(stack: Stack) -> None:
    await confirmed(stack, 100)
    await an_hour_passes(stack)
    ((page,),) = [leased for leased in await asyncio.gather(*(lease(stack) for _ in range(8))) if leased]
    await claim_page(stack, page)
    assert await lease(stack) == []
    left = await Pages(stack.db).seconds_to_next_turn()
    assert left is not None
    assert 0 < left <= PAGE / PER_SECOND
    assert await Pages(stack.db).lease(Turn(0, ["email", "null"]), limit=5, seconds=5, owner="me") == []


async def test_only_the_retries_of_a_page_published_again_count_against_the_limit(stack: Stack) -> None:
    number = await confirmed(stack, 2 * PAGE)
    (page,) = await lease(stack)
    await Pages(stack.db).published(page, "me", 30)
    await claim_page(stack, page)
    await change(
        stack,
        "UPDATE sendoff.outcome SET status = CASE WHEN recipient <= 4 THEN 'retrying' ELSE 'sent' END,"
        " retry_at = CASE WHEN recipient <= 4 THEN now() END",
    )
    await Pages(stack.db).reopen(number, [page.page])
    await an_hour_passes(stack)
    (again,) = await lease(stack)
    assert again.page == page.page
    assert len(await Pages(stack.db).read_sends(again)) == 4
    (moved,) = await stack.rows("SELECT next_at - clock_timestamp() AS left FROM sendoff.delivery_pace")
    assert moved["left"] <= timedelta(seconds=4 / PER_SECOND)
    await change(stack, "UPDATE sendoff.delivery_pace SET next_at = now()")
    (following,) = await lease(stack)
    assert following.first == PAGE + 1


async def test_a_full_queue_holds_limited_deliveries_too(stack: Stack) -> None:
    await confirmed(stack, PAGE)
    leased = await Pages(stack.db).lease_paced(limit=4, seconds=60, owner="me", channels=["email"])
    assert leased == []
    assert len(await lease(stack)) == 1


async def test_the_summary_of_a_confirm_says_the_limit(stack: Stack) -> None:
    number = await stack.prepare(1, extra=LIMIT)
    async with stack.running("confirm"):
        answer = await stack.request(
            routing.CONFIRM, {"delivery_id": number, "operator": "ana", "definitive": False}
        )
    assert answer["summary"]["messages_per_hour"] == PER_SECOND * 3_600


async def _sent(stack: Stack, number: int, count: int) -> bool:
    return bool((await stack.deployment(number))["sent"] >= count)


async def test_a_large_audience_with_a_low_limit_is_confirmed_with_few_pages(stack: Stack) -> None:
    number = await stack.prepare(1, extra="[limits]\nmessages_per_hour = 2000")
    await change(
        stack, "UPDATE sendoff.delivery_record SET to_deliver = 5000000 WHERE delivery_id = $1", number
    )
    async with stack.running("confirm"):
        assert (await stack.confirm(number))["status"] == "accepted"
    (pages,) = await stack.rows(
        "SELECT count(*) AS pages, max(last) AS last, sum(last - first + 1)::int AS recipients"
        " FROM sendoff.delivery_page WHERE delivery_id = $1",
        number,
    )
    assert pages == {"pages": 10_000, "last": 5_000_000, "recipients": 5_000_000}
    (pace,) = await stack.rows("SELECT page_size FROM sendoff.delivery_pace WHERE delivery_id = $1", number)
    assert pace == {"page_size": 500}
