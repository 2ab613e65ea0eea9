"""Health and metrics: what the probes say when a part is gone, and that the counters move."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.error
import urllib.request
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from contracts import routing
from tests.support.database import read_only
from tests.support.proxy import CutProxy
from tests.support.stack import until
from worker.web.health import serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.processes import Sendoff
    from tests.support.stack import Stack
    from worker.bootstrap import Worker


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=15) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


class Probed:
    def __init__(self, of: Worker, port: int, stop: asyncio.Event) -> None:
        self.of = of
        self.port = port
        self.stop = stop

    async def ready(self) -> tuple[int, dict[str, str]]:
        status, body = await asyncio.to_thread(get, self.port, "/health/ready")
        return status, json.loads(body)["parts"]

    async def until(self, status: int) -> dict[str, str]:
        async def reached() -> dict[str, str] | None:
            found, parts = await self.ready()
            return parts if found == status else None

        parts: dict[str, str] = await until(reached)
        return parts


@asynccontextmanager
async def probed(stack: Stack, *services: str, **changes: Any) -> AsyncIterator[Probed]:
    stop = asyncio.Event()
    async with (
        stack.running(*services, **changes) as worker,
        serving("127.0.0.1", 0, worker.registry, worker.probes(stop)) as port,
    ):
        probed = Probed(worker, port, stop)
        await probed.until(200)
        yield probed


async def test_a_process_that_can_work_is_ready_until_it_stops(stack: Stack) -> None:
    async with probed(stack) as worker:
        assert await worker.ready() == (
            200,
            dict.fromkeys(("process", "broker", "topology", "consumers", "channels", "database"), "ok"),
        )
        worker.stop.set()
        status, parts = await worker.ready()
        assert status == 503
        assert parts["process"] == "The process is stopping."


async def test_a_lost_broker_is_told_and_comes_back(stack: Stack) -> None:
    queue = stack.names.queue(routing.STATS_QUEUE)
    async with (
        CutProxy(stack.settings.amqp_url).running() as proxy,
        probed(stack, "send", "stats", amqp_url=proxy.url) as worker,
    ):
        proxy.cut()

        async def both_told() -> dict[str, str] | None:
            # Each connection notices by itself, one after the other.
            parts: dict[str, str] = await worker.until(503)
            return parts if parts["broker"] != "ok" and queue in parts["consumers"] else None

        parts = await until(both_told)
        assert parts["broker"] == "The connection to the broker is lost."
        assert parts["database"] == "ok"
        proxy.mend()
        await worker.until(200)


async def test_a_database_that_only_reads_is_told_and_comes_back(stack: Stack) -> None:
    async with probed(stack, "stats") as worker:
        async with read_only(stack):

            async def told() -> bool:
                return "read-only transaction" in (await worker.ready())[1]["database"]

            await until(told)
        await worker.until(200)


async def test_a_lost_database_is_told_and_comes_back(stack: Stack) -> None:
    async with (
        CutProxy(stack.settings.database_url).running() as proxy,
        probed(stack, "stats", database_url=proxy.url) as worker,
    ):
        proxy.cut()
        parts = await worker.until(503)
        assert "atabase is out of reach" in parts["database"]
        assert parts["broker"] == parts["consumers"] == "ok"
        _, metrics = await asyncio.to_thread(get, worker.port, "/metrics")
        assert "sendoff_database_failures_total 0.0" not in metrics
        proxy.mend()
        await worker.until(200)


async def test_a_consumer_that_the_broker_forgot_is_named(stack: Stack) -> None:
    queue = stack.names.queue(routing.STATS_QUEUE)
    async with probed(stack, "stats", "confirm") as worker:
        await stack.channel.queue_delete(queue)
        assert (await worker.until(503))["consumers"] == f"The broker does not deliver from: {queue}."


async def test_a_schema_that_was_upgraded_under_the_process_is_told(stack: Stack) -> None:
    async with probed(stack, "stats") as worker:
        async with stack.db.session() as session:
            statement = "INSERT INTO sendoff.migration (number, name, works_from) VALUES (999, 'x', 999)"
            await session.connection.execute(statement)
        assert "upgrade Sendoff" in (await worker.until(503))["database"]


async def test_a_blocked_loop_is_not_alive_and_still_shows_its_metrics() -> None:
    answers: dict[str, tuple[int, str]] = {}

    def ask(port: int) -> None:
        answers["live"] = get(port, "/health/live")
        answers["metrics"] = get(port, "/metrics")

    async with serving("127.0.0.1", 0, CollectorRegistry(), {}) as port:
        alive, _ = await asyncio.to_thread(get, port, "/health/live")
        asking = threading.Thread(target=ask, args=(port,))
        asking.start()
        asking.join(20)  # this blocks the event loop
    assert alive == 200
    assert answers["live"][0] == 503
    assert "has not turned" in answers["live"][1]
    assert answers["metrics"][0] == 200


async def test_a_path_that_is_not_there_names_those_that_are() -> None:
    async with serving("127.0.0.1", 0, CollectorRegistry(), {}) as port:
        status, body = await asyncio.to_thread(get, port, "/healthz")
    assert status == 404
    assert "/health/live" in json.loads(body)["paths"]


async def test_the_counters_follow_a_delivery(stack: Stack) -> None:
    number = await stack.prepare(30)
    async with stack.running() as worker:
        await stack.confirm(number)
        await stack.finished(number)
        await stack.confirm(number)
        await stack.publish(routing.RESULTS, routing.SENT, b"rubbish")

        def value(name: str, **labels: str) -> float:
            return worker.registry.get_sample_value(f"sendoff_{name}", labels) or 0.0

        async def buried() -> bool:
            return value("dead_lettered_total", routing_key="sent") == 1

        await until(buried)
        accepted = {"command": "delivery.confirm", "status": "accepted", "reason": ""}
        assert value("commands_total", **accepted) == 1
        refused = {"command": "delivery.confirm", "status": "refused", "reason": "already_confirmed"}
        assert value("commands_total", **refused) == 1
        assert value("pages_published_total") == 1
        assert value("sends_published_total", channel="null") == 30
        assert value("sends_claimed_total", channel="null") == 30
        assert value("sends_refused_total", channel="null") == 0
        assert value("results_published_total", channel="null", kind="sent") == 30
        assert value("results_recorded_total") == value("outcomes_moved_total") == 30
        assert value("claim_batch_recipients_sum") == value("record_batch_recipients_sum") == 30
        assert value("claim_duration_seconds_count") == value("claim_batch_recipients_count") > 0
        assert value("broker_connected") == 1
        assert value("stats_drift_repaired_total") == value("database_failures_total") == 0


async def test_a_port_that_is_taken_stops_the_start_with_a_sentence(stack: Stack, sendoff: Sendoff) -> None:
    port = stack.settings.amqp_url.rsplit(":", 1)[1].strip("/")
    ran = await asyncio.to_thread(sendoff, "run", "stats", env={"SENDOFF_HTTP_PORT": port})
    assert ran.returncode == 2
    assert "SENDOFF_HTTP_PORT" in ran.stderr.splitlines()[-1]
    assert "in use" in ran.stderr
