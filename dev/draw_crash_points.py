"""Writes the table of crash points into docs/guarantees.md, from the list that the code goes by.

`python -m dev.draw_crash_points` writes the table, `--check` says whether it is up to date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from worker.crashing import POINTS

PAGE = Path(__file__).parents[1] / "docs" / "guarantees.md"
_HEAD = "| point | durable | not yet |\n|---|---|---|\n"


def page(text: str) -> str:
    """Returns the page with the points of the code in the place of those that it has.

    Raises:
        ValueError: the page has no table of them.
    """
    rows = "".join(f"| `{name}` | {point.done} | {point.missing} |\n" for name, point in POINTS.items())
    place = re.compile(rf"{re.escape(_HEAD)}(?:\|.*\n)*")
    if len(place.findall(text)) != 1:
        raise ValueError(f"docs/{PAGE.name} has no table of crash points.")
    return place.sub(lambda _: _HEAD + rows, text)


def main() -> None:
    """Writes the page, or with `--check` exits 1 where it differs."""
    there = PAGE.read_text("utf-8")
    if "--check" not in sys.argv:
        PAGE.write_text(page(there), "utf-8")
    elif there != page(there):
        sys.exit(f"docs/{PAGE.name} differs from worker/crashing.py: run python -m dev.draw_crash_points")


if __name__ == "__main__":
    main()
