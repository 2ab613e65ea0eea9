"""A sender dies, or stands still, between the claim and the relay: doubt only where there is doubt."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from contracts import routing
from tests.support.processes import received, sink, worker
from tests.support.proxy import CutProxy
from tests.support.stack import until
from worker.domain.settlement import Settlement
from worker.operations import settle

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.stack import Stack

RECIPIENTS = 2_000
CONNECTIONS = 10
QUICK: dict[str, Any] = {
    "CLAIM_LEASE": 3,
    "RESULT_LEASE": 3,
    "PAGE_LOOK_AFTER": 1,
    "TICK": 0.2,
    "SMTP_CONNECTIONS": CONNECTIONS,
}


async def _sent_at_least(index: Path, count: int) -> bool:
    return received(index).total() >= count


async def test_a_killed_sender_leaves_no_more_in_doubt_than_it_has_connections(
    stack: Stack, tmp_path: Path
) -> None:
    number = await stack.prepare(RECIPIENTS, "email")
    kills = 4
    with sink(tmp_path / "sink") as (smtp_url, index):
        env = QUICK | {"SMTP_URL": smtp_url}
        with worker(stack.settings, "confirm", "fanout", "results", "schedule", **env):
            await stack.confirm(number)
            for kill in range(1, kills + 1):
                with worker(stack.settings, "send", **env) as sender:
                    share = kill * RECIPIENTS // (kills + 2)
                    await until(lambda s=share: _sent_at_least(index, s))  # type: ignore[misc]
                    sender.send_signal(signal.SIGKILL)
            with worker(stack.settings, "send", **env):
                row = await stack.finished(number, seconds=90)
        got = received(index)
    assert max(got.values()) == 1
    assert row["sent"] + row["unknown"] == RECIPIENTS
    assert row["unknown"] <= kills * CONNECTIONS
    log = await stack.rows("SELECT address FROM sendoff.sending_log WHERE status = 'unknown'")
    unknown = {row["address"] for row in log}
    assert len(unknown & got.keys()) + row["sent"] == len(got)


async def test_a_lost_answer_to_a_claim_costs_nobody_anything(stack: Stack, tmp_path: Path) -> None:
    """The connection is cut again and again while claims are committed: each finds its own rows again."""
    number = await stack.prepare(RECIPIENTS, "email")
    with sink(tmp_path / "sink") as (smtp_url, index):
        async with CutProxy(stack.settings.database_url).running() as proxy:
            changes = {"smtp_url": smtp_url, "claim_lease": 60, "result_lease": 60, "page_look_after": 1}
            async with (
                stack.running("confirm", "fanout", "results", "schedule", tick=0.1, **changes),
                stack.running("send", database_url=proxy.url, **changes),
            ):
                await stack.confirm(number)
                for cut in range(1, 7):
                    share = cut * RECIPIENTS // 8
                    await until(lambda s=share: _sent_at_least(index, s))  # type: ignore[misc]
                    proxy.cut()
                    proxy.mend()
                row = await stack.finished(number, seconds=40)
        got = received(index)
    assert (row["sent"], row["unknown"]) == (RECIPIENTS, 0)
    assert got.total() == RECIPIENTS


async def test_a_sender_that_stood_still_sends_nothing_that_others_took_over(
    stack: Stack, tmp_path: Path
) -> None:
    number = await stack.prepare(RECIPIENTS, "email")
    with sink(tmp_path / "sink") as (smtp_url, index):
        env = QUICK | {"SMTP_URL": smtp_url}
        with (
            worker(stack.settings, "confirm", "fanout", "results", "schedule", **env),
            worker(stack.settings, "send", **env) as frozen,
        ):
            await stack.confirm(number)
            await until(lambda: _sent_at_least(index, RECIPIENTS // 8))
            frozen.send_signal(signal.SIGSTOP)
            with worker(stack.settings, "send", **env):
                row = await until(lambda: _settled(stack, number), 60)
                await settle.settle(stack.db, settle.SettlementRequest(number, Settlement.RESEND, "ana"))
                row = await stack.finished(number, seconds=60)
            frozen.send_signal(signal.SIGCONT)
            # It takes up what it has in hand, finds that nothing of it is its own, and goes on.
            other = await stack.prepare(20, "email")
            await stack.confirm(other)
            await stack.finished(other)
        got = received(index)
    assert row["sent"] == RECIPIENTS
    # Who was in doubt may have got it before the sender stood still; nobody got it after.
    assert got.total() - RECIPIENTS - 20 <= CONNECTIONS


async def _settled(stack: Stack, number: int) -> dict[str, Any] | None:
    row = await stack.deployment(number)
    return row if row["sent"] + row["unknown"] == RECIPIENTS else None


@pytest.mark.parametrize("command", [routing.STOP, routing.PAUSE])
async def test_nobody_is_sent_to_after_a_stop_or_a_pause_is_answered(
    stack: Stack, tmp_path: Path, command: str
) -> None:
    number = await stack.prepare(RECIPIENTS, "email")
    with sink(tmp_path / "sink") as (smtp_url, index):
        async with stack.running(smtp_url=smtp_url, tick=0.1, smtp_connections=CONNECTIONS):
            await stack.confirm(number)
            await until(lambda: _sent_at_least(index, RECIPIENTS // 8))
            before = received(index).total()
            await stack.control(command, number)
            answered = received(index).total()
            if command == routing.STOP:
                row = await stack.finished(number, "stopped")
                row = await until(lambda: _still(stack, number))
                assert row["cancelled"] > 0
            else:
                await until(lambda: _still(stack, number))
                assert received(index).total() - answered <= CONNECTIONS
                await stack.control(routing.RESUME, number)
                row = await stack.finished(number)
        got = received(index)
    assert before <= answered
    assert row["unknown"] == 0
    assert row["sent"] == got.total() == len(got)
    if command == routing.STOP:
        assert got.total() - answered <= CONNECTIONS, "only what was handed over before"


async def _still(stack: Stack, number: int) -> dict[str, Any] | None:
    row = await stack.deployment(number)
    return row if row["sending"] == 0 else None
