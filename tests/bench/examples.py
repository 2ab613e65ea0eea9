"""The example queries of docs/tables.md, as a dashboard would ask them: for the bench and for the tests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DOC: Final = Path(__file__).parents[2] / "docs/tables.md"


@dataclass(frozen=True, slots=True)
class Example:
    """One question: the view that it is an example for, and its SQL with what psql would fill in."""

    view: str
    sql: str

    @property
    def asks(self) -> str:
        """What it is about: `delivery`, `profile`, or nothing."""
        found = re.search(r":(delivery|profile)\b", self.sql)
        return found[1] if found else ""

    def filled(self, delivery: int, profile: str) -> str:
        """Returns the statement, as psql fills it."""
        return self.sql.replace(":delivery", str(delivery)).replace(":profile", f"'{profile}'")


def blocks(heading: str, text: str | None = None) -> list[str]:
    """Returns the SQL blocks below a heading of the second level, in order; none where there is none."""
    sections = re.split(r"^## ", text or DOC.read_text("utf-8"), flags=re.MULTILINE)
    body = next((s.partition("\n")[2] for s in sections if s.partition("\n")[0] == heading), "")
    return [
        found.strip().rstrip(";")
        for found in re.findall(r"^```sql\n(.*?)^```", body, re.MULTILINE | re.DOTALL)
    ]


def views() -> list[str]:
    """Returns the views that have a section."""
    return re.findall(r"^## `(\w+)`$", DOC.read_text("utf-8"), re.MULTILINE)


def examples() -> list[Example]:
    """Returns every example, in the order of the page."""
    return [Example(view, sql) for view in views() for sql in blocks(f"`{view}`")]
