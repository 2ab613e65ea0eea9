"""Suppression: by which bounces an address goes into quarantine, how it leaves, and what operators change."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from typing import TYPE_CHECKING, Any

import pytest

from contracts import routing
from tests.support.database import change
from tests.support.deliveries import confirmed
from tests.support.results import AT
from tests.support.stack import until
from worker.db import profiles
from worker.db.suppression import Suppression

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.processes import Sendoff
    from tests.support.stack import Stack

HARD = {"kind": "hard", "reason": "user_unknown", "status": "5.1.1", "fault": "recipient", "reply": "550 no"}
FULL = {
    "kind": "soft",
    "reason": "mailbox_full",
    "status": "4.2.2",
    "fault": "recipient",
    "reply": "452 full",
}
SOFT = {**FULL, "reason": "account_disabled"}
OURS = {"kind": "soft", "reason": "spam", "status": "5.7.1", "fault": "sender", "reply": "550 blocked"}


async def bounce(stack: Stack, number: int, recipient: int, what: dict[str, Any], attempt: int = 1) -> None:
    result = {"delivery_id": number, "recipient": recipient, "attempt": attempt, "at": AT, **what}
    await stack.publish(routing.RESULTS, "bounce", json.dumps(result).encode())


async def quarantine(stack: Stack) -> list[dict[str, Any]]:
    return await stack.rows(
        "SELECT address, cause, reason, delivery_id, expires_at - since AS held FROM sendoff.quarantine"
        " ORDER BY address"
    )


async def once(stack: Stack, what: dict[str, Any], address: str = "Ana@example.org") -> int:
    """A delivery to one address, which comes back."""
    number = await confirmed(stack, [address])
    async with stack.running("results"):
        await bounce(stack, number, 1, what)
        await until(lambda: came_back(stack, number))
    return number


async def came_back(stack: Stack, number: int) -> bool:
    row = await stack.deployment(number)
    return bool(row["bounced"] + row["retrying"])


async def age(stack: Stack, hours: float) -> None:
    """Lets time pass since the last error."""
    earlier = "UPDATE sendoff.failing_address SET last_error_at = last_error_at - interval '1 hour' * $1"
    await change(stack, earlier, hours)


async def errors(stack: Stack) -> list[int]:
    return [row["errors"] for row in await stack.rows("SELECT errors FROM sendoff.failing_address")]


async def test_a_hard_bounce_is_enough_and_a_refusal_of_ours_is_nothing(stack: Stack) -> None:
    number = await confirmed(stack, ["Ana@example.org", "bob@example.org", "carl@example.org"])
    async with stack.running("results"):
        await bounce(stack, number, 1, HARD)
        await bounce(stack, number, 2, OURS)
        await bounce(stack, number, 3, {**HARD, "fault": "content"})
        await bounce(stack, number, 1, HARD)
        await until(lambda: settled(stack, number, 3))
    assert await quarantine(stack) == [
        {
            "address": "Ana@example.org",
            "cause": "hard_bounce",
            "reason": "user_unknown",
            "delivery_id": number,
            "held": None,
        }
    ]
    again = await stack.prepare(["ana@example.org", "bob@example.org"])
    assert (await stack.deployment(again))["excluded"] == 1
    assert await stack.rows("SELECT cause, list, entries FROM sendoff.suppression") == [
        {"cause": "hard_bounce", "list": "quarantine", "entries": 1}
    ]


async def settled(stack: Stack, number: int, recipients: int) -> bool:
    row = await stack.deployment(number)
    return bool(row["bounced"] + row["retrying"] == recipients)


async def test_five_soft_errors_a_day_apart_are_enough(stack: Stack) -> None:
    for count in range(1, 5):
        await once(stack, SOFT)
        assert await errors(stack) == [count]
        assert await quarantine(stack) == []
        await age(stack, 25)
    number = await once(stack, SOFT)
    (entry,) = await quarantine(stack)
    assert (entry["cause"], entry["delivery_id"], entry["held"]) == ("soft_bounce", number, None)


async def test_errors_of_one_day_are_one_and_after_ten_days_the_count_begins_anew(stack: Stack) -> None:
    await once(stack, SOFT)
    await age(stack, 23)
    await once(stack, SOFT)
    assert await errors(stack) == [1]
    await age(stack, 2)
    await once(stack, SOFT)
    assert await errors(stack) == [2]
    await age(stack, 241)
    await once(stack, SOFT)
    assert await errors(stack) == [1]


async def test_a_full_mailbox_leaves_after_thirty_days(stack: Stack) -> None:
    for _ in range(5):
        await once(stack, FULL)
        await age(stack, 25)
    (entry,) = await quarantine(stack)
    assert (entry["cause"], entry["held"].days) == ("mailbox_full", 30)
    lists = Suppression(stack.db)
    assert await lists.expired() == []
    await change(stack, "UPDATE sendoff.quarantined_address SET expires_at = now()")
    await age(stack, 241)
    async with stack.running("schedule", tick=0.05):
        await until(lambda: empty(stack))
    assert await errors(stack) == []


async def empty(stack: Stack) -> bool:
    left = "SELECT FROM sendoff.quarantined_address"
    return not await stack.rows(left) and not await Suppression(stack.db).expired()


async def test_a_hard_bounce_takes_the_end_away(stack: Stack) -> None:
    for _ in range(5):
        await once(stack, FULL)
        await age(stack, 25)
    number = await confirmed(stack, ["bob@example.org"])  # what was under way may come back later
    await change(
        stack, "UPDATE sendoff.recipient SET address = 'Ana@example.org' WHERE delivery_id = $1", number
    )
    async with stack.running("results"):
        await bounce(stack, number, 1, HARD)
        await until(lambda: came_back(stack, number))
    (entry,) = await quarantine(stack)
    assert (entry["cause"], entry["held"]) == ("hard_bounce", None)


@pytest.mark.parametrize(("hours", "forgiven"), [(25, True), (23, False)])
async def test_a_success_that_did_not_come_back_ends_the_count(
    stack: Stack, hours: int, *, forgiven: bool
) -> None:
    await once(stack, SOFT)
    await age(stack, 48)
    number = await confirmed(stack, ["ana@EXAMPLE.org", "bob@example.org"])
    async with stack.running("results"):
        sent = [{"delivery_id": number, "recipient": r, "attempt": 1, "at": AT} for r in (1, 2)]
        await stack.publish(routing.RESULTS, "sent", json.dumps(sent).encode())
        await stack.finished(number)
    await change(
        stack, "UPDATE sendoff.outcome SET sent_at = now() - interval '1 hour' WHERE status = 'sent'"
    )
    await change(
        stack,
        "UPDATE sendoff.delivery_record SET finished_at = now() - interval '1 hour' * $2"
        " WHERE delivery_id = $1",
        number,
        hours,
    )
    lists = Suppression(stack.db)
    assert await lists.with_successes() == [number] * forgiven
    if forgiven:
        await lists.forgive(number)
        assert await lists.with_successes() == []
    assert await errors(stack) == [1] * (not forgiven)


async def test_the_errors_of_who_is_erased_are_forgotten(stack: Stack) -> None:
    number = await confirmed(stack, ["ana@example.org,p1"], columns="address,profile_id")
    async with stack.running("results"):
        await bounce(stack, number, 1, SOFT)
        await until(lambda: came_back(stack, number))
    assert await errors(stack) == [1]
    await profiles.erase_messages(stack.db, "p1", number, [1])
    assert await errors(stack) == []


@pytest.fixture
def run(sendoff: Sendoff) -> Callable[..., Any]:
    async def done(*args: object, status: int = 0) -> Any:
        result = await asyncio.to_thread(sendoff, *args)
        assert result.returncode == status, result.stderr
        return result

    return done


async def test_an_operator_adds_lists_and_removes(stack: Stack, run: Any) -> None:
    await stack.operator("zoe", "administration")
    by = ("--operator", "zoe")
    added = await run(
        "quarantine", "add", "Ana@Example.org", "bob@example.org", *by, "--reason", "asked, by phone"
    )
    assert added.stdout == "Added: 2; there already: 0.\n"
    until_then = ("--until", "2030-01-01T00:00Z")
    assert (
        "Added: 0; there already: 1"
        in (await run("quarantine", "add", "bob@example.org", *by, *until_then)).stdout
    )
    await run("denylist", "add", "p-1", *by, *until_then)
    listed = (await run("quarantine", "list", "--json")).stdout.splitlines()
    assert [json.loads(line)["address"] for line in listed] == ["Ana@example.org", "bob@example.org"]
    first = json.loads(listed[0])
    assert (first["cause"], first["reason"], first["added_by"]) == ("manual", "asked, by phone", "zoe")
    (denied,) = [json.loads(line) for line in (await run("denylist", "list", "--json")).stdout.splitlines()]
    assert (denied["profile_id"], denied["expires_at"]) == ("p-1", "2030-01-01T00:00:00+00:00")
    removed = await run("quarantine", "remove", "ANA@example.org", "x@example.org", *by, "--json")
    assert json.loads(removed.stdout) == {"removed": 1, "not_there": 1}
    table = (await run("quarantine", "list", "--cause", "manual")).stdout
    assert "bob@example.org" in table
    assert "Ana" not in table
    log = await stack.rows(
        "SELECT command, operator, status, body FROM sendoff.command_log ORDER BY received_at"
    )
    assert [(row["command"], row["operator"], row["status"]) for row in log] == [
        ("quarantine.add", "zoe", "accepted"),
        ("quarantine.add", "zoe", "accepted"),
        ("denylist.add", "zoe", "accepted"),
        ("quarantine.remove", "zoe", "accepted"),
    ]
    assert "example.org" not in str([row["body"] for row in log])


async def test_who_may_not_changes_nothing_and_is_logged(stack: Stack, run: Any) -> None:
    refused = await run("denylist", "add", "p-1", "--operator", "ana", status=1)
    assert "Only operators with the Administration role can change the denylist" in refused.stderr
    assert (
        "The operator “nobody” is not known"
        in (await run("quarantine", "remove", "a@example.org", "--operator", "nobody", status=1)).stderr
    )
    assert await stack.rows("SELECT FROM sendoff.denylist") == []
    log = await stack.rows("SELECT reason FROM sendoff.command_log ORDER BY received_at")
    assert [row["reason"] for row in log] == ["role_missing", "operator_unknown"]


async def test_what_is_no_address_is_bad_usage(stack: Stack, run: Any) -> None:
    await stack.operator("zoe", "administration")
    wrong = await run("quarantine", "add", "no address", "--operator", "zoe", status=2)
    assert "“no address” is no address: " in wrong.stderr
    assert await stack.rows("SELECT FROM sendoff.quarantine") == []


async def test_a_file_goes_in_and_comes_out(stack: Stack, run: Any) -> None:
    await stack.operator("zoe", "administration")
    file = stack.folder / "addresses.csv"
    good = [f"user{n}@example.org" for n in range(12_000)]
    rows = [
        *(f"{address},,," for address in good),
        "nobody,,,",
        "a@example.org,b",
        "Zoë@example.org,complaint,Ärger,2031-05-01",
    ]
    file.write_text(
        "address,cause,reason,expires_at\n" + "\n".join([*rows, "late@example.org,,,tomorrow"]) + "\n"
    )
    done = await run("quarantine", "import", file, "--operator", "zoe")
    assert done.stdout == "Added: 12,001; there already: 0.\n"
    assert "Line 12002 was left out: " in done.stderr
    assert "Line 12003 was left out: it has 2 fields" in done.stderr
    assert "Line 12005 was left out: “tomorrow” is no time" in done.stderr
    exported = (await run("quarantine", "export")).stdout
    found = list(csv.DictReader(io.StringIO(exported)))
    assert len(found) == 12_001
    (zoe,) = [row for row in found if row["address"] == "Zoë@example.org"]
    assert (zoe["cause"], zoe["reason"], zoe["expires_at"]) == (
        "complaint",
        "Ärger",
        "2031-05-01T00:00:00+00:00",
    )
    file.write_text(exported)
    again = await run("quarantine", "import", file, "--operator", "zoe", "--json")
    assert json.loads(again.stdout) == {"added": 0, "there_already": 12_001, "unread": 0}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("", "it is empty"), ("profile\nx\n", "it has no column “profile_id”; its header names profile")],
)
async def test_a_file_that_cannot_be_used_is_a_sentence(
    stack: Stack, run: Any, text: str, sentence: str
) -> None:
    await stack.operator("zoe", "administration")
    file = stack.folder / "profiles.csv"
    file.write_text(text)
    assert sentence in (await run("denylist", "import", file, "--operator", "zoe", status=1)).stderr
    missing = await run("denylist", "import", stack.folder / "nowhere", "--operator", "zoe", status=1)
    assert "cannot be read" in missing.stderr
