"""What the metrics say during a run is what the database and the broker say."""

from __future__ import annotations

import asyncio
import math
import urllib.request
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

from contracts import routing
from tests.support.stack import until
from tests.support.tracking import event, publish, recorded
from worker.web.health import serving

if TYPE_CHECKING:
    from tests.support.stack import Stack
    from worker.bootstrap import Worker


class Shown:
    """The metrics of one process, read as Prometheus reads them."""

    def __init__(self, text: str) -> None:
        self._samples = [s for family in text_string_to_metric_families(text) for s in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        found = [
            sample.value
            for sample in self._samples
            if sample.name == f"sendoff_{name}" and labels.items() <= sample.labels.items()
        ]
        assert found, f"{name} {labels} is missing"
        return sum(found)

    def has(self, name: str, **labels: str) -> bool:
        return any(s.name == f"sendoff_{name}" and labels.items() <= s.labels.items() for s in self._samples)


async def shown(worker: Worker) -> Shown:
    async with serving("127.0.0.1", 0, worker.registry, {}) as port:
        address = f"http://127.0.0.1:{port}/metrics"
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(address, timeout=10).read().decode())
        return Shown(text)


async def one(stack: Stack, query: str, *args: Any) -> Any:
    (row,) = await stack.rows(query, *args)
    return next(iter(row.values()))


async def test_what_waits_is_shown_while_it_waits(stack: Stack) -> None:
    async with stack.running("confirm", "schedule", tick=0.05) as worker:
        number = await stack.prepare(7, channel="email")
        assert (await stack.confirm(number))["status"] == "accepted"

        async def waits() -> bool:
            found = await shown(worker)
            name = "oldest_due_page_seconds"
            return found.has(name, channel="email") and found(name, channel="email") > 0.2

        await until(waits)
        age = "SELECT extract(epoch FROM now() - min(due_at))::float8 FROM sendoff.delivery_page"
        before = await one(stack, age)
        seconds = (await shown(worker))("oldest_due_page_seconds", channel="email")
        assert abs(seconds - before) < 2
    async with stack.running("fanout", "schedule", tick=0.05) as worker:

        async def published() -> bool:
            found = await shown(worker)
            return found.has("send_queue_messages") and found("send_queue_messages", channel="email") == 7

        await until(published)
        assert await stack.depth(routing.send_queue("email")) == 7

        async def nothing_is_due() -> bool:
            found = await shown(worker)
            return not found.has("oldest_due_page_seconds") or found("oldest_due_page_seconds") == 0

        await until(nothing_is_due)
        found = await shown(worker)
        assert found("pages_published_total") == await one(
            stack, "SELECT count(*) FROM sendoff.delivery_page WHERE state <> 'open'"
        )
        assert found("sends_published_total", channel="email") == 7


async def test_what_was_done_is_counted_as_the_database_has_it(stack: Stack) -> None:
    async with stack.running(tick=0.05) as worker:
        mail, rehearsal = await stack.prepare(30, channel="email"), await stack.prepare(20)
        for number in (mail, rehearsal):
            assert (await stack.confirm(number))["status"] == "accepted"
            assert (await stack.confirm(number))["reason"] == "already_confirmed"
        for number in (mail, rehearsal):
            await stack.finished(number)
        await publish(stack, event(mail, 1, "open", "e1"), event(mail, 2, "click", "e2"))
        await recorded(stack, 2)

        async def told() -> bool:
            return not await one(stack, "SELECT count(*) FROM sendoff.event")

        await until(told)
        found = await shown(worker)
        attempts = "SELECT sum(attempt)::int FROM sendoff.sending_log WHERE delivery_id = $1"
        for channel, number in (("email", mail), ("null", rehearsal)):
            assert found("sends_claimed_total", channel=channel) == await one(stack, attempts, number)
            assert found("channel_up", channel=channel) == 1
            assert found("sends_in_flight", channel=channel) == 0
            assert (
                found("results_published_total", channel=channel, kind="sent")
                == (await stack.deployment(number))["sent"]
            )
        sent = await one(stack, "SELECT sum(sent)::int FROM sendoff.deployment")
        assert found("results_recorded_total") == found("outcomes_moved_total") == sent == 50
        for status, reason in (("accepted", ""), ("refused", "already_confirmed")):
            assert found("commands_total", status=status, reason=reason) == await one(
                stack,
                "SELECT count(*) FROM sendoff.command_log WHERE status = $1 AND coalesce(reason, '') = $2",
                status,
                reason,
            )
        assert found("tracking_recorded_total") == 2
        # Each delivery once; each mail once; each write once.
        assert found("delivery_start_seconds_count") == 2
        assert found("hand_over_duration_seconds_count") == 30
        assert found("record_lag_seconds_count") == found("record_duration_seconds_count") > 0
        assert found("tracking_lag_seconds_count") == found("tracking_duration_seconds_count") > 0
        # It began to send before it was finished, and recorded no sooner than it was handed over.
        longest = "SELECT sum(extract(epoch FROM finished_at - confirmed_at))::float8 FROM sendoff.delivery"
        assert 0 < found("delivery_start_seconds_sum") < await one(stack, longest)
        assert found("database_connections", state="busy") + found(
            "database_connections", state="idle"
        ) == await one(
            stack,
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'sendoff %:%'"
            " AND datname = current_database() AND query NOT LIKE 'LISTEN%'",
        )
        assert found("database_connections_most") == worker.settings.database_pool
        schema = await one(stack, "SELECT max(number)::text FROM sendoff.migration")
        assert found("build_info", schema=schema) == 1
        assert found("broker_connected") == 1
        assert not math.isnan(found("send_queue_messages", channel="email"))
        before = found("loop_lag_seconds_count")

        async def measured() -> bool:
            return (await shown(worker))("loop_lag_seconds_count") > before

        await until(measured)
        duties = (
            "start",
            "claims",
            "validity",
            "cancelled",
            "retries",
            "pages",
            "finish",
            "alerts",
            "waiting",
        )
        for duty in duties:
            assert found("duty_last_success_timestamp_seconds", duty=duty) > 0
