"""One profile: its history, all that is held of it, and its erasure, which leaves the accounts alone."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from contracts import routing
from tests.support.channels import Counting
from tests.support.claims import claim
from tests.support.database import long_ago
from tests.support.deliveries import LATER, SOON, agrees, counted, log
from tests.support.results import bounced, result
from tests.support.stack import until
from tests.support.tracking import event, publish, recorded
from worker.db import preparation, profiles, retention
from worker.domain.erasure import fingerprint
from worker.domain.settlement import Settlement
from worker.operations import erase as service
from worker.operations import settle
from worker.operations.erase import ErasureRefused, ErasureRequest

if TYPE_CHECKING:
    from tests.support.processes import Sendoff
    from tests.support.stack import Stack

WHO, ADDRESS = "crm-7", "zoe.person@example.org"
COLUMNS = "address,profile_id,first_name"
ROWS = ["a@example.org,crm-1,Ana", f"{ADDRESS},{WHO},Zoë", "b@example.org,crm-2,Bo"]
ADMIN = "root"
KEY = "k" * 32


async def prepared(stack: Stack, **more: Any) -> int:
    await stack.operator(ADMIN, "administration")
    return await stack.prepare(ROWS, columns=COLUMNS, **more)


async def sent(stack: Stack) -> int:
    number = await prepared(stack)
    async with stack.running():
        await stack.confirm(number)
        await stack.finished(number)
    return number


async def confirmed(stack: Stack) -> int:
    number = await prepared(stack)
    async with stack.running("confirm"):
        await stack.confirm(number)
    return number


async def erased(stack: Stack) -> service.Erased:
    return await service.erase(stack.db, ErasureRequest(WHO, ADMIN))


async def mentions(stack: Stack) -> list[str]:
    """The tables that speak of the person still."""
    tables = await stack.rows(
        "SELECT relname FROM pg_class WHERE relnamespace = 'sendoff'::regnamespace AND relkind = 'r'"
    )
    found = []
    for name in (t["relname"] for t in tables):
        rows = await stack.rows(
            f"SELECT FROM sendoff.{name} t WHERE t::text ~ '{WHO}|zoe.person|Zoë' LIMIT 1"
        )
        found += [name] * len(rows)
    return found


async def test_the_history_has_everything_the_newest_first(stack: Stack, sendoff: Sendoff) -> None:
    first, second = await sent(stack), await sent(stack)
    async with stack.running("results", "tracking"):
        await publish(
            stack, event(first, 2, "open", "e1"), event(first, 2, "click", "e2", url="https://e.org/x")
        )
        await stack.publish(routing.RESULTS, "bounce", bounced(second, 2, reply="550 no such user"))
        await until(lambda: counted(stack, second, bounced=1))
        await recorded(stack, 2)
    run = lambda *args: asyncio.to_thread(sendoff, *args)  # noqa: E731
    lines = [json.loads(line) for line in (await run("history", WHO, "--json")).stdout.splitlines()]
    assert [(r["delivery_id"], r["status"], r["bounce_kind"]) for r in lines] == [
        (second, "bounced", "hard"),
        (first, "sent", None),
    ]
    assert [(r["opened_at"] is None, r["clicked_at"] is None) for r in lines] == [
        (True, True),
        (False, False),
    ]
    table = list(csv.DictReader(io.StringIO((await run("history", WHO, "--csv")).stdout)))
    assert [list(r) for r in table] == [list(lines[0])] * 2
    shown = (await run("history", WHO)).stdout.splitlines()
    assert "bounced (hard)" in shown[1]
    assert shown[2].endswith("clicked, opened")
    nobody = await run("history", "crm-99")
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert nobody.stderr == "No message to the profile “crm-99” is known.\n"


async def test_the_history_goes_by_pages(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "_PAGE", 2)
    rows = [f"zoe{i}@example.org,{WHO},Zoë" for i in range(5)]
    number = await stack.prepare(rows, columns=COLUMNS)
    seen = [(r["delivery_id"], r["recipient"]) async for r in profiles.history(stack.db, WHO)]
    assert seen == [(number, r) for r in (5, 4, 3, 2, 1)]


async def test_the_export_has_all_that_is_held(stack: Stack, sendoff: Sendoff) -> None:
    number = await sent(stack)
    excluded = await stack.prepare([ROWS[0], f"not an address,{WHO},Zoë"], columns=COLUMNS)
    async with stack.running("tracking"):
        await publish(stack, event(number, 2, "optout", "e1"), key=routing.OPTOUT)
        await recorded(stack, 1)
    async with stack.db.session() as session:
        statement = "INSERT INTO sendoff.quarantined_address VALUES ('null', $1, $1, 'hard bounces')"
        await session.connection.execute(statement, ADDRESS)
    ran = await asyncio.to_thread(sendoff, "export", WHO)
    held = json.loads(ran.stdout)
    assert (held["profile_id"], [d["channel"] for d in held["denylist"]]) == (WHO, ["null"])
    (message,) = held["messages"]
    assert (message["address"], message["variables"]["first_name"], message["status"]) == (
        ADDRESS,
        "Zoë",
        "sent",
    )
    assert [e["kind"] for e in message["tracking_events"]] == ["optout"]
    assert [q["cause"] for q in message["quarantine"]] == ["hard bounces"]
    assert [(e["delivery_id"], e["line"]) for e in held["exclusions"]] == [(excluded, 3)]
    nobody = await asyncio.to_thread(sendoff, "export", "crm-99")
    assert (nobody.returncode, nobody.stderr) == (1, "Nothing is held of the profile “crm-99”.\n")


async def test_nothing_speaks_of_who_was_erased_and_every_count_is_as_before(stack: Stack) -> None:
    number = await sent(stack)
    await stack.prepare([ROWS[0], f"not an address {ADDRESS},{WHO},Zoë"], columns=COLUMNS)
    async with stack.running("results", "tracking", "stats"):
        shared, own = "https://example.org/shop", f"https://example.org/of/{WHO}"
        await publish(
            stack, event(number, 2, "click", "e1", url=shared), event(number, 2, "click", "e2", url=own)
        )
        await publish(stack, event(number, 1, "click", "e3", url=shared))
        await stack.publish(
            routing.RESULTS, "bounce", bounced(number, 2, reply=f"550 <{ADDRESS}> is no user")
        )
        await until(lambda: counted(stack, number, bounced=1))
        await recorded(stack, 3)
        before = await stack.deployment(number)
        done = await erased(stack)
        assert (done.messages, done.exclusions, done.kept_from) == (1, 1, 0)
        # Without it, the address that does not work would be written to again.
        assert await mentions(stack) == ["quarantined_address"]
        assert await stack.deployment(number) == before
        assert await agrees(stack, number)
    assert (await log(stack, number))[2]["reason"] == "user_unknown"
    urls = await stack.rows("SELECT url, clicks FROM sendoff.tracked_url ORDER BY url")
    assert [(u["url"], u["clicks"]) for u in urls] == [(shared, 2), (None, 1)]
    with pytest.raises(ErasureRefused, match="Nothing is held"):
        await erased(stack)


async def test_messages_that_are_queued_already_are_not_sent_to_who_was_erased(stack: Stack) -> None:
    number = await confirmed(stack)
    async with stack.running("fanout"):
        await until(lambda: _queued(stack, 3))
    assert (await erased(stack)).kept_from == 1
    channel = Counting()
    async with stack.running(channel=channel):
        row = await stack.finished(number)
        assert await agrees(stack, number)
    assert (row["sent"], row["excluded_late"], dict(channel.tries)) == (2, 1, {1: 1, 3: 1})
    late = await stack.rows("SELECT recipient, cause FROM sendoff.exclusion_log WHERE late")
    assert [(r["recipient"], r["cause"]) for r in late] == [(2, "erased")]


async def _queued(stack: Stack, messages: int) -> bool:
    return await stack.depth(routing.send_queue("null")) == messages


async def test_what_comes_later_brings_nothing_back_and_nobody_is_tried_again(stack: Stack) -> None:
    number = await confirmed(stack)
    await claim(stack.db, number, {2: (1, ADDRESS)})
    assert (await erased(stack)).kept_from == 0
    async with stack.running("results", "tracking", "stats", **SOON):
        soft = bounced(number, 2, "soft", reply=f"452 <{ADDRESS}> is full")
        await stack.publish(routing.RESULTS, "bounce", soft)
        await until(lambda: counted(stack, number, bounced_soft=1, retrying=0))
        mine = {"url": f"https://example.org/{WHO}", "user_agent": "Zoë's own"}
        await publish(stack, event(number, 2, "click", "e1", **mine), event(number, 2, "optout", "e2"))
        await recorded(stack, 2)
        assert await agrees(stack, number)
    assert (await stack.deployment(number))["clicked"] == 1
    assert await mentions(stack) == []
    assert await stack.rows("SELECT FROM sendoff.quarantine") == []
    channel = Counting()
    async with stack.running(channel=channel, **SOON):
        await stack.finished(number)
    assert dict(channel.tries) == {1: 1, 3: 1}


async def test_who_waits_for_a_retry_keeps_the_outcome_that_stands(stack: Stack) -> None:
    number = await confirmed(stack)
    await claim(stack.db, number, {2: (1, ADDRESS)})
    async with stack.running("results", "stats", **LATER):
        failed = result(number, 2, reason="busy", retryable=True)
        await stack.publish(routing.RESULTS, "error", failed)
        await until(lambda: counted(stack, number, retrying=1))
        assert (await erased(stack)).kept_from == 1
        assert await counted(stack, number, retrying=0, errors=1, pending=2)
        assert await agrees(stack, number)


async def test_who_is_unknown_is_not_sent_to_again(stack: Stack) -> None:
    number = await prepared(stack)
    quick = SOON | {"page_look_after": 0.05, "claim_lease": 0.3, "result_lease": 0.3}
    async with stack.running(channel=Counting(frozenset({1, 2})), **quick):
        await stack.confirm(number)
        await stack.finished(number)
    await erased(stack)
    done = await settle.settle(stack.db, settle.SettlementRequest(number, Settlement.RESEND, "ana"))
    assert done.settled == 1
    channel = Counting()
    async with stack.running(channel=channel, **quick):
        row = await stack.finished(number)
    assert (dict(channel.tries), row["unknown"]) == ({1: 1}, 1)


async def test_who_was_erased_before_the_confirmation_is_kept_out_until_prepared_again(stack: Stack) -> None:
    number = await prepared(stack)
    assert (await erased(stack)).kept_from == 1
    assert await stack.prepare([ROWS[0], ROWS[2]], columns=COLUMNS, delivery=number) == number
    row = await stack.deployment(number)
    assert (row["to_deliver"], row["excluded_late"], row["pending"]) == (2, 0, 2)
    alone = await stack.prepare([ROWS[1]], columns=COLUMNS)
    await erased(stack)
    channel = Counting()
    async with stack.running(channel=channel, **SOON):
        await stack.confirm(number, preparation=2)
        await stack.confirm(alone)
        await stack.finished(number)
        row = await stack.finished(alone)
    assert (dict(channel.tries), row["excluded_late"]) == ({1: 1, 2: 1}, 1)


async def test_an_erasure_beside_another_preparation_erases_nobody_else(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file numbers recipients otherwise: a number that was read before may be of somebody else."""
    number = await prepared(stack)
    erasable = profiles.erasable

    async def and_then_prepared_again(*args: Any) -> dict[int, list[int]]:
        found = await erasable(*args)
        monkeypatch.undo()
        await stack.prepare([ROWS[1], ROWS[0], ROWS[2]], columns=COLUMNS, delivery=number)
        return found

    monkeypatch.setattr(profiles, "erasable", and_then_prepared_again)
    await erased(stack)
    rows = await stack.rows("SELECT recipient, profile_id FROM sendoff.recipient ORDER BY recipient")
    assert [tuple(row.values()) for row in rows] == [(1, None), (2, "crm-1"), (3, "crm-2")]


async def test_an_erasure_keeps_out_of_a_preparation(stack: Stack) -> None:
    """Each would wait for what the other has locked, and hours of preparing might be lost over it."""
    number = await prepared(stack)
    async with stack.db.session() as preparing:
        assert await preparation.lock_preparation(preparing, number)
        async with preparing.connection.transaction():
            await preparing.execute("drop_audience", delivery_id=number)
            with pytest.raises(ErasureRefused, match=f"The delivery {number} is being prepared"):
                await erased(stack)
    await stack.prepare(ROWS, columns=COLUMNS, delivery=number)
    assert (await erased(stack)).messages == 1


async def test_who_is_in_a_delivery_that_is_leaving_is_erased_too(stack: Stack) -> None:
    """A draft of which the outcomes have left already, and the recipients not yet."""
    number = await prepared(stack)
    await long_ago(stack, number)
    await stack.prepare(1)
    async with stack.db.session() as session:
        (one, _) = await retention.survey(session, timedelta(days=400))
        assert await retention.mark(session, one, timedelta(days=400))
        await session.connection.execute("ALTER TABLE sendoff.outcome DETACH PARTITION sendoff.outcome_1")
    assert (await erased(stack)).messages == 1
    assert await mentions(stack) == []


async def test_after_a_stop_the_rest_stays_cancelled(stack: Stack) -> None:
    number = await confirmed(stack)
    async with stack.running("confirm", "stats"):
        await stack.control(routing.STOP, number)
        assert (await erased(stack)).kept_from == 0
        assert await counted(stack, number, cancelled=3, excluded_late=0)
        assert await agrees(stack, number)
    assert await mentions(stack) == []


async def test_who_may_not_is_refused_and_the_command_log_names_nobody_who_was_erased(stack: Stack) -> None:
    await sent(stack)
    for operator in ("ana", "nobody"):
        with pytest.raises(ErasureRefused):
            await service.erase(stack.db, ErasureRequest(WHO, operator, fingerprint_key=KEY))
    await service.erase(stack.db, ErasureRequest(WHO, ADMIN, fingerprint_key=KEY))
    rows = await stack.rows(
        "SELECT operator, status, reason, body FROM sendoff.command_log WHERE command = 'profile.erase'"
        " ORDER BY received_at"
    )
    assert [(r["operator"], r["status"], r["reason"]) for r in rows] == [
        ("ana", "refused", "role_missing"),
        ("nobody", "refused", "operator_unknown"),
        (ADMIN, "accepted", None),
    ]
    assert {json.loads(r["body"])["profile_hmac"] for r in rows} == {fingerprint(WHO, KEY)}


async def test_without_a_key_no_fingerprint_is_recorded(stack: Stack) -> None:
    await sent(stack)
    await erased(stack)
    (row,) = await stack.rows("SELECT body FROM sendoff.command_log WHERE command = 'profile.erase'")
    assert json.loads(row["body"])["profile_hmac"] is None


async def test_erase_asks_for_a_yes_and_the_administration_role_and_says_what_it_did(
    stack: Stack, sendoff: Sendoff
) -> None:
    await sent(stack)
    run = lambda *args: asyncio.to_thread(sendoff, "erase", WHO, "--operator", *args)  # noqa: E731
    asks = await run(ADMIN)
    assert (asks.returncode, "--yes" in asks.stderr) == (2, True)
    dry = await run(ADMIN, "--dry-run")
    assert (dry.returncode, dry.stdout) == (
        0,
        "Held: 1 messages of 1 deliveries, 0 tracking events, 0 exclusions.\n",
    )
    refused = await run("ana", "--dry-run")
    assert (refused.returncode, "Administration role" in refused.stderr) == (1, True)
    done = await run(ADMIN, "--yes", "--json")
    assert json.loads(done.stdout) == {"profile_id": WHO, "messages": 1, "exclusions": 0, "kept_from": 0}
    again = await run(ADMIN, "--yes")
    assert (again.returncode, again.stderr) == (1, f"Nothing is held of the profile “{WHO}”.\n")


async def test_the_log_is_narrowed_by_bounce_reason_status_and_domain(stack: Stack, sendoff: Sendoff) -> None:
    number = await sent(stack)
    async with stack.running("results"):
        await stack.publish(routing.RESULTS, "bounce", bounced(number, 2))
        await until(lambda: counted(stack, number, bounced=1))

    async def found(*options: str) -> list[int]:
        ran = await asyncio.to_thread(sendoff, "log", number, "--json", *options)
        assert ran.returncode == 0
        return [json.loads(line)["recipient"] for line in ran.stdout.splitlines()]

    assert await found("--bounce", "hard") == [2]
    assert await found("--bounce", "soft") == []
    assert await found("--reason", "user_unknown", "--status", "bounced") == [2]
    assert await found("--domain", "Example.ORG", "--status", "sent") == [1, 3]
    assert await found("--domain", "example.com") == []
