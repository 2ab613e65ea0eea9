"""docs/operations.md names every service, every metric and every warning, as they are in the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import yaml
from prometheus_client import CollectorRegistry

from worker.bootstrap import ON_REQUEST, SERVICES
from worker.bootstrap_intake import INTAKES
from worker.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs/operations.md").read_text()


def rows(heading: str) -> list[str]:
    """The rows of the first table under a heading, without the head."""
    section = DOC.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    table = section[section.index("|---") :].split("\n\n", 1)[0]
    return [line for line in table.splitlines() if line.startswith("| `")]


def metric_rows() -> list[str]:
    registry = CollectorRegistry()
    metrics = Metrics.create(registry)
    collectors = {m._name: m for m in vars_of(metrics)}  # noqa: SLF001 - the labels are nowhere else
    found = []
    for family in registry.collect():
        labels = ", ".join(f"`{label}`" for label in collectors[family.name]._labelnames)  # noqa: SLF001
        suffix = "_total" if family.type == "counter" else ""
        row = f"| `{family.name}{suffix}` | {family.type} | {labels or '–'} | {family.documentation} |"
        found.append(row)
    return found


def vars_of(metrics: Metrics) -> list[object]:
    return [getattr(metrics, name) for name in Metrics.__dataclass_fields__]


def warnings() -> set[str]:
    """The events that the code logs at a level above info."""
    found = set()
    for file in (ROOT / "worker").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("warning", "error", "exception", "critical")
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "log"
            ):
                constants = {n.value for n in ast.walk(node.args[0]) if isinstance(n, ast.Constant)}
                assert constants, f"{file}:{node.lineno}: an event is a constant"
                found |= {value for value in constants if isinstance(value, str)}
    return found


def test_the_services_are_all_there_and_each_can_be_scaled_by_itself() -> None:
    assert [row.split("`")[1] for row in rows("Services")] == list(SERVICES)
    composed = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
    run = [c["command"][1] for c in composed.values() if c.get("command", [""])[0] == "run"]
    assert run == [*SERVICES, "tracker", *INTAKES, *ON_REQUEST]


def test_the_metrics_are_all_there_with_their_labels_and_meaning() -> None:
    assert rows("Metrics") == metric_rows()


def test_every_warning_is_explained() -> None:
    explained = {event for row in rows("Warnings in the log") for event in re.findall(r"`([^`]+)`", row)}
    assert warnings() - explained == set()
