"""deploy/prometheus: Prometheus's own tool finds the rules right; each has its test and its section."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from dev.unpacking import program
from worker.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "prometheus"
GROUPS = yaml.safe_load((DEPLOY / "rules.yml").read_text())["groups"]
RULES: list[dict[str, Any]] = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
CASES = yaml.safe_load((DEPLOY / "rules.test.yml").read_text())["tests"]


@pytest.mark.parametrize(
    "call",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "rules.yml"),
        ("test", "rules", "rules.test.yml"),
    ],
)
def test_the_tool_of_prometheus_finds_nothing_wrong(call: tuple[str, ...]) -> None:
    promtool = program("prometheus", "usr/bin/promtool")
    done = subprocess.run(
        [str(promtool), *call], cwd=DEPLOY, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_is_tested_to_fire_and_to_be_silent_and_says_what_to_do(name: str) -> None:
    tested = [test for case in CASES for test in case["alert_rule_test"] if test["alertname"] == name]
    assert {bool(test.get("exp_alerts")) for test in tested} == {True, False}
    assert ALERTS[name]["labels"]["severity"] in ("page", "ticket")
    assert ALERTS[name]["annotations"]["summary"]
    assert ALERTS[name]["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"


def test_the_runbook_has_a_section_for_each_alert_and_for_nothing_else() -> None:
    assert re.findall(r"^## (\w+)$", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE) == list(ALERTS)


def test_the_rules_ask_for_metrics_that_there_are() -> None:
    registry = CollectorRegistry()
    Metrics.create(registry, ["email"])
    known = {"up", "rabbitmq_detailed_queue_messages_ready", "rabbitmq_detailed_queue_consumers"}
    for family in registry.collect():
        known |= {family.name + suffix for suffix in ("", "_total", "_bucket", "_count", "_sum")}
    for rule in RULES:
        asked = set(re.findall(r"\b(?:sendoff|rabbitmq)_\w+|\bup\b", rule["expr"]))
        assert asked
        assert asked <= known, rule


def test_where_a_missing_metric_would_silence_a_rule_another_one_says_so() -> None:
    """Counters are there from the start of each process, and gauges of each process while one is up."""
    watched = {name for rule in RULES for name in re.findall(r"absent\((\w+)", rule["expr"])}
    every_process = {"sendoff_broker_connected", "sendoff_database_connections", "sendoff_build_info"}
    for name, rule in ALERTS.items():
        for metric in set(re.findall(r"\b(?:sendoff|rabbitmq)_\w+|\bup\b", rule["expr"])):
            there = metric in watched or metric.removesuffix("_most") in every_process
            from_the_start = metric.endswith(("_total", "_bucket"))
            # Measured by a duty, whose absence is told; the other family of the same scrape.
            beside = metric in (
                "sendoff_oldest_due_page_seconds",
                "rabbitmq_detailed_queue_messages_ready",
                "sendoff_tracker_spool_bytes",  # a tracker that does not run keeps nothing
            )
            assert there or from_the_start or beside, (name, metric)
