"""deploy/grafana: after a real run, every panel finds something in a real database or a real Prometheus."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
import yaml

from contracts import routing
from tests.support.database import change
from tests.support.prometheus import DEPLOY, scraping
from tests.support.results import bounced
from tests.support.roles import roles
from tests.support.stack import until
from tests.support.tracking import SCANNER, event, publish, recorded
from worker.web.health import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.prometheus import Prometheus
    from tests.support.stack import Stack

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"
DASHBOARDS = {file.stem: json.loads(file.read_text()) for file in (GRAFANA / "dashboards").glob("*.json")}
SOURCES = yaml.safe_load((GRAFANA / "provisioning/datasources/sendoff.yaml").read_text())["datasources"]
WAVES = '[[waves]]\nshare = "rest"\n'


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def questions(key: str) -> Iterator[tuple[str, str]]:
    """What panels ask in SQL (`rawSql`) or in PromQL (`expr`), by where they stand."""
    for name, board in DASHBOARDS.items():
        for panel in panels(board):
            for target in panel["targets"]:
                if key in target:
                    yield f"{name}: {panel['title']} {target['refId']}", target[key]


def as_grafana(question: str, delivery: int) -> str:
    """Fills in what Grafana fills in: the variable of the dashboard, and the time that it shows."""
    filled = question.replace("${delivery:sqlstring}", f"'{delivery}'")
    shown = r"\1 BETWEEN '2000-01-01T00:00:00Z' AND '2100-01-01T00:00:00Z'"
    filled = re.sub(r"\$__timeFilter\((\w+)\)", shown, filled)
    filled = filled.replace("$__rate_interval", "1m").replace("$__range", "1h")
    assert "$" not in filled, filled
    return filled


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_is_whole(name: str) -> None:
    board = DASHBOARDS[name]
    known = {source["uid"]: source["type"] for source in SOURCES}
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels(board):
        assert panel["description"], panel["title"]
        for target in panel["targets"]:
            assert known[target["datasource"]["uid"]] == target["datasource"]["type"]
            assert target["datasource"] == panel["datasource"]
    for one, other in itertools.combinations([panel["gridPos"] for panel in board["panels"]], 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart or above, (one, other)
        assert one["x"] + one["w"] <= 24


def test_no_panel_shows_whom_a_message_went_to() -> None:
    for where, question in questions("rawSql"):
        assert not re.search(r"\b(address|profile_id|reply|user_agent|provider_id)\b|SELECT \*", question), (
            where
        )


def test_links_lead_to_dashboards_that_are_there() -> None:
    known = {board["uid"] for board in DASHBOARDS.values()}
    linked = re.findall(r"/d/([\w-]+)", json.dumps(list(DASHBOARDS.values())))
    assert linked
    assert set(linked) <= known


async def lived_through(stack: Stack) -> int:
    """Runs a delivery to which everything happened that a panel shows, beside a ready one."""
    addresses = [f"user{i}@example.org,p{i}" for i in range(1, 41)]
    number = await stack.prepare([*addresses, "nobody,p0"], columns="address,profile_id", extra=WAVES)
    await stack.prepare(3)
    mail = await stack.prepare(5, channel="email")
    await change(stack, "UPDATE sendoff.alert_threshold SET minimum = 1 WHERE minimum IS NOT NULL")
    for each in (number, mail):
        assert (await stack.confirm(each))["status"] == "accepted"
        await stack.finished(each)
    for recipient in (1, 2, 3):
        await stack.publish(routing.RESULTS, routing.BOUNCE, bounced(number, recipient))
    await publish(
        stack,
        event(number, 4, "open", "e1"),
        event(number, 5, "open", "e2", user_agent=SCANNER),
        event(number, 6, "click", "e3", url="https://example.org/"),
        event(number, 7, "optout", "e4"),
        event(number, 4, "open", "e1"),
    )
    await recorded(stack, 4)
    await stack.publish(routing.RESULTS, routing.SENT, b"nonsense")

    async def told() -> bool:
        rows = await stack.rows("SELECT FROM sendoff.alert WHERE delivery_id = $1", number)
        return bool(rows) and (await stack.deployment(number))["bounced"] == 3

    await until(told)
    return number


async def read_all(url: str, delivery: int) -> None:
    """Asks every question in SQL as the role of dashboards."""
    reader = await asyncpg.connect(url, timeout=20)
    try:
        for where, question in questions("rawSql"):
            rows = await reader.fetch(as_grafana(question, delivery))
            assert rows, f"{where} shows nothing"
            shown = [name for name in rows[0].keys() if name != "time"]  # noqa: SIM118 - a record is a tuple
            assert any(row[name] is not None for row in rows for name in shown), f"{where} shows nothing"
        (variable,) = DASHBOARDS["delivery"]["templating"]["list"]
        found = await reader.fetch(variable["query"])
        assert {row["__value"] for row in found} == {"1", "2", "3"}
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await reader.fetch("SELECT FROM sendoff.recipient")
    finally:
        await reader.close()


async def ask_all(prometheus: Prometheus) -> None:
    """Asks every question in PromQL until each has a figure."""
    left = {where: as_grafana(expression, 0) for where, expression in questions("expr")}

    async def answered() -> bool:
        for where, expression in list(left.items()):
            if any(not math.isnan(one["value"]) for one in await prometheus.ask(expression)):
                del left[where]
        return not left

    try:
        await until(answered)
    except TimeoutError:
        raise AssertionError(f"{sorted(left)} show nothing") from None


async def test_every_panel_shows_something_after_a_real_run(stack: Stack, tmp_path: Path) -> None:
    async with (
        roles(stack.settings.database_url) as installed,
        stack.running(tick=0.1, alert_interval=0.2) as worker,
        serving("127.0.0.1", 0, worker.registry, {}) as port,
        scraping(
            tmp_path,
            {"sendoff": f"127.0.0.1:{port}", "rabbitmq": os.environ["SENDOFF_DEV_BROKER_METRICS"]},
        ) as prometheus,
    ):
        await until(lambda: prometheus.ask('up{job="sendoff"} == 1'))
        number = await lived_through(stack)
        await read_all(installed.url("reader"), number)
        await ask_all(prometheus)

        async def alerted() -> dict[str, str] | None:
            states = await prometheus.alerts()
            return (
                states if states["SendoffDeadLetters"] == states["SendoffDeliveryAlert"] == "firing" else None
            )

        states = await until(alerted)
        number = re.search(r"\(duty\).*< (\d+)", (DEPLOY / "rules.yml").read_text())
        assert number
        (duties,) = await prometheus.ask(
            "count(count by (duty) (sendoff_duty_last_success_timestamp_seconds))"
        )
        assert duties["value"] == int(number[1]), "SendoffNoSchedule counts the duties of the scheduler"
        silent = [
            "SendoffDown",
            "SendoffNoSender",
            "SendoffNoFanout",
            "SendoffNoSchedule",
            "SendoffQueuesUnseen",
        ]
        assert [states[name] for name in silent] == ["inactive"] * len(silent)
