"""`sendoff retention`: old deliveries leave, set by set, beside running ones; what they came to stays."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from contracts import routing
from tests.support.database import age, long_ago
from tests.support.deliveries import agrees, counted
from tests.support.results import bounced, result
from tests.support.stack import until
from tests.support.tracking import event
from worker.db import retention as steps
from worker.domain.settlement import Settlement
from worker.operations import retention, settle
from worker.operations.prepare import PreparationRefused

if TYPE_CHECKING:
    from tests.support.processes import Sendoff
    from tests.support.stack import Stack

AGE = timedelta(days=400)
GONE = "left by retention"


async def old_delivery(stack: Stack, recipients: int = 3) -> int:
    """A finished delivery of two years ago."""
    number = await stack.prepare(recipients)
    async with stack.running():
        await stack.confirm(number)
        await stack.finished(number)
    await long_ago(stack, number)
    return number


async def removed(stack: Stack) -> list[int]:
    return [one.first_id async for one in retention.remove(stack.db, AGE)]


async def partitions_left(stack: Stack) -> set[str]:
    rows = await stack.rows(
        "SELECT relname FROM pg_class WHERE relnamespace = 'sendoff'::regnamespace AND relkind = 'r'"
        " AND relname ~ '_[0-9]+$'"
    )
    return {r["relname"].rpartition("_")[2] for r in rows}


async def stats(stack: Stack, number: int) -> dict[str, Any]:
    return await stack.request(routing.COMPUTE_STATS, {"delivery_id": number})


async def test_a_set_leaves_beside_a_running_delivery_and_its_kpis_stay(stack: Stack) -> None:
    old = await old_delivery(stack)
    draft = await stack.prepare(2, delivery=None)  # opens the second set
    assert draft == 100_001
    before = await stack.deployment(old)
    running = await stack.prepare(4_000)
    async with stack.running(send_batch=50):
        await stack.confirm(running)
        await until(lambda: _sent(stack, running))
        assert await removed(stack) == [1]
        row = await stack.finished(running)
        assert (row["sent"], await agrees(stack, running)) == (4_000, True)
        assert await stack.deployment(old) == before
        answer = await stats(stack, old)
    assert (answer["exact"], answer["drift"], answer["sent"]) == (False, {}, 3)
    assert await stack.deployment(old) == before
    assert await partitions_left(stack) == {"100001"}
    for table in ("delivery_page", "delivery_content", "outcome", "recipient"):
        assert await stack.rows(f"SELECT FROM sendoff.{table} WHERE delivery_id = $1", old) == []
    assert len(await stack.rows("SELECT FROM sendoff.delivery_transition WHERE delivery_id = $1", old)) > 3
    assert await removed(stack) == []
    assert await stack.dead() == []


async def _sent(stack: Stack, number: int) -> bool:
    row = await stack.deployment(number)
    return bool(row["sent"] > 0)


async def test_late_results_and_events_go_to_the_dead_queue_with_the_reason(stack: Stack) -> None:
    old = await old_delivery(stack)
    await stack.prepare(1)
    async with stack.running("results"):
        # This process knows the size of the audience from before, another would ask for it.
        await stack.publish(routing.RESULTS, "bounce", bounced(old, 1))
        await until(lambda: counted(stack, old, bounced=1))
        assert await removed(stack) == [1]
        late = [bounced(old, recipient) for recipient in (1, 2)]
        await stack.publish(routing.RESULTS, "bounce", json.dumps(late).encode())
        await until(lambda: _buried(stack, 1))
    async with stack.running("results", "tracking"):
        await stack.publish(routing.RESULTS, "sent", result(old, 3))
        await stack.publish(routing.TRACKING, routing.OPEN, event(old, 3, "open", "e-1"))
        await until(lambda: _buried(stack, 3))
    dead = await stack.dead()
    assert all(GONE in reason for _, reason in dead)
    assert max(len(json.loads(body)) for body, _ in dead) == 2, (
        "what shares a message and its fate stays together"
    )


async def _buried(stack: Stack, count: int) -> bool:
    return await stack.depth(routing.DEAD_QUEUE) == count


async def test_nothing_can_be_done_with_what_has_left(stack: Stack, sendoff: Sendoff) -> None:
    old = await old_delivery(stack)
    draft = await stack.prepare(2, delivery=None)
    assert draft == 100_001
    await long_ago(stack, draft)
    await stack.prepare(1)
    assert await removed(stack) == [1, 100_001]
    async with stack.running("confirm"):
        answer = await stack.confirm(draft)
    assert (answer["status"], answer["reason"], GONE in answer["message"]) == ("refused", "wrong_state", True)
    with pytest.raises(PreparationRefused, match=GONE):
        await stack.prepare(2, delivery=draft)
    done = await settle.settle(stack.db, settle.SettlementRequest(old, Settlement.RESEND, "ana"))
    assert done.refused is not None
    assert GONE in done.refused.message
    shown = await asyncio.to_thread(sendoff, "log", old)
    assert (shown.returncode, GONE in shown.stderr) == (1, True)
    gone = await stack.rows("SELECT delivery_id FROM sendoff.delivery WHERE purged_at IS NOT NULL")
    assert {r["delivery_id"] for r in gone} == {old, draft}


async def test_one_young_delivery_holds_its_set_back(stack: Stack) -> None:
    old = await old_delivery(stack)
    young = await stack.prepare(1, delivery=None)
    assert (old, young) == (1, 100_001)
    await age(stack, 730)
    await stack.prepare(1)
    sets = {s.first_id: s for s in await retention.survey(stack.db, AGE)}
    assert (sets[1].leaves, sets[100_001].leaves, sets[200_001].newest) == (True, False, True)
    assert [(h.delivery_id, h.state) for h in sets[100_001].held_by] == [(young, "ready")]
    async with stack.running("confirm"):
        await stack.confirm(young)
    await long_ago(stack, young)
    assert await removed(stack) == [1]
    held, _ = await retention.survey(stack.db, AGE)
    assert [(h.delivery_id, h.state, h.since) for h in held.held_by] == [(young, "in_progress", None)]


async def test_a_removal_waits_for_a_reader_goes_on_after_it_and_holds_nobody_up(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    await old_delivery(stack)
    running = await stack.prepare(20)
    monkeypatch.setattr(steps, "_PATIENCE", "100ms")
    monkeypatch.setattr(steps, "_TRIES", 2)
    async with stack.db.transaction() as reading:
        await reading.connection.execute("SELECT count(*) FROM sendoff.outcome")
        with pytest.raises(retention.RetentionRefused, match="still in use"):
            await removed(stack)
        pending = await stack.rows("SELECT FROM pg_inherits WHERE inhdetachpending")
        assert len(pending) >= 1
        async with stack.running():
            await stack.confirm(running)
            assert (await stack.finished(running))["sent"] == 20
    assert [s.leaving for s in await retention.survey(stack.db, AGE)] == [True, False]
    assert await removed(stack) == [1]
    assert await partitions_left(stack) == {"100001"}


async def test_no_opt_out_is_swallowed_while_a_removal_is_held_up(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose it is can no longer be told: then it is in the dead queue, and not in a log that is leaving."""
    old = await old_delivery(stack)
    await stack.prepare(1)
    monkeypatch.setattr(steps, "_PATIENCE", "100ms")
    monkeypatch.setattr(steps, "_TRIES", 1)
    async with stack.running("tracking"):
        await stack.publish(routing.TRACKING, routing.OPEN, event(old, 1, "open", "a"))
        await until(lambda: stack.rows("SELECT FROM sendoff.tracking_log"))
        async with stack.db.transaction() as reading:
            await reading.connection.execute("SELECT count(*) FROM sendoff.recipient")
            with pytest.raises(retention.RetentionRefused, match="still in use"):
                await removed(stack)
            await stack.publish(routing.TRACKING, routing.OPTOUT, event(old, 2, "optout", "b"))
            await until(lambda: _settled(stack))
    denied = await stack.rows("SELECT FROM sendoff.quarantine")
    assert len(denied) + len(await stack.dead()) == 1
    monkeypatch.undo()
    assert await removed(stack) == [1]


async def _settled(stack: Stack) -> bool:
    buried, listed = await stack.depth(routing.DEAD_QUEUE), await stack.rows("SELECT FROM sendoff.quarantine")
    logged = await stack.rows("SELECT FROM sendoff.tracking_log WHERE event_id = 'b'")
    return bool(buried or listed or logged)


async def test_a_removal_that_died_between_a_detachment_and_a_drop_goes_on(stack: Stack) -> None:
    await old_delivery(stack)
    await stack.prepare(1)
    (one, _) = await retention.survey(stack.db, AGE)
    async with stack.db.session() as session:
        assert await steps.mark(session, one, AGE)
        step = await session.fetchrow("read_next_step", first_id=one.first_id)
        assert step is not None
        await session.connection.execute(step["statement"])
    assert await removed(stack) == [1]
    assert await partitions_left(stack) == {"100001"}


async def test_of_two_removals_at_once_one_is_refused(stack: Stack) -> None:
    async with stack.db.session() as session:
        assert await steps.lock(session)
        with pytest.raises(retention.RetentionRefused, match="Another process"):
            await removed(stack)


async def test_the_command_shows_and_removes_only_when_told(stack: Stack, sendoff: Sendoff) -> None:
    await old_delivery(stack)
    await stack.prepare(1)
    run = lambda *args, **env: asyncio.to_thread(sendoff, "retention", *args, **env)  # noqa: E731
    usage = await run()
    assert (usage.returncode, "SENDOFF_RETENTION" in usage.stderr) == (2, True)
    usage = await run("--older-than", "12m")
    assert (usage.returncode, "number of days" in usage.stderr) == (2, True)
    wrong = await run(env={"SENDOFF_RETENTION": "12m"})
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "Wrong settings: SENDOFF_RETENTION: give a number of days, such as 400d\n",
    )
    dry = await run(env={"SENDOFF_RETENTION": "400d"})
    assert dry.returncode == 0
    assert "leaves" in dry.stdout.splitlines()[1]
    assert dry.stdout.splitlines()[-1] == "Nothing was removed: --yes removes what leaves."
    assert await partitions_left(stack) == {"1", "100001"}
    held = await run("--older-than", "800d")
    assert "held back by 1 (finished since" in held.stdout
    done = await run("--older-than", "400d", "--yes", "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["removed"], answer["sets"][0]["recipients"]) == (0, [1], 3)
    again = await run("--older-than", "400d", "--yes")
    assert (again.returncode, again.stdout.splitlines()[-1]) == (0, "Nothing is to be removed.")
