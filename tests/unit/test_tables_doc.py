"""docs/tables.md has a section for every view of the migrations, with an example query."""

from __future__ import annotations

import re

import sql
from tests.bench.examples import blocks, views


def test_every_view_has_its_section_and_an_example() -> None:
    text = "\n".join(m.sql for m in sql.migrations())
    created = set(re.findall(r"CREATE (?:OR REPLACE )?VIEW sendoff\.(\w+)", text))
    created -= set(re.findall(r"DROP VIEW sendoff\.(\w+)", text))
    assert set(views()) == created
    assert [view for view in views() if not blocks(f"`{view}`")] == []


def test_every_view_and_every_new_column_is_commented_in_the_migrations() -> None:
    text = "\n".join(m.sql for m in sql.migrations())
    assert [v for v in views() if f"COMMENT ON VIEW sendoff.{v} IS" not in text] == []
    assert [v for v in views() if f"COMMENT ON COLUMN sendoff.{v}." not in text] == []
