"""`make bench` on tiny sizes: its parts measure what they say, and its tables are filled."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.bench import plan
from tests.bench.__main__ import measure
from tests.bench.installation import Installation
from tests.bench.machine import Case, CaseFailed, Measured
from tests.bench.summary import sheets

if TYPE_CHECKING:
    import pytest

    from worker.settings import Settings

SIZES = plan.Sizes(
    rounds=1,
    null=500,
    email=1,
    smtp=1,
    documented=1,
    tuned=1,
    messages=2_000,
    rows=500,
    freshness=1,
    alone=1,
    beside=1,
    clicks=1_000,
    growth=(),
)


async def test_parts_are_measured_and_shown(
    server_settings: Settings, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENDOFF_QUEUE_PREFIX", prefix)
    async with Installation.open() as installation:
        assert installation.settings.queue_prefix == prefix
        assert installation.settings.amqp_url == server_settings.amqp_url
        cases, notes = plan.cases(installation, ("ceilings", "null"), SIZES)
        results, faults = await measure(cases)
    assert (notes, faults) == ([], [])
    assert set(results) == {case.name for case in cases}
    (run,) = results["Sendoff, null, 500"]
    assert run.count == 500
    assert set(run.cpu) >= {"the rest", "fanout", "send", "results"}
    assert run.rate > 0
    assert min(run.peak.values()) > 10  # MiB: a Python process
    shown = "\n".join(sheet.markdown() for sheet in sheets(cases, results, everything=True))
    for case in cases:
        assert re.search(rf"^\| {re.escape(case.name)} \|", shown, re.MULTILINE), shown
    assert "| a million recipients | ≤ 60.0 s | not measured |" in shown


async def test_a_part_that_fails_is_told_and_the_rest_goes_on() -> None:
    tried: list[str] = []

    async def fail() -> Measured:
        tried.append("bad")
        raise CaseFailed("3 of 4 recipients have a row.")

    async def break_off() -> Measured:
        raise ConnectionResetError("gone")

    async def work() -> Measured:
        tried.append("good")
        return Measured(10, 2.0, {"all": 1.0})

    results, faults = await measure(
        [Case("peers", "bad", fail, 3), Case("null", "good", work, 2), Case("bare", "worse", break_off, 1)]
    )
    assert faults == ["bad: 3 of 4 recipients have a row.", "worse: ConnectionResetError: gone"]
    assert tried == ["bad", "good", "good"]  # no second try of what failed
    assert [m.rate for m in results["good"]] == [5.0, 5.0]
    assert "bad" not in results
