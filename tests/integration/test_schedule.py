"""The start of a delivery: at its time, once, after a restart too; late by its policy; and its waves."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from contracts import routing
from tests.support.database import change
from tests.support.stack import until
from worker.operations.prepare import PreparationRefused

if TYPE_CHECKING:
    from tests.support.stack import Stack

FAR = "[schedule]\ncontact_date = 2099-01-01T09:00:00Z\n"
SKIP = FAR + 'late = "skip"\nlate_limit = "2h"\n'
WAVES = (
    '[[waves]]\nshare = "10%"\n[[waves]]\nshare = "30%"\nafter = "1h"\n'
    '[[waves]]\nshare = "rest"\nafter = "2h"\n'
)


async def contact(stack: Stack, number: int, seconds: float) -> None:
    """Puts the contact date so many seconds from now."""
    await change(
        stack,
        "UPDATE sendoff.delivery_record SET contact_date = now() + $2, valid_until = now() + interval '1 day'"
        " WHERE delivery_id = $1",
        number,
        timedelta(seconds=seconds),
    )


async def moves(stack: Stack, number: int) -> list[str]:
    found = await stack.rows(
        "SELECT to_state FROM sendoff.delivery_transition WHERE delivery_id = $1 ORDER BY number", number
    )
    return [m["to_state"] for m in found]


async def confirmed(stack: Stack, number: int) -> None:
    async with stack.running("confirm"):
        assert (await stack.confirm(number))["status"] == "accepted"


async def test_of_several_schedulers_one_starts_a_delivery_at_its_time(stack: Stack) -> None:
    numbers = [await stack.prepare(20, extra=FAR) for _ in range(5)]
    async with AsyncExitStack() as running:
        for _ in range(4):
            await running.enter_async_context(stack.running("schedule"))
        await running.enter_async_context(stack.running("confirm", "fanout", "send", "results"))
        for number in numbers:
            assert (await stack.confirm(number))["state"] == "start_pending"
            await contact(stack, number, 1.2)
        for number in numbers:
            assert (await stack.finished(number))["sent"] == 20
    late = await stack.rows("SELECT started_at - contact_date AS late FROM sendoff.delivery")
    assert all(timedelta() <= row["late"] < timedelta(seconds=1) for row in late)
    for number in numbers:
        assert (await moves(stack, number)).count("in_progress") == 1
    claimed = await stack.rows(
        "SELECT FROM sendoff.outcome o JOIN sendoff.delivery d USING (delivery_id)"
        " WHERE o.claimed_at < d.contact_date"
    )
    assert claimed == []


async def test_a_start_survives_a_restart(stack: Stack) -> None:
    number = await stack.prepare(5, extra=FAR)
    await confirmed(stack, number)
    async with stack.running("schedule"):
        pass
    assert await moves(stack, number) == ["preparing", "ready", "start_pending"]
    await contact(stack, number, -3_600)
    async with stack.running("schedule"):
        await stack.finished(number, "in_progress")


async def test_a_late_start_sends_all_the_same(stack: Stack) -> None:
    number = await stack.prepare(5, extra=FAR)
    await confirmed(stack, number)
    await contact(stack, number, -20 * 3_600)
    async with stack.running():
        assert (await stack.finished(number))["sent"] == 5


@pytest.mark.parametrize(("hours", "state"), [(1.9, "in_progress"), (2.1, "failed")])
async def test_later_than_its_limit_a_delivery_is_skipped(stack: Stack, hours: float, state: str) -> None:
    number = await stack.prepare(5, extra=SKIP)
    await confirmed(stack, number)
    await contact(stack, number, -hours * 3_600)
    async with stack.running("schedule"), stack.running("schedule"), stack.running("schedule"):
        row = await stack.finished(number, state)
    assert await moves(stack, number) == ["preparing", "ready", "start_pending", state]
    assert (row["cancelled"], row["pending"]) == ((5, 0) if state == "failed" else (0, 5))
    if state == "failed":
        assert row["state_reason"].startswith("Skipped: it was due at ")
        assert "may start 2h late at most" in row["state_reason"]


async def test_a_confirm_later_than_the_limit_is_refused(stack: Stack) -> None:
    number = await stack.prepare(5, extra=SKIP)
    await contact(stack, number, -3 * 3_600)
    await change(stack, "UPDATE sendoff.delivery_record SET valid_until = NULL")
    async with stack.running("confirm"):
        answer = await stack.confirm(number)
    assert (answer["reason"], answer["state"]) == ("validity_over", "ready")
    assert "may start 2h late at most" in answer["message"]


async def test_a_resume_does_not_get_round_the_limit(stack: Stack) -> None:
    number = await stack.prepare(5, extra=SKIP)
    async with stack.running("confirm"):
        await stack.confirm(number)
        assert (await stack.control(routing.PAUSE, number))["state"] == "paused"
        await contact(stack, number, -3 * 3_600)
        assert (await stack.control(routing.RESUME, number))["state"] == "start_pending"
        async with stack.running("schedule"):
            assert (await stack.finished(number, "failed"))["cancelled"] == 5


async def test_another_schedule_is_another_preparation(stack: Stack) -> None:
    number = await stack.prepare(5, extra=FAR)
    later = FAR.replace("2099", "2098")
    await stack.prepare(5, extra=later, delivery=number)
    async with stack.running("confirm"):
        assert (await stack.confirm(number))["reason"] == "stale_preparation"
        answer = await stack.confirm(number, preparation=2)
        assert answer["state"] == "start_pending"
    (row,) = await stack.rows("SELECT contact_date FROM sendoff.delivery")
    assert row["contact_date"] == datetime(2098, 1, 1, 9, tzinfo=UTC)
    with pytest.raises(PreparationRefused, match="is start pending and cannot be prepared again"):
        await stack.prepare(5, extra=FAR, delivery=number)


async def test_shares_are_alike_and_stay_so_when_prepared_again(stack: Stack) -> None:
    number = await stack.prepare(1_005, extra=WAVES)
    waves = await stack.rows("SELECT * FROM sendoff.wave ORDER BY wave")
    assert [(w["first"], w["last"], w["due_after"]) for w in waves] == [
        (1, 101, timedelta()),
        (102, 402, timedelta(hours=1)),
        (403, 1_005, timedelta(hours=2)),
    ]
    first = await stack.rows("SELECT recipient, address FROM sendoff.recipient ORDER BY recipient")
    assert len({r["address"] for r in first}) == 1_005
    # The file's order says nothing of the wave, and holds within it.
    places = [int(r["address"].removeprefix("user").partition("@")[0]) for r in first]
    assert places[:101] == sorted(places[:101])
    assert 350 < sum(places[:101]) / 101 < 650
    await stack.prepare(1_005, extra=WAVES, delivery=number)
    assert first == await stack.rows("SELECT recipient, address FROM sendoff.recipient ORDER BY recipient")
    other = await stack.prepare(1_005, extra=WAVES)
    again = await stack.rows(
        "SELECT recipient, address FROM sendoff.recipient WHERE delivery_id = $1 ORDER BY recipient", other
    )
    assert {r["address"] for r in again[:101]} != {r["address"] for r in first[:101]}
    await stack.prepare(3, extra=FAR, delivery=number)
    assert await stack.rows("SELECT FROM sendoff.wave WHERE delivery_id = $1", number) == []


async def test_a_wave_of_nobody_is_none(stack: Stack) -> None:
    await stack.prepare(2, extra=WAVES)
    waves = await stack.rows("SELECT wave, first, last, due_after FROM sendoff.wave ORDER BY wave")
    assert [tuple(w.values()) for w in waves] == [(1, 1, 1, timedelta()), (2, 2, 2, timedelta(hours=2))]


async def test_waves_go_one_after_the_other(stack: Stack) -> None:
    number = await stack.prepare(200, extra=WAVES)
    async with stack.running(page_size=30):
        summary = (await _finalize(stack, number))["summary"]
        assert summary["wave_count"] == 3
        assert [(w["recipients"], w["due_after"]) for w in summary["waves"]] == [
            (20, "PT0S"),
            (60, "PT1H"),
            (120, "PT2H"),
        ]
        await stack.confirm(number)
        await until(lambda: _sent(stack, number, 20))
        pages = await stack.rows(
            "SELECT p.first, p.last, extract(epoch FROM p.due_at - d.started_at)::int AS after"
            " FROM sendoff.delivery_page p JOIN sendoff.delivery d USING (delivery_id) ORDER BY page"
        )
        assert [(p["first"], p["last"], p["after"]) for p in pages] == [
            (1, 20, 0),
            (21, 50, 3_600),
            (51, 80, 3_600),
            *((first, first + 29, 7_200) for first in (81, 111, 141, 171)),
        ]
        assert (await stack.deployment(number))["state"] == "in_progress"
        # The clock goes faster from here: the hours are half seconds.
        await change(
            stack,
            "UPDATE sendoff.delivery_page SET due_at = now() + (due_at - now()) / 7200 WHERE state = 'open'",
        )
        assert (await stack.finished(number))["sent"] == 200
    early = await stack.rows(
        "SELECT FROM sendoff.outcome o JOIN sendoff.delivery_page p"
        " ON p.delivery_id = o.delivery_id AND o.recipient BETWEEN p.first AND p.last"
        " WHERE o.claimed_at < p.due_at"
    )
    assert early == []


async def test_waves_follow_a_late_start(stack: Stack) -> None:
    number = await stack.prepare(10, extra=FAR + WAVES)
    await confirmed(stack, number)
    await contact(stack, number, -5 * 3_600)
    async with stack.running("schedule"):
        await stack.finished(number, "in_progress")
    pages = await stack.rows(
        "SELECT p.due_at - d.started_at AS after FROM sendoff.delivery_page p"
        " JOIN sendoff.delivery d USING (delivery_id) ORDER BY page"
    )
    assert [p["after"] for p in pages] == [timedelta(hours=h) for h in range(3)]
    due = await stack.rows(
        "SELECT due_at - started_at AS after FROM sendoff.wave"
        " JOIN sendoff.delivery USING (delivery_id) ORDER BY wave"
    )
    assert due == pages


async def test_a_pause_keeps_later_waves_at_their_time(stack: Stack) -> None:
    number = await stack.prepare(100, extra=WAVES)
    async with stack.running():
        await stack.confirm(number)
        await until(lambda: _sent(stack, number, 10))
        await stack.control(routing.PAUSE, number)
        await stack.control(routing.RESUME, number)
        later = await stack.rows(
            "SELECT FROM sendoff.delivery_page WHERE due_at > now() + interval '30 minutes'"
        )
        assert len(later) == 2
        assert (await stack.deployment(number))["sent"] == 10


async def test_recipients_are_numbered_by_when_they_are_due(stack: Stack) -> None:
    rows = [
        "c@example.org,2099-01-01T11:30:00Z,",
        "a@example.org,,",
        "bad@example.org,soon,",
        "moon@example.org,2099-01-01T12:00,Moon",
        "b@example.org,2099-01-01T19:10,Asia/Tokyo",
        "early@example.org,2098-12-31T00:00Z,",
        "d@example.org,2099-01-01T11:29:01Z,",
        "c@example.org,2099-01-01T10:00:00Z,",
    ]
    number = await stack.prepare(rows, extra=FAR, columns="address,send_at,time_zone")
    nine = datetime(2099, 1, 1, 9, tzinfo=UTC)
    found = await stack.rows("SELECT address FROM sendoff.recipient ORDER BY recipient")
    assert [r["address"][:-12] for r in found] == ["a", "early", "b", "c", "d"]
    waves = await stack.rows("SELECT first, last, due_at FROM sendoff.wave ORDER BY wave")
    assert [tuple(w.values()) for w in waves] == [
        (1, 2, nine),
        (3, 3, nine + timedelta(minutes=70)),
        (4, 5, nine + timedelta(minutes=150)),
    ]
    left_out = await stack.rows("SELECT line, cause, detail FROM sendoff.exclusion_log ORDER BY line")
    assert [(e["line"], e["cause"]) for e in left_out] == [(4, "mistimed"), (5, "mistimed"), (9, "duplicate")]
    assert left_out[0]["detail"].startswith("send_at: “soon” is not a date and a time")
    await confirmed(stack, number)
    pages = await stack.rows("SELECT first, last, due_at FROM sendoff.delivery_page ORDER BY page")
    assert pages == waves


async def test_times_without_a_contact_date_begin_at_the_confirmation(stack: Stack) -> None:
    soon = datetime.now(UTC) + timedelta(hours=2)
    rows = ["a@example.org,", f"b@example.org,{soon:%Y-%m-%dT%H:%MZ}", "c@example.org,2001-01-01T00:00Z"]
    number = await stack.prepare(rows, columns="address,send_at")
    async with stack.running():
        assert (await stack.confirm(number))["state"] == "in_progress"
        await until(lambda: _sent(stack, number, 2))
        row = await stack.deployment(number)
        assert (row["state"], row["pending"]) == ("in_progress", 1)


async def test_a_time_after_the_validity_is_refused(stack: Stack) -> None:
    rows = ["a@example.org,2099-01-05T00:00Z"]
    with pytest.raises(PreparationRefused, match=r"due at 2099-01-05 00:00 UTC, when .* no longer valid"):
        await stack.prepare(rows, extra=FAR, columns="address,send_at")
    assert await stack.rows("SELECT FROM sendoff.delivery") == []
    number = await stack.prepare(rows, columns="address,send_at")
    async with stack.running("confirm"):
        answer = await stack.confirm(number)
    assert (answer["reason"], answer["state"]) == ("validity_over", "ready")
    assert "2099-01-05" in answer["message"]


async def test_everybody_is_sent_to_at_their_own_local_time(stack: Stack) -> None:
    local = '[schedule]\ncontact_date = 2027-03-28T02:30:00\ntime_zone = "Europe/Paris"\nlocal_time = true\n'
    zones = ["America/New_York", "Europe/Paris", "", "Asia/Tokyo", "Asia/Kathmandu", "Australia/Lord_Howe"]
    rows = [f"u{i}@example.org,{zone}" for i, zone in enumerate(zones)]
    number = await stack.prepare(rows, extra=local, columns="address,time_zone")
    found = await stack.rows(
        "SELECT r.address, w.due_at FROM sendoff.recipient r JOIN sendoff.wave w"
        " ON w.delivery_id = r.delivery_id AND r.recipient BETWEEN w.first AND w.last ORDER BY recipient"
    )
    # In Paris the clocks skip 02:30 on this day; what is meant is 03:30 summer time.
    assert [(int(r["address"][1]), f"{r['due_at'].astimezone(UTC):%d %H:%M}") for r in found] == [
        (5, "27 15:30"),
        (3, "27 17:30"),
        (4, "27 20:45"),
        (1, "28 01:30"),
        (2, "28 01:30"),
        (0, "28 06:30"),
    ]
    async with stack.running("confirm"):
        summary = (await _finalize(stack, number))["summary"]
        assert summary["contact_date"] == "2027-03-27T15:30:00Z"
        assert (summary["time_zone"], summary["wave_count"]) == ("Europe/Paris", 5)
        assert (await stack.confirm(number))["state"] == "start_pending"


async def _finalize(stack: Stack, number: int) -> dict[str, Any]:
    return await stack.request(
        routing.CONFIRM, {"delivery_id": number, "operator": "ana", "definitive": False}
    )


async def _sent(stack: Stack, number: int, count: int) -> bool:
    return bool((await stack.deployment(number))["sent"] == count)
