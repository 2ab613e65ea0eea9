"""Which recipients a content is tried out with."""

from __future__ import annotations

import json

from worker.domain.audience import Cause, Target
from worker.domain.sample import Sample

MOST = 20 + 200 + 20


def target(line: int, value: str = "x", cause: Cause | None = None) -> Target:
    variables = None if cause else json.dumps({"v": value})
    return Target(line, f"p{line}@example.org", f"p{line}@example.org", None, variables, cause, None, None)


def lines(count: int, values: dict[int, str] | None = None) -> list[int]:
    sample = Sample()
    rows = [target(line, (values or {}).get(line, "x")) for line in range(2, count + 2)]
    assert list(sample.pick(iter(rows))) == rows
    return [line for line, _ in sample.recipients()]


def test_of_a_small_file_everybody_is_picked() -> None:
    assert lines(0) == []
    assert lines(1) == [2]
    assert lines(200) == list(range(2, 202))


def test_of_a_large_file_the_first_and_some_from_all_over_it() -> None:
    for count in (1_000, 4_321, 50_000):
        picked = lines(count)
        assert picked[:20] == list(range(2, 22))
        assert 100 <= len(picked) <= MOST
        apart = max(after - before for before, after in zip(picked, [*picked[1:], count + 2], strict=True))
        assert apart <= count / 100


def test_the_longest_are_picked_wherever_they_stand() -> None:
    long = {line: "x" * length for line, length in ((31_111, 50), (31_112, 900), (49_999, 70))}
    assert long.keys() <= set(lines(50_000, long))


def test_of_many_long_ones_the_longest_win() -> None:
    growing = {line: "x" * line for line in range(2, 3_002)}
    assert set(range(2_982, 3_002)) <= set(lines(3_000, growing))
    assert len(lines(3_000, growing)) <= MOST


def test_who_is_left_out_is_not_picked() -> None:
    sample = Sample()
    rows = [target(2, cause=Cause.INVALID), target(3, "y"), target(4, cause=Cause.EMPTY)]
    assert list(sample.pick(iter(rows))) == rows
    assert list(sample.recipients()) == [(3, {"v": "y", "address": "p3@example.org"})]
