"""The SQL of Sendoff: numbered migrations and named queries, read from the files beside this module."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_MIGRATION = re.compile(r"^(\d{4})_(\w+)\.sql$")


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema: its number (from 1, without gaps), its name and its SQL."""

    number: int
    name: str
    sql: str


def migrations() -> list[Migration]:
    """Returns every migration in order.

    Raises:
        ValueError: a file's name is not ``NNNN_name.sql`` or a number is missing or doubled.
    """
    found = []
    for file in _sql_files("migrations"):
        match = _MIGRATION.match(file.name)
        if match is None:
            raise ValueError(f"sql/migrations/{file.name}: a migration is named NNNN_name.sql")
        found.append(Migration(int(match[1]), match[2], file.read_text("utf-8")))
    if [m.number for m in found] != list(range(1, len(found) + 1)):
        raise ValueError("sql/migrations: the numbers must run from 0001 without a gap")
    return found


def queries() -> dict[str, str]:
    """Returns every named query of ``sql/queries``: name to statement, comments kept.

    Raises:
        ValueError: a name stands twice, or text stands before the first name.
    """
    found: dict[str, str] = {}
    for file in _sql_files("queries"):
        head, *blocks = _NAME.split(file.read_text("utf-8"))
        if re.sub(r"--.*", "", head).strip():
            raise ValueError(f"sql/queries/{file.name}: SQL before the first “-- name:”")
        for name, text in zip(blocks[::2], blocks[1::2], strict=True):
            if name in found:
                raise ValueError(f"sql/queries/{file.name}: the query “{name}” stands twice")
            found[name] = text.strip()
    return found


def _sql_files(folder: str) -> list[Traversable]:
    entries = (files(__name__) / folder).iterdir()
    return sorted((f for f in entries if f.name.endswith(".sql")), key=lambda f: f.name)
