"""Tracking: any order, any number of times, persons and machines, and nobody who opted out is written to."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from contracts import routing
from contracts.tracking import TrackingEvent
from tests.support.deliveries import confirmed
from tests.support.results import AT
from tests.support.stack import until
from tests.support.tracking import APPLE, EARLIER, FIREFOX, ONE_CLICK, SCANNER, event, publish, recorded
from worker.db import deliveries
from worker.db.tracking import TrackingLog
from worker.domain.machines import own_rules
from worker.domain.tracking import judge

if TYPE_CHECKING:
    from tests.support.stack import Stack


async def kpis(stack: Stack, number: int) -> dict[str, Any]:
    row = await stack.deployment(number)
    names = ("opened", "clicked", "mirror", "optout", "human_opened", "human_clicked")
    return {name: row[name] for name in names}


async def test_each_kind_counts_recipients_and_any_of_them_is_an_open(stack: Stack) -> None:
    number = await confirmed(stack, 5)
    async with stack.running("tracking"):
        await publish(stack, event(number, 1, "open", "a"), event(number, 1, "open", "b"))
        await publish(stack, event(number, 2, "click", "c", url="https://example.org/x"), key=routing.CLICK)
        await publish(stack, event(number, 3, "mirror", "d"), event(number, 4, "optout", "e"))
        await recorded(stack, 5)
    assert await kpis(stack, number) == {
        "opened": 4, "clicked": 1, "mirror": 1, "optout": 1, "human_opened": 4, "human_clicked": 1,
    }  # fmt: skip
    row = await stack.deployment(number)
    assert (row["open_pct"], row["human_click_pct"]) == (None, None)
    (logged,) = await stack.rows("SELECT * FROM sendoff.tracking_log WHERE event_id = 'c'")
    assert (logged["address"], logged["url"]) == ("user2@example.org", "https://example.org/x")
    assert (logged["kind"], logged["user_agent"], logged["machine_rule"]) == ("click", FIREFOX, None)


async def test_an_event_counts_once_however_often_it_comes_and_the_first_stands(stack: Stack) -> None:
    number = await confirmed(stack, 3)
    async with stack.running("tracking", tracking_batch=1):
        await publish(stack, event(number, 1, "open", "a"), event(number, 2, "click", "a"))
        await recorded(stack, 1)
        await publish(stack, event(number, 1, "open", "a", at=EARLIER))
        await publish(stack, event(number, 3, "click", "a"))
        await publish(stack, event(number, 2, "open", "b"))
        await recorded(stack, 2)
    assert await kpis(stack, number) == {
        "opened": 2, "clicked": 0, "mirror": 0, "optout": 0, "human_opened": 2, "human_clicked": 0,
    }  # fmt: skip
    times = await stack.rows(
        "SELECT at, opened_at FROM sendoff.tracking_log JOIN sendoff.tracked_recipient USING (recipient)"
    )
    assert {t.isoformat() for row in times for t in row.values()} == {"2026-11-23T10:00:00+00:00"}


async def test_a_complaint_counts_once_is_no_open_and_puts_on_the_denylist(stack: Stack) -> None:
    number = await confirmed(stack, ["ana@example.org,p1", "bob@example.org,"], columns="address,profile_id")
    results = [{"delivery_id": number, "recipient": r, "attempt": 1, "at": AT} for r in (1, 2)]
    async with stack.running("tracking", "results", "stats"):
        await stack.publish(routing.RESULTS, "sent", json.dumps(results).encode())
        await stack.finished(number)
        for _ in range(2):
            await publish(stack, event(number, 1, "complaint", "a", user_agent=None), key=routing.COMPLAINT)
        await publish(stack, event(number, 2, "complaint", "b", user_agent=None), key=routing.COMPLAINT)
        await recorded(stack, 2)
        answer = await stack.request(routing.COMPUTE_STATS, {"delivery_id": number})
    row = await stack.deployment(number)
    assert (row["complained"], row["complaint_pct"], row["opened"], row["sent"]) == (2, 100, 0, 2)
    assert (answer["complained"], answer["complaint_pct"], answer["drift"]) == (2, 100.0, {})
    assert await stack.rows("SELECT profile_id, cause FROM sendoff.denylist") == [
        {"profile_id": "p1", "cause": "complaint"}
    ]
    assert await stack.rows("SELECT address, cause FROM sendoff.quarantine") == [
        {"address": "bob@example.org", "cause": "complaint"}
    ]


async def test_machines_are_in_the_raw_figure_and_not_in_the_human_one(stack: Stack) -> None:
    number = await confirmed(stack, 4)
    results = [{"delivery_id": number, "recipient": r, "attempt": 1, "at": AT} for r in range(1, 5)]
    async with stack.running("tracking", "results"):
        # All of them before *sent*.
        await publish(
            stack,
            event(number, 1, "open", "a", user_agent=APPLE),
            event(number, 2, "click", "b", user_agent=SCANNER, url="https://example.org/1"),
            event(number, 2, "open", "c"),
            event(number, 3, "click", "d", url="https://example.org/1", user_agent=None),
            event(number, 3, "click", "e", url="https://example.org/1"),
            event(number, 3, "click", "f", url="https://example.org/2"),
        )
        await recorded(stack, 6)
        await stack.publish(routing.RESULTS, "sent", json.dumps(results).encode())
        row = await stack.finished(number)
        # And long after the end.
        await publish(stack, event(number, 4, "open", "g", user_agent=APPLE, at="2031-01-01T00:00:00Z"))
        await recorded(stack, 7)
    assert (row["opened"], row["open_pct"], row["human_opened"], row["human_open_pct"]) == (3, 75, 2, 50)
    assert (row["clicked"], row["click_pct"], row["human_clicked"], row["human_click_pct"]) == (2, 50, 1, 25)
    assert (await stack.deployment(number))["opened"] == 4
    urls = await stack.rows("SELECT * FROM sendoff.tracked_url ORDER BY url")
    assert [tuple(url.values()) for url in urls] == [
        (number, "https://example.org/1", 3, 2, 2, 1),
        (number, "https://example.org/2", 1, 1, 1, 1),
    ]
    judged = await stack.rows("SELECT machine_rule, rules FROM sendoff.tracking_log ORDER BY event_id")
    assert [row["machine_rule"] for row in judged[:3]] == ["apple_mail_privacy", "barracuda", None]
    assert all(row["rules"] for row in judged)


async def test_events_of_a_stopped_delivery_count(stack: Stack) -> None:
    number = await confirmed(stack, 2)
    async with stack.running("confirm", "tracking"):
        assert (await stack.control(routing.STOP, number))["status"] == "accepted"
        await publish(stack, event(number, 1, "open", "a"))
        await recorded(stack, 1)
    assert (await kpis(stack, number))["opened"] == 1


async def test_of_a_recipient_the_earliest_times_are_kept_whatever_came_first(stack: Stack) -> None:
    number = await confirmed(stack, 1)
    async with stack.running("tracking", tracking_batch=1):
        await publish(stack, event(number, 1, "click", "a"))
        await publish(stack, event(number, 1, "open", "b", at=EARLIER, user_agent=APPLE))
        await recorded(stack, 2)
    (known,) = await stack.rows("SELECT * FROM sendoff.tracked_recipient")
    assert known["opened_at"] < known["clicked_at"]
    assert known["human_opened_at"] == known["human_clicked_at"] == known["clicked_at"]


async def test_a_person_who_clicks_after_their_scanner_did_is_one_who_clicked(stack: Stack) -> None:
    number = await confirmed(stack, 1)
    async with stack.running("tracking", tracking_batch=1):
        await publish(stack, event(number, 1, "open", "a", at=EARLIER))
        await publish(stack, event(number, 1, "click", "b", at=EARLIER, user_agent=SCANNER))
        await publish(stack, event(number, 1, "click", "c"))
        await recorded(stack, 3)
    assert await kpis(stack, number) == {
        "opened": 1, "clicked": 1, "mirror": 0, "optout": 0, "human_opened": 1, "human_clicked": 1,
    }  # fmt: skip


async def test_what_cannot_be_recorded_goes_to_the_dead_queue_and_the_rest_is_recorded(stack: Stack) -> None:
    number = await confirmed(stack, 2)
    unconfirmed = await stack.prepare(2)
    await publish(
        stack,
        event(number, 1, "open", "a"),
        event(number, 3, "open", "b"),
        event(number, 4, "click", "c"),
        event(number, 1, "sneeze", "d"),
        event(number, 1, "open", "e\x00"),
        event(number, 1, "click", "f", url="x" * 8193),
        event(number, 1, "open", "g", at="1969-12-31T00:00:00Z"),
        event(unconfirmed, 1, "open", "h"),
        event(number, 2, "open", "ü" * 200, user_agent="5\x00" + "ü" * 5_000),
        event(number, 2, "click", "i", url="https://example.org/" + "ü" * 8_000),
    )
    await stack.publish(routing.TRACKING, routing.OPEN, b'[{"event_id": "\\ud800"}]')
    await stack.publish(routing.TRACKING, routing.OPEN, b"not json")
    async with stack.running("tracking"):
        await recorded(stack, 3)
        await until(lambda: _dead(stack, 8))
    dead = await stack.dead()
    by_reason = {reason: json.loads(body) for body, reason in dead if not reason.startswith("The tracking")}
    assert {reason: [e["event_id"] for e in events] for reason, events in by_reason.items()} == {
        "The delivery does not exist, was never confirmed, or has left by retention.": ["h"],
        "The delivery has 2 recipients, and none of this number.": ["b", "c"],
    }
    assert sum(reason.startswith("The tracking event could not be read") for _, reason in dead) == 6
    assert await kpis(stack, number) == {
        "opened": 2, "clicked": 1, "mirror": 0, "optout": 0, "human_opened": 2, "human_clicked": 1,
    }  # fmt: skip
    (long,) = await stack.rows("SELECT * FROM sendoff.tracking_log WHERE event_id = $1", "ü" * 200)
    assert (len(long["user_agent"]), long["user_agent"][:3]) == (500, "5\ufffdü")


async def test_a_row_that_the_database_refuses_does_not_hold_up_the_others(stack: Stack) -> None:
    number = await confirmed(stack, 50)
    async with stack.db.session() as session:
        await session.connection.execute(
            "ALTER TABLE sendoff.tracking_event ADD CHECK (recipient <> 17 OR delivery_id = 0)"
        )
    await publish(stack, *(event(number, r, "open", f"e{r}") for r in range(1, 51)))
    async with stack.running("tracking"):
        await recorded(stack, 49)
        await until(lambda: _dead(stack, 1))
    ((body, reason),) = await stack.dead()
    assert [e["recipient"] for e in json.loads(body)] == [17]
    assert reason.startswith("The tracking event cannot be stored")
    assert (await kpis(stack, number))["opened"] == 49


PEOPLE = [
    "ana@example.org,p1",
    "Bob@example.org,",
    "carl@example.org,p3",
    "dora@example.org,p4",
    "eve@example.org,p5",
]


async def test_nobody_who_opted_out_is_written_to_again(stack: Stack) -> None:
    """The denylist for profiles, the quarantine for addresses without one; not after a scanner's visit."""
    columns = "address,profile_id"
    first = await confirmed(stack, PEOPLE, columns=columns)
    second = await confirmed(stack, PEOPLE, columns=columns)
    async with stack.running("tracking"):
        optouts = [
            event(first, 1, "optout", "a"),
            event(first, 2, "optout", "b"),
            event(first, 3, "optout", "c", user_agent=SCANNER),
            event(first, 4, "optout", "d", user_agent=ONE_CLICK),
            event(first, 5, "click", "e"),
        ]
        await publish(stack, *optouts, key=routing.OPTOUT)
        await publish(stack, *optouts, key=routing.OPTOUT)
        await recorded(stack, 5)
    assert (await kpis(stack, first))["optout"] == 4
    denied = await stack.rows("SELECT channel, profile_id, cause FROM sendoff.denylist ORDER BY profile_id")
    assert [tuple(row.values()) for row in denied] == [("null", "p1", "optout"), ("null", "p4", "optout")]
    (quarantined,) = await stack.rows("SELECT channel, address, cause FROM sendoff.quarantine")
    assert tuple(quarantined.values()) == ("null", "Bob@example.org", "optout")
    async with stack.running("fanout", "send", "results", "schedule"):
        row = await stack.finished(second)
    assert (row["sent"], row["excluded_late"]) == (2, 3)
    late = await stack.rows(
        "SELECT recipient, cause, detail FROM sendoff.exclusion_log WHERE delivery_id = $1 ORDER BY 1", second
    )
    assert [tuple(e.values()) for e in late] == [
        (1, "denylisted", "optout"),
        (2, "optout", None),
        (4, "denylisted", "optout"),
    ]
    third = await stack.prepare(PEOPLE, columns=columns)
    causes = await stack.rows(
        "SELECT cause, excluded FROM sendoff.exclusion_cause WHERE delivery_id = $1 ORDER BY cause", third
    )
    assert [tuple(cause.values()) for cause in causes] == [("denylisted", 2), ("quarantined", 1)]


async def test_events_wait_for_no_command_that_holds_the_delivery(stack: Stack) -> None:
    """Nor does a stop, which moves counters with the row held, ever wait for them as they wait for it."""
    number = await confirmed(stack, 1)
    opened = judge(TrackingEvent.model_validate_json(json.dumps(event(number, 1, "open", "a"))), own_rules())
    async with stack.db.transaction() as command, asyncio.timeout(5):
        await deliveries.read_for_update(command, number)
        done = await TrackingLog(stack.db).record(number, [opened], "1")
    assert done.events == 1


@pytest.mark.usefixtures("counting")
async def test_a_planted_drift_is_found_and_repaired(stack: Stack) -> None:
    number = await confirmed(stack, 5)
    async with stack.running("tracking", "stats"):
        await publish(stack, event(number, 1, "open", "a", user_agent=APPLE), event(number, 2, "click", "b"))
        await publish(stack, event(number, 3, "mirror", "c"), event(number, 4, "optout", "d"))
        await recorded(stack, 4)
        right = await kpis(stack, number)
        answer = await stack.request(routing.COMPUTE_STATS, {"delivery_id": number})
        assert (answer["drift"], {name: answer[name] for name in right}) == ({}, right)
        planted = {name: by for by, name in enumerate(right, start=1)}
        async with stack.db.session() as session:
            await session.connection.execute(
                "UPDATE sendoff.delivery_counter SET opened = opened + 1, clicked = clicked + 2,"
                " mirror = mirror + 3, optout = optout + 4, human_opened = human_opened + 5,"
                " human_clicked = human_clicked + 6"
                " WHERE shard = (SELECT min(shard) FROM sendoff.delivery_counter)"
            )
        answer = await stack.request(routing.COMPUTE_STATS, {"delivery_id": number})
        assert answer["drift"] == {name: -by for name, by in planted.items()}
        assert {name: answer[name] for name in right} == await kpis(stack, number) == right


@pytest.mark.parametrize("transport", ["bulk", "aio-pika"])
async def test_an_array_of_a_thousand_events_is_recorded_over_either_transport(
    stack: Stack, transport: str
) -> None:
    number = await confirmed(stack, 1_000)
    async with stack.running("tracking", transport=transport):
        await publish(stack, *(event(number, r, "open", f"e{r}") for r in range(1, 1_001)))
        await recorded(stack, 1_000)
    assert (await kpis(stack, number))["opened"] == 1_000


async def _dead(stack: Stack, count: int) -> bool:
    return await stack.depth(routing.DEAD_QUEUE) >= count
