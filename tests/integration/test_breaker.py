"""The circuit breaker: it pauses a delivery once, at its limit, and a resume overrides it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from contracts import routing
from contracts.results import BounceKind, BounceReason, Fault
from tests.support.channels import Counting
from tests.support.deliveries import confirmed
from tests.support.events import FINISHED, PAUSED, RESUMED, heard, listener
from tests.support.results import bounced, drained, result
from tests.support.stack import until
from worker.domain.verdicts import Bounced

if TYPE_CHECKING:
    from contracts.sends import Send
    from tests.support.stack import Stack
    from worker.channels.protocol import HandOver
    from worker.domain.verdicts import Verdict

REASON = "The circuit breaker paused it: hard bounces 10.89 % of 101 attempted, limit 10 %."


class Bouncing(Counting):
    """Every address is wrong."""

    async def send(self, compiled: None, send: Send, hand_over: HandOver) -> Verdict:
        await super().send(compiled, send, hand_over)
        return Bounced(BounceKind.HARD, BounceReason.USER_UNKNOWN, "5.1.1", "550 no", Fault.RECIPIENT)


async def publish(stack: Stack, key: str, results: list[dict[str, Any]]) -> None:
    await stack.publish(routing.RESULTS, key, json.dumps(results).encode())
    await until(lambda: drained(stack))


async def pauses(stack: Stack) -> list[dict[str, Any]]:
    return await stack.rows(
        "SELECT operator, reason, figures::text FROM sendoff.delivery_transition WHERE to_state = 'paused'"
    )


async def attempted(stack: Stack, number: int, count: int) -> dict[str, Any] | None:
    row = await stack.deployment(number)
    return row if row["sent"] + row["bounced"] + row["errors"] == count else None


async def test_the_breaker_trips_above_the_limit_and_not_at_it(stack: Stack) -> None:
    queue = await listener(stack, PAUSED)
    number = await confirmed(stack, 200)
    async with stack.running("results", "events"):
        await publish(stack, "bounce", [bounced(number, r) for r in range(1, 11)])
        await publish(stack, "sent", [result(number, r) for r in range(11, 101)])
        row = await until(lambda: attempted(stack, number, 100))
        assert (row["state"], row["bounce_error_pct"]) == ("in_progress", 10)
        await publish(stack, "bounce", [bounced(number, 101)])
        await stack.finished(number, "paused")
        (event,) = await heard(queue, 1)
    (pause,) = await pauses(stack)
    assert (pause["operator"], pause["reason"], event.reason, event.operator) == (None, REASON, REASON, None)
    assert event.figures is not None
    assert event.figures.model_dump() == json.loads(pause["figures"]) == {
        "attempted": 101,
        "bounced_hard": 11,
        "errors": 0,
        "hard_bounce_pct": 10.89,
        "error_pct": 0,
        "hard_bounce_limit_pct": 10,
        "error_limit_pct": 20,
        "refused": 0,
        "refused_pct": 0,
        "refused_limit_pct": 10,
    }  # fmt: skip
    assert (await stack.rows("SELECT state_reason FROM sendoff.delivery"))[0]["state_reason"] == REASON


async def test_the_breaker_trips_when_what_went_well_makes_the_minimum_full(stack: Stack) -> None:
    number = await confirmed(stack, 200)
    async with stack.running("results"):
        errors = [result(number, r, reason="x", retryable=False) for r in range(1, 51)]
        await publish(stack, "error", errors)
        await until(lambda: attempted(stack, number, 50))
        assert (await stack.deployment(number))["state"] == "in_progress"
        await publish(stack, "sent", [result(number, r) for r in range(51, 101)])
        await stack.finished(number, "paused")
    (pause,) = await pauses(stack)
    assert "errors 50 % of 100 attempted, limit 20 %" in pause["reason"]


@pytest.mark.parametrize("off", [{"breaker_minimum": 0}, {"breaker_hard_bounce_pct": 0}])
async def test_limits_of_0_turn_the_breaker_off(stack: Stack, off: dict[str, int]) -> None:
    number = await stack.prepare(200)
    async with stack.running(channel=Bouncing(), tick=0.05, **off):
        await stack.confirm(number)
        assert (await stack.finished(number))["bounced_hard"] == 200


async def test_a_deliverys_own_breaker_limits_stand_before_the_settings(stack: Stack) -> None:
    own = "[limits]\nbreaker_minimum = 4\nhard_bounce_pct = 50\nerror_pct = 0"
    number = await stack.prepare(20, extra=own)
    async with stack.running("confirm", "results", breaker_minimum=1, breaker_error_pct=1):
        await stack.confirm(number)
        errors = [result(number, r, reason="x", retryable=False) for r in range(1, 4)]
        await publish(stack, "error", errors)
        await publish(stack, "bounce", [bounced(number, r) for r in range(4, 7)])
        row = await until(lambda: attempted(stack, number, 6))
        assert row["state"] == "in_progress"
        await publish(stack, "bounce", [bounced(number, 7)])
        await stack.finished(number, "paused")
    (pause,) = await pauses(stack)
    assert "hard bounces 57.14 % of 7 attempted, limit 50 %." in pause["reason"]


async def test_two_recorders_at_once_trip_the_breaker_once(stack: Stack) -> None:
    number = await confirmed(stack, 2_000)
    for recipient in range(1, 301):
        await stack.publish(routing.RESULTS, "bounce", bounced(number, recipient))
    async with stack.running("results", result_batch=1), stack.running("results", result_batch=1):
        await stack.finished(number, "paused")
        await until(lambda: attempted(stack, number, 300))
        await until(lambda: drained(stack))
    (pause,) = await pauses(stack)
    # Exactly at the minimum, but for the one that the other recorder had in hand.
    assert json.loads(pause["figures"])["attempted"] in {100, 101}


async def test_nothing_is_claimed_after_the_breaker_tripped_until_a_resume_overrides_it(stack: Stack) -> None:
    number = await stack.prepare(3_000)
    queue = await listener(stack)
    channel = Bouncing()
    # So many hard bounces alert as well; that is not looked for here.
    quiet: dict[str, Any] = {"tick": 0.05, "alert_interval": 60}
    async with stack.running(channel=channel, send_batch=20, page_size=100, **quiet):
        async with stack.running("results", "send", channel=channel, send_batch=20):
            await stack.confirm(number)
            await stack.finished(number, "paused")
            claimed = await stack.rows("SELECT count(*) AS n FROM sendoff.outcome")
            await until(lambda: _drained_and_quiet(stack, number))
            assert await stack.rows("SELECT count(*) AS n FROM sendoff.outcome") == claimed
            assert 100 <= channel.tries.total() == claimed[0]["n"] < 3_000
            assert (await stack.control(routing.RESUME, number))["state"] == "in_progress"
            row = await stack.finished(number)
        events = await heard(queue, 5)
    assert row["bounced_hard"] == 3_000
    assert set(channel.tries.values()) == {1}
    assert len(await pauses(stack)) == 1
    assert [e.event.value for e in events[2:]] == [PAUSED, RESUMED, FINISHED]


async def _drained_and_quiet(stack: Stack, number: int) -> bool:
    row = await stack.deployment(number)
    return not row["sending"] and not await stack.depth(routing.send_queue("null"))
