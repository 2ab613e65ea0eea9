"""Writes the columns of every public view into docs/tables.md, from the comments of the database.

All else on the page is written by hand. `make tables` runs this on servers of its own; a test says where the
page differs.
"""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from worker.db.migrate import migrate
from worker.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PAGE: Final = Path(__file__).parents[1] / "docs" / "tables.md"

_SECONDS: Final = 20
_HEAD: Final = "| column | type | |\n|---|---|---|\n"
_COLUMNS: Final = """
SELECT c.relname AS view, a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type,
       col_description(a.attrelid, a.attnum) AS text
FROM pg_class c
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.relnamespace = 'sendoff'::regnamespace AND c.relkind = 'v'
ORDER BY c.relname, a.attnum
"""


async def columns(connection: asyncpg.Connection) -> dict[str, list[Mapping[str, Any]]]:
    """Reads the public views: by view its columns in their order, each with `name`, `type` and `text`."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in await connection.fetch(_COLUMNS):
        found.setdefault(row["view"], []).append(row)
    return found


def page(text: str, views: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Returns the page with the columns of the views in the place of those that it has.

    Raises:
        ValueError: a view has no section with a table of columns, or a section no view.
    """
    named = re.findall(r"^## `(\w+)`$", text, re.MULTILINE)
    if sorted(named) != sorted(views):
        raise ValueError(f"docs/{PAGE.name} and the database differ by {sorted(set(named) ^ set(views))}.")
    for view, rows in views.items():
        table = "".join(f"| `{row['name']}` | {row['type']} | {row['text']} |\n" for row in rows)
        place = re.compile(rf"(^## `{view}`\n(?:(?!## |\|).*\n)*{re.escape(_HEAD)})(?:\|.*\n)*", re.MULTILINE)
        text, count = place.subn(lambda match, table=table: match[1] + table, text)  # type: ignore[misc]
        if not count:
            raise ValueError(f"docs/{PAGE.name} has no table of columns for {view}.")
    return text


async def main() -> None:
    """Brings the database of the settings up to date and writes the page."""
    url = read_settings().database_url
    await migrate(url, timeout=_SECONDS)
    connection = await asyncpg.connect(url, timeout=_SECONDS)
    try:
        PAGE.write_text(page(PAGE.read_text("utf-8"), await columns(connection)), "utf-8")
    except ValueError as error:
        sys.exit(str(error))
    finally:
        await connection.close()


if __name__ == "__main__":
    asyncio.run(main())
