"""`sendoff unknown`: unknown outcomes are settled by an operator, and a real result still wins."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from contracts import routing
from contracts.events import Event
from tests.support.channels import Counting
from tests.support.deliveries import SOON, agrees, counted, log, states
from tests.support.events import heard, listener
from tests.support.results import bounced, result
from tests.support.stack import until
from worker.db.accounts import Accounts
from worker.domain.settlement import Settlement
from worker.operations import settle
from worker.operations.settle import SettlementRequest

if TYPE_CHECKING:
    from tests.support.processes import Sendoff
    from tests.support.stack import Stack

QUICK = SOON | {"page_look_after": 0.05, "claim_lease": 0.3, "result_lease": 0.3}


async def with_unknown(stack: Stack, recipients: int, unsure: set[int]) -> int:
    """A finished delivery in which nobody knows of some."""
    number = await stack.prepare(recipients)
    async with stack.running(channel=Counting(frozenset(unsure)), **QUICK):
        await stack.confirm(number)
        row = await stack.finished(number)
    assert row["unknown"] == len(unsure)
    return number


async def asked(stack: Stack) -> list[dict[str, Any]]:
    return await stack.rows(
        "SELECT operator, status, reason, message FROM sendoff.command_log"
        " WHERE command = 'delivery.settle-unknown' ORDER BY received_at"
    )


async def test_unknown_recipients_are_sent_to_again_and_the_delivery_finishes(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "_BATCH", 3)
    queue = await listener(stack)
    number = await with_unknown(stack, 12, {1, 2, 6, 11})
    channel = Counting()
    async with stack.running(channel=channel, **QUICK):
        done = await settle.settle(stack.db, SettlementRequest(number, Settlement.RESEND, "ana"))
        assert (done.refused, done.settled) == (None, 4)
        await until(lambda: counted(stack, number, sent=12))
        await stack.finished(number)
        assert await agrees(stack, number)
        events = await heard(queue, 5)
    assert channel.tries == {1: 1, 2: 1, 6: 1, 11: 1}
    assert {r["attempt"] for r in (await log(stack, number)).values() if r["recipient"] in channel.tries} == {
        2
    }
    assert (await states(stack, number))[-1] == "finished"
    assert [(e.event, e.operator) for e in events[2:4]] == [(Event.FINISHED, None), (Event.RESUMED, "ana")]
    (first, *_) = await asked(stack)
    assert (first["operator"], first["status"]) == ("ana", "accepted")


@pytest.mark.parametrize(("how", "counter"), [(Settlement.SENT, "sent"), (Settlement.ERROR, "errors")])
async def test_a_late_result_wins_over_what_an_operator_settled(
    stack: Stack, how: Settlement, counter: str
) -> None:
    number = await with_unknown(stack, 3, {1, 2, 3})
    done = await settle.settle(stack.db, SettlementRequest(number, how, "ana", (1, 3)))
    assert (done.refused, done.settled, done.state) == (None, 2, "finished")
    row = await stack.deployment(number)
    assert (row[counter], row["unknown"]) == (2, 1)
    settled = (await log(stack, number))[1]
    fact = settled["sent_at"] if how is Settlement.SENT else settled["error_at"]
    assert fact == settled["claimed_at"]
    assert (settled["reason"], settled["reply"]) == ("settled_by_operator", f"Settled as {how} by ana.")
    assert (await settle.settle(stack.db, SettlementRequest(number, how, "ana", (1, 3)))).settled == 0
    async with stack.running("results", "stats"):
        await stack.publish(routing.RESULTS, "bounce", bounced(number, 1, reply="550 no"))
        await until(lambda: counted(stack, number, bounced_hard=1, unknown=1, **{counter: 1}))
        assert await agrees(stack, number)
    assert (await log(stack, number))[1]["reply"] == "550 no"
    assert [(a["status"], a["message"]) for a in await asked(stack)] == [
        ("accepted", f"2 unknown outcomes: {how}.")
    ]


async def test_a_late_result_ends_a_resend_that_is_not_claimed_yet(stack: Stack) -> None:
    number = await with_unknown(stack, 2, {1, 2})
    await settle.settle(stack.db, SettlementRequest(number, Settlement.RESEND, "ana", (1,)))
    row = await stack.deployment(number)
    assert (row["state"], row["retrying"], row["unknown"]) == ("in_progress", 1, 1)
    channel = Counting()
    async with stack.running("results", **QUICK):
        await stack.publish(routing.RESULTS, "sent", result(number, 1))
        await until(lambda: counted(stack, number, sent=1, retrying=0))
    async with stack.running(channel=channel, **QUICK):
        await stack.finished(number)
    assert channel.tries.total() == 0


async def test_a_stop_makes_a_resend_unknown_again(stack: Stack) -> None:
    number = await with_unknown(stack, 2, {1})
    await settle.settle(stack.db, SettlementRequest(number, Settlement.RESEND, "ana"))
    async with stack.running("confirm", "stats"):
        await stack.control(routing.STOP, number)
        assert await counted(stack, number, cancelled=1, unknown=0, retrying=0)
        assert await agrees(stack, number)
        assert not await Accounts(stack.db).end_retries(number)
        assert await counted(stack, number, cancelled=0, unknown=1, retrying=0)
        assert await agrees(stack, number)
    refused = (await settle.settle(stack.db, SettlementRequest(number, Settlement.RESEND, "ana"))).refused
    assert refused is not None
    assert refused.reason == "wrong_state"
    assert (await settle.settle(stack.db, SettlementRequest(number, Settlement.ERROR, "ana"))).settled == 1


async def test_an_operator_who_may_not_settle_is_refused_and_the_refusal_is_recorded(stack: Stack) -> None:
    await stack.operator("paul", "prepare_deliveries")
    number = await with_unknown(stack, 1, {1})
    for request, reason in (
        (SettlementRequest(number, Settlement.SENT, "paul"), "role_missing"),
        (SettlementRequest(number, Settlement.SENT, "nobody"), "operator_unknown"),
        (SettlementRequest(4711, Settlement.SENT, "ana"), "delivery_unknown"),
    ):
        done = await settle.settle(stack.db, request)
        assert done.refused is not None
        assert (done.refused.reason, done.settled) == (reason, 0)
    async with stack.db.transaction() as tx:
        await tx.connection.execute("UPDATE sendoff.delivery_record SET valid_until = now()")
    over = (await settle.settle(stack.db, SettlementRequest(number, Settlement.RESEND, "ana"))).refused
    assert over is not None
    assert over.reason == "validity_over"
    assert [a["reason"] for a in await asked(stack)] == [
        "role_missing",
        "operator_unknown",
        "delivery_unknown",
        "validity_over",
    ]
    assert (await stack.deployment(number))["unknown"] == 1


async def test_unknown_asks_for_a_yes_and_says_how_many_it_settled(stack: Stack, sendoff: Sendoff) -> None:
    number = await with_unknown(stack, 3, {1, 2, 3})
    common = ("unknown", number, "--operator", "ana")
    run = lambda *more, **env: asyncio.to_thread(sendoff, *common, *more, **env)  # noqa: E731
    asks = await run("--resolve", "sent")
    assert (asks.returncode, "--yes" in asks.stderr) == (2, True)
    done = await run("--resolve", "sent", "--recipient", 2, "--yes", "--json")
    assert json.loads(done.stdout) == {
        "delivery_id": number,
        "resolve": "sent",
        "settled": 1,
        "state": "finished",
    }
    done = await run("--resolve", "error", "--yes")
    assert (done.returncode, done.stdout) == (
        0,
        "Recipients settled as errors: 2; the delivery is finished.\n",
    )
    again = await run("--resolve", "error", "--recipient", 2, "--yes")
    assert (again.returncode, again.stdout) == (
        0,
        "Nothing to do: none of the recipients named is unknown; the delivery is finished.\n",
    )
    token = {"SENDOFF_AUTH": "token", "SENDOFF_AUTH_KEY": "x" * 32}
    token |= {"SENDOFF_AUTH_ISSUER": "i", "SENDOFF_AUTH_AUDIENCE": "a"}
    refused = await run("--resolve", "sent", "--yes", env=token)
    assert (refused.returncode, "--token-file" in refused.stderr) == (1, True)
    refused = await asyncio.to_thread(
        sendoff, "unknown", 4711, "--operator", "ana", "--resolve", "sent", "--yes"
    )
    assert (refused.returncode, refused.stderr) == (1, "There is no delivery 4711.\n")
