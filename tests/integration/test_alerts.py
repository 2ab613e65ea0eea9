"""Alerts: every criterion just above and just below its limit, and told once a day however many run."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from contracts import routing
from contracts.events import Criterion, Event
from tests.support.database import change, waits_for_a_row
from tests.support.events import heard, listener
from tests.support.stack import until
from worker.cli import app
from worker.db import deliveries
from worker.db.alerts import Alerts
from worker.domain.states import Move

if TYPE_CHECKING:
    from click.testing import Result

    from tests.support.processes import Sendoff
    from tests.support.stack import Stack

OFTEN: dict[str, Any] = {"alert_interval": 0.05, "tick": 0.05}


async def delivery(stack: Stack, recipients: int = 1, **columns: str) -> int:
    """A delivery as it might be; each column is an SQL expression."""
    number = await stack.prepare(recipients)
    values = {
        "state": "'in_progress'",
        "confirmed_at": "now() - interval '1 hour'",
        "started_at": "now() - interval '1 hour'",
        "updated_at": "now() - interval '1 hour'",
        "valid_until": "now() + interval '9 days'",
        **columns,
    }
    settings = ", ".join(f"{name} = {value}" for name, value in values.items())
    await change(stack, f"UPDATE sendoff.delivery_record SET {settings} WHERE delivery_id = $1", number)  # noqa: S608
    return number


async def count(stack: Stack, number: int, **counters: int) -> None:
    moves = ", ".join(f"('pending', '{name}', {value})" for name, value in counters.items())
    await change(stack, f"SELECT sendoff.count_moves($1, ARRAY[{moves}]::sendoff.move[])", number)


async def sampled(stack: Stack, number: int, ago: str, processed: int) -> None:
    await change(
        stack,
        "INSERT INTO sendoff.delivery_sample (delivery_id, minute, at, processed)"  # noqa: S608
        f" VALUES ($1, now() - interval '{ago}', now() - interval '{ago}', {processed})",
        number,
    )


async def seen(stack: Stack) -> list[tuple[int, str]]:
    return [(row["delivery_id"], row["criterion"]) for row in await Alerts(stack.db).current()]


CASES: list[tuple[str, dict[str, str], dict[str, str]]] = [
    (
        "failed",
        {"state": "'failed'", "finished_at": "now()"},
        {"state": "'stopped'", "finished_at": "now()"},
    ),
    (
        "failed",
        {"state": "'failed'", "finished_at": "now() - interval '23 hours'"},
        {"state": "'failed'", "finished_at": "now() - interval '25 hours'"},
    ),
    ("preparation_failed", {"state": "'preparation_failed'"}, {"state": "'ready'"}),
    (
        "start_pending",
        {"state": "'start_pending'", "confirmed_at": "now() - interval '16 minutes'"},
        {"state": "'start_pending'", "confirmed_at": "now() - interval '14 minutes'"},
    ),
    (
        "start_pending",
        {"state": "'start_pending'", "contact_date": "now() - interval '16 minutes'"},
        {"state": "'start_pending'", "contact_date": "now() + interval '1 minute'"},
    ),
    (
        "start_pending",
        {"state": "'start_pending'", "contact_date": "now() - interval '16 minutes'"},
        {
            "state": "'paused'",
            "paused_in": "'start_pending'",
            "contact_date": "now() - interval '16 minutes'",
        },
    ),
    (
        "long_in_progress",
        {"started_at": "now() - interval '1441 minutes'"},
        {"started_at": "now() - interval '1439 minutes'"},
    ),
    (
        "long_in_progress",
        {"started_at": "now() - interval '1441 minutes'", "state": "'retry_pending'"},
        {"started_at": "now() - interval '1441 minutes'", "state": "'finished'", "finished_at": "now()"},
    ),
    (
        "long_in_progress",
        {"started_at": "now() - interval '1501 minutes'", "messages_per_hour": "1"},
        {"started_at": "now() - interval '1499 minutes'", "messages_per_hour": "1"},
    ),
]
"""Of each criterion of states and times: a delivery just past its threshold, and one just not."""


async def test_each_alert_on_a_state_or_a_time_is_raised_beyond_its_limit_and_not_within(
    stack: Stack,
) -> None:
    expected = []
    for criterion, wrong, right in CASES:
        expected.append((await delivery(stack, **wrong), criterion))
        await delivery(stack, **right)
    assert sorted(await seen(stack)) == expected
    for row in await Alerts(stack.db).current():
        assert row["sentence"].endswith(".")
        without = row["criterion"] in ("failed", "preparation_failed")
        assert (row["value"] is None) == (row["threshold"] is None) == (row["unit"] == "") == without


@pytest.mark.parametrize(("kind", "limit"), [("hard", 5), ("soft", 10)])
async def test_a_share_of_bounces_alerts_above_its_limit_and_from_enough_attempts_on(
    stack: Stack, kind: str, limit: int
) -> None:
    bounced = f"bounced_{kind}"
    over = await delivery(stack, 300)
    await count(stack, over, **{"sent": 199 - 2 * limit, bounced: 2 * limit + 1})
    at = await delivery(stack, 300)
    await count(stack, at, **{"sent": 200 - 2 * limit, bounced: 2 * limit})
    few_yet = await delivery(stack, 300)
    await count(stack, few_yet, **{"sent": 9, bounced: 90})
    small = await delivery(stack, 99, state="'finished'", finished_at="now()")
    await count(stack, small, **{bounced: 99})
    ended = await delivery(stack, 100, state="'finished'", finished_at="now()")
    await count(stack, ended, **{"sent": 49, bounced: 50, "excluded_late": 1})
    assert sorted(await seen(stack)) == [(over, f"{kind}_bounce_ratio"), (ended, f"{kind}_bounce_ratio")]
    (row,) = [r for r in await Alerts(stack.db).current() if r["delivery_id"] == over]
    assert (row["value"], row["threshold"], row["unit"]) == (limit + 0.5, limit, "percent")
    assert row["sentence"] == (
        f"{2 * limit + 1} of 200 attempted are {kind} bounces: {limit + 0.5} %, more than {limit} %."
    )


async def test_a_share_of_complaints_alerts_above_its_limit_and_from_enough_sent_on(stack: Stack) -> None:
    over = await delivery(stack, 2_000)
    await count(stack, over, sent=2_000, complained=3)
    at = await delivery(stack, 2_000)
    await count(stack, at, sent=2_000, complained=2)
    few_yet = await delivery(stack, 2_000)
    await count(stack, few_yet, sent=999, complained=900)
    assert await seen(stack) == [(over, "complaint_ratio")]
    (row,) = await Alerts(stack.db).current()
    assert row["sentence"] == "3 of 2000 sent are complaints: 0.15 %, more than 0.1 %."


async def test_bounces_of_a_delivery_that_has_not_started_are_told_and_stop_no_alerting(stack: Stack) -> None:
    """A sender of another program may report what nobody asked it to send yet."""
    early = await delivery(
        stack, 100, state="'start_pending'", started_at="NULL", contact_date="now() + '1 h'"
    )
    await count(stack, early, bounced_hard=100)
    raised = await Alerts(stack.db).raise_due()
    assert [(r.delivery_id, r.criterion) for r in raised] == [(early, Criterion.HARD_BOUNCE_RATIO)]
    (row,) = await Alerts(stack.db).current()
    (own,) = await stack.rows("SELECT confirmed_at FROM sendoff.delivery WHERE delivery_id = $1", early)
    assert row["since"] == own["confirmed_at"]


async def test_a_slow_delivery_alerts_unless_it_is_limited_paused_by_waves_small_or_young(
    stack: Stack,
) -> None:
    async def one(rate: int, recipients: int = 1_000, pending: int = 60, **columns: str) -> int:
        number = await delivery(stack, recipients, **columns)
        await sampled(stack, number, "5 minutes", 100)
        await sampled(stack, number, "4 minutes", 100)
        await count(stack, number, sent=100 + 5 * rate, sending=recipients - 100 - 5 * rate - pending)
        return number

    slow = await one(59)
    await one(61)
    await one(59, pending=59)
    await one(59, recipients=999)
    await one(0, messages_per_hour="60")
    await one(0, updated_at="now() - interval '4 minutes'")
    await one(0, state="'retry_pending'")
    waves = [await one(0), await one(0)]
    for number, due in zip(waves, ("-6 minutes", "1 hour"), strict=True):
        await change(
            stack,
            "INSERT INTO sendoff.delivery_wave (delivery_id, wave, first, last, due_at)"  # noqa: S608
            f" VALUES ($1, 1, 1, 1000, now() + interval '{due}')",
            number,
        )
    young = await delivery(stack, 1_000)
    await sampled(stack, young, "4 minutes", 0)
    assert sorted(await seen(stack)) == [(slow, "low_throughput"), (waves[0], "low_throughput")]


async def test_progress_is_sampled_once_a_minute_and_soon_forgotten(stack: Stack) -> None:
    number = await delivery(stack, 50)
    await delivery(stack, 50, messages_per_hour="10")
    await delivery(stack, 50, state="'paused'", paused_in="'in_progress'")
    await count(stack, number, sent=20, bounced_hard=3, errors=2, sending=4, retrying=1)
    await sampled(stack, number, "61 minutes", 1)
    await asyncio.gather(*(Alerts(stack.db).sample() for _ in range(4)))
    rows = await stack.rows("SELECT delivery_id, processed FROM sendoff.delivery_sample")
    assert {(r["delivery_id"], r["processed"]) for r in rows} == {(number, 26)}
    assert len(rows) <= 2  # a minute may have ended in between


async def invoke(stack: Stack, *args: object) -> Result:
    """Runs `sendoff alert …` in this process."""
    env = {"SENDOFF_DATABASE_URL": stack.settings.database_url}
    return await asyncio.to_thread(CliRunner().invoke, app, ["alert", *map(str, args)], env=env)


async def test_the_command_lists_alerts_and_changes_their_thresholds(stack: Stack) -> None:
    async def run(*args: object) -> str:
        done = await invoke(stack, *args)
        assert done.exit_code == 0, done.output
        return done.stdout

    number = await delivery(stack, 300, label="'Sale'")
    await count(stack, number, sent=180, bounced_hard=20)
    listed, shown = await run("list", "--json"), await run("list")
    assert [(a["delivery_id"], a["criterion"], a["value"]) for a in json.loads(listed)] == [
        (number, "hard_bounce_ratio", 10.0)
    ]
    assert "20 of 200 attempted are hard bounces: 10 %" in shown
    assert await run("set", "hard_bounce_ratio", "--threshold", 10) == (
        "hard_bounce_ratio: on, threshold 10 percent, deliveries to 100 recipients or more.\n"
    )
    assert await seen(stack) == []
    await run("set", "hard_bounce_ratio", "--threshold", 2.5, "--minimum", 200)
    assert await seen(stack) == [(number, "hard_bounce_ratio")]
    off = await run("set", "hard_bounce_ratio", "--off", "--json")
    assert json.loads(off) == {
        "criterion": "hard_bounce_ratio",
        "enabled": False,
        "threshold": 2.5,
        "unit": "percent",
        "minimum": 200,
    }
    assert await seen(stack) == []
    table, whole, none = await run("thresholds"), await run("thresholds", "--json"), await run("list")
    assert "hard_bounce_ratio   2.5 percent" in table
    assert json.loads(whole)[0]["criterion"] == "complaint_ratio"
    assert none == "No alerts.\n"


async def test_what_cannot_be_a_threshold_is_refused(stack: Stack, sendoff: Sendoff) -> None:
    before = await Alerts(stack.db).thresholds()
    done = await asyncio.to_thread(sendoff, "alert", "set", "failed", "--threshold", 1)
    assert (done.returncode, "failed has no threshold" in done.stderr) == (1, True), done.stderr
    over = await invoke(stack, "set", "soft_bounce_ratio", "--threshold", 101)
    assert "100 at most" in str(over.exception)
    for wrong in (("failed",), ("everything", "--off"), ("low_throughput", "--minimum", -1)):
        assert (await invoke(stack, "set", *wrong)).exit_code == 2, wrong
    assert await Alerts(stack.db).thresholds() == before


async def test_every_criterion_of_the_wire_has_a_threshold(stack: Stack) -> None:
    assert {row["criterion"] for row in await Alerts(stack.db).thresholds()} == set(Criterion)


async def test_an_alert_is_told_once_a_day_by_several_schedulers(stack: Stack) -> None:
    queue = await listener(stack, Event.ALERT.value)
    numbers = [
        await delivery(stack, state="'failed'", finished_at="now()", state_reason="'No content.'")
        for _ in range(8)
    ]
    async with (
        stack.running("schedule", "events", **OFTEN) as one,
        stack.running("schedule", **OFTEN) as two,
        stack.running("schedule", **OFTEN) as three,
    ):
        events = await heard(queue, 8)
        assert sorted(e.delivery_id for e in events) == numbers
        for event in events:
            assert (event.state.value, event.operator, event.reason) == ("failed", None, "No content.")
            assert event.alert is not None
            assert event.alert.criterion is Criterion.FAILED
            assert (event.alert.value, event.alert.threshold, event.alert.unit) == (None, None, "")
        # A day later, and not a minute sooner.
        await change(
            stack,
            "UPDATE sendoff.delivery_alert SET at = at - interval '23 hours 58 minutes', day = day - 1"
            " WHERE delivery_id <> $1",
            numbers[0],
        )
        await change(
            stack,
            "UPDATE sendoff.delivery_alert SET at = at - interval '24 hours', day = day - 1"
            " WHERE delivery_id = $1",
            numbers[0],
        )
        (again,) = await heard(queue, 1)
        assert again.delivery_id == numbers[0]
        assert again.number > next(e.number for e in events if e.delivery_id == numbers[0])
    assert await queue.get(fail=False) is None
    assert len(await stack.rows("SELECT FROM sendoff.delivery_alert")) == 9
    told = [
        w.registry.get_sample_value("sendoff_alerts_total", {"criterion": "failed"})
        for w in (one, two, three)
    ]
    assert sum(n or 0 for n in told) == 9


async def test_alerts_and_moves_of_a_delivery_are_told_in_order(stack: Stack) -> None:
    queue = await listener(stack, "delivery.*")
    await change(stack, "UPDATE sendoff.alert_threshold SET threshold = 0 WHERE criterion = 'start_pending'")
    number = await stack.prepare(2)
    async with stack.running("confirm"):
        await stack.confirm(number)
    await change(
        stack,
        "UPDATE sendoff.delivery_record SET state = 'start_pending', started_at = NULL,"
        " confirmed_at = now() - interval '2 minutes' WHERE delivery_id = $1",
        number,
    )
    assert [(r.delivery_id, r.criterion) for r in await Alerts(stack.db).raise_due()] == [
        (number, Criterion.START_PENDING)
    ]
    async with stack.running("confirm", "events", "schedule", **OFTEN):
        await stack.control(routing.STOP, number)
        events = await heard(queue, 4)
    assert [e.event.value.removeprefix("delivery.") for e in events] in (
        ["confirmed", "started", "alert", "stopped"],
        ["confirmed", "started", "alert", "started"],
    )
    assert [e.number for e in events] == sorted({e.number for e in events})
    alert = events[2].alert
    assert alert is not None
    assert (alert.threshold, alert.unit, events[2].state.value) == (0, "minutes", "start_pending")
    assert alert.value is not None
    assert alert.value >= 2


async def test_an_alert_waits_for_the_move_before_it_and_is_judged_again(stack: Stack) -> None:
    going_on = await delivery(stack, started_at="now() - interval '2 days'")
    over = await delivery(stack, started_at="now() - interval '2 days'")
    async with stack.db.transaction() as tx:
        assert await deliveries.move(tx, going_on, Move.AWAIT_RETRIES)
        assert await deliveries.move(tx, over, Move.STOP, operator="ana")
        raising = asyncio.create_task(Alerts(stack.db).raise_due())
        await until(lambda: waits_for_a_row(stack))
    assert [r.delivery_id for r in await raising] == [going_on]
    (told,) = await stack.rows("SELECT number, state FROM sendoff.delivery_alert")
    (moved,) = await stack.rows(
        "SELECT number FROM sendoff.delivery_transition WHERE to_state = 'retry_pending'"
    )
    assert told["state"] == "retry_pending"
    assert told["number"] > moved["number"]


async def test_two_that_found_the_same_alert_tell_it_once(stack: Stack) -> None:
    number = await delivery(stack, started_at="now() - interval '2 days'")
    # Around midnight the days differ: the look at the last 24 hours alone must do.
    await change(
        stack,
        "ALTER TABLE sendoff.delivery_alert DROP CONSTRAINT delivery_alert_delivery_id_criterion_day_key",
    )
    async with stack.db.transaction() as tx:
        await tx.execute("lock_delivery", delivery_id=number)
        raising = [asyncio.create_task(Alerts(stack.db).raise_due()) for _ in range(3)]

        async def all_wait() -> bool:
            query = (
                "SELECT FROM pg_stat_activity WHERE wait_event IN ('transactionid', 'tuple')"
                " AND datname = current_database()"
            )
            return len(await stack.rows(query)) == 3

        await until(all_wait)
    assert sum([len(await task) for task in raising]) == 1
    assert len(await stack.rows("SELECT FROM sendoff.event")) == 1


async def test_nothing_is_told_of_what_is_well(stack: Stack) -> None:
    queue = await listener(stack, Event.ALERT.value)
    number = await stack.prepare(500)
    async with stack.running(**OFTEN):
        await stack.confirm(number)
        await stack.finished(number)

        async def sampled_or_over() -> bool:
            return await seen(stack) == []

        await until(sampled_or_over)
    assert await queue.get(fail=False) is None
