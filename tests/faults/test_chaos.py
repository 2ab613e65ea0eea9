"""A short selection of seeds; `make chaos` runs any other for minutes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults import chaos
from worker.crashing import POINTS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.stack import Stack

SECONDS = 7
"""Of faults; a run has its start and its end besides."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2])
async def test_random_faults_break_no_law(stack: Stack, tmp_path: Path, seed: int) -> None:
    outcome = await chaos.run(stack, tmp_path, seed, SECONDS)
    assert outcome.findings.violations == [], outcome.table()
    assert outcome.findings.mails > 0
    assert outcome.recovered


def test_a_seed_names_its_faults() -> None:
    assert chaos.plan(7, 100) == chaos.plan(7, 100) != chaos.plan(8, 100)
    assert {fault.kind for fault in chaos.plan(7, 500)} == chaos.WEIGHTS.keys()
    assert {
        point.partition(":")[0] for fault in chaos.plan(7, 500) for point in fault.points
    } <= POINTS.keys()
