"""Worker processes are killed in the middle of a delivery over real SMTP: nobody is lost, nobody gets two."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import TYPE_CHECKING

import pytest

from contracts import routing
from tests.support.asking import Asker, attempts
from tests.support.processes import received, sink, worker
from tests.support.stack import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.stack import Stack

RECIPIENTS = 1_500


@pytest.mark.parametrize(
    "victims", [("send",), ("fanout",), ("results",), ()], ids=["send", "fanout", "results", "all"]
)
async def test_a_killed_worker_loses_nobody_and_doubles_nobody(
    stack: Stack, tmp_path: Path, victims: tuple[str, ...]
) -> None:
    number = await stack.prepare(RECIPIENTS, "email")
    rest = [s for s in ("confirm", "fanout", "send", "results", "schedule") if victims and s not in victims]
    with sink(tmp_path / "sink") as (smtp_url, index):
        env = {
            "SMTP_URL": smtp_url,
            "CLAIM_LEASE": 3,
            "RESULT_LEASE": 3,
            "PAGE_LOOK_AFTER": 1,
            "PAGE_LEASE": 3,
        }
        env |= {"TICK": 0.2}
        with (
            worker(stack.settings, *victims, **env) as victim,
            worker(stack.settings, *rest or ["stats"], **env),
        ):
            await stack.confirm(number)
            await until(lambda: _received(index, RECIPIENTS // 4))
            victim.send_signal(signal.SIGKILL)
        assert (await stack.deployment(number))["state"] == "in_progress"
        with worker(stack.settings, **env):
            row = await stack.finished(number, seconds=60)
        got = received(index)
    log = await stack.rows("SELECT address, status FROM sendoff.sending_log")
    status = {r["address"]: r["status"] for r in log}
    assert row["sent"] + row["unknown"] == RECIPIENTS
    assert max(got.values()) == 1
    assert {a for a, s in status.items() if s == "sent"} <= set(got)
    assert set(got) <= {a for a, s in status.items() if s in {"sent", "unknown"}}
    if victims and victims != ("send",):
        assert row["unknown"] == 0


async def test_a_terminated_worker_leaves_nothing_unknown(stack: Stack, tmp_path: Path) -> None:
    number = await stack.prepare(RECIPIENTS, "email")
    with sink(tmp_path / "sink") as (smtp_url, index):
        env = {"SMTP_URL": smtp_url, "TICK": 0.2}
        with worker(stack.settings, **env) as first:
            await stack.confirm(number)
            await until(lambda: _received(index, RECIPIENTS // 4))
            first.terminate()
            assert first.wait(timeout=30) == 0
        assert (await stack.deployment(number))["sending"] <= len(received(index))
        with worker(stack.settings, **env):
            row = await stack.finished(number)
        got = received(index)
    assert row["sent"] == RECIPIENTS
    assert got.total() == RECIPIENTS
    assert max(got.values()) == 1


async def test_a_killed_grantor_of_claims_grants_nobody_twice_and_loses_no_grant(stack: Stack) -> None:
    number = await stack.prepare(RECIPIENTS)
    async with stack.running("confirm", "schedule"):
        await stack.confirm(number)
        await stack.finished(number, "in_progress")
    asker = await Asker.open(stack, "null")
    names = [
        await asker.publish(number, attempts(range(first, first + 10))) for first in range(1, RECIPIENTS, 10)
    ]
    granted: dict[str, list[int]] = {}
    async with asyncio.timeout(90), asker.answers.iterator(no_ack=True) as messages:
        while len(granted) < len(names):
            enough = min(len(granted) + 40, len(names))
            with worker(stack.settings, "claims") as victim:
                while len(granted) < enough:
                    message = await anext(messages)
                    recipients = [g["recipient"] for g in json.loads(message.body)["granted"]]
                    assert granted.setdefault(str(message.correlation_id), recipients) == recipients
                victim.send_signal(signal.SIGKILL)
    assert sorted(r for some in granted.values() for r in some) == list(range(1, RECIPIENTS + 1))
    assert (await stack.deployment(number))["sending"] == RECIPIENTS


async def test_a_killed_recorder_of_tracking_counts_everybody_once(stack: Stack) -> None:
    number = await stack.prepare(RECIPIENTS)
    async with stack.running("confirm"):
        await stack.confirm(number)
    event = {"delivery_id": number, "kind": "open", "at": "2026-11-23T10:00:00Z"}
    events = [event | {"event_id": f"e{r}", "recipient": r} for r in range(1, RECIPIENTS + 1)]
    for start in range(0, RECIPIENTS, 5):
        await stack.publish(routing.TRACKING, routing.OPEN, json.dumps(events[start : start + 5]).encode())

    async def opened(least: int) -> int | None:
        count: int = (await stack.deployment(number))["opened"]
        return count if count >= least else None

    with worker(stack.settings, "tracking", TRACKING_BATCH=2, TRACKING_BATCH_AGE=0) as victim:
        assert await until(lambda: opened(RECIPIENTS // 5)) < RECIPIENTS
        victim.send_signal(signal.SIGKILL)
    async with stack.running("tracking"):
        await until(lambda: opened(RECIPIENTS))
    assert await opened(RECIPIENTS) == RECIPIENTS
    (log,) = await stack.rows(
        "SELECT count(*), count(DISTINCT recipient) AS people FROM sendoff.tracking_log"
    )
    assert tuple(log.values()) == (RECIPIENTS, RECIPIENTS)


async def _received(index: Path, count: int) -> bool:
    return received(index).total() >= count
