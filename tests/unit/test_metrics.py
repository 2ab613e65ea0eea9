"""A metric is there before its first event, and once."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry

from contracts import routing
from contracts.events import Criterion
from worker.amqp.dead import DeadQueue
from worker.db.retrying import Idempotent, Retrier
from worker.telemetry.metrics import Metrics


def samples(registry: CollectorRegistry) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for family in registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def test_what_is_counted_by_a_label_is_there_at_0_before_it_happens() -> None:
    registry = CollectorRegistry()
    metrics = Metrics.create(registry, ["email", "sms"])
    DeadQueue(None, routing.Names(), ["email", "sms"], metrics)  # type: ignore[arg-type]
    found = samples(registry)
    assert found["sendoff_sends_claimed_total"] == [{"channel": "email"}, {"channel": "sms"}]
    assert len(found["sendoff_results_published_total"]) == 6
    assert {"criterion": Criterion.FAILED.value} in found["sendoff_alerts_total"]
    assert {"reason": "lost"} in found["sendoff_pages_reopened_total"]
    refused = {"command": routing.CONFIRM, "status": "refused", "reason": "role_missing"}
    assert refused in found["sendoff_commands_total"]
    dead = [labels["routing_key"] for labels in found["sendoff_dead_lettered_total"]]
    assert {"other", "sms", routing.SENT, routing.CONFIRM} <= set(dead)
    assert all(s.value == 0 for f in registry.collect() for s in f.samples if s.name.endswith("_total"))


async def test_a_work_is_counted_from_its_beginning_and_not_from_its_first_failure() -> None:
    registry = CollectorRegistry()
    busy = Metrics.create(registry).database_busy

    async def done() -> int:
        return 1

    retrier = Retrier(asyncio.Event(), lambda doing: busy.labels(doing).inc)
    assert await retrier.until_done(Idempotent(done), "counting sheep") == 1
    assert samples(registry)["sendoff_database_busy_total"] == [{"doing": "counting sheep"}]


def test_nobody_gets_a_series_for_when_a_counter_was_made() -> None:
    registry = CollectorRegistry()
    Metrics.create(registry, ["email"])
    assert [name for name in samples(registry) if name.endswith("_created")] == []
