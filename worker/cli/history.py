"""`sendoff history`, `sendoff export`: the messages of one profile, and all stored data about it."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from worker.cli.common import CommandRefused, database
from worker.cli.rows import CsvOption, Format, LinesOption, chosen, status_text, status_time, write
from worker.cli.show import to_json
from worker.db import profiles
from worker.domain.text import plain
from worker.settings import Settings, read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker.db.pool import Database

ProfileArgument = Annotated[
    str, typer.Argument(metavar="PROFILE", help="The profile_id, as the recipients files had it.")
]

_DID: Final = (
    ("complained_at", "complained"),
    ("optout_at", "opted out"),
    ("clicked_at", "clicked"),
    ("opened_at", "opened"),
)


def history(profile_id: ProfileArgument, *, as_csv: CsvOption = False, as_json: LinesOption = False) -> None:
    """Print everything that one profile got, with outcomes, opens and clicks, the newest delivery first."""
    asyncio.run(_history(read_settings(), profile_id, chosen(as_csv=as_csv, as_json=as_json)))


def export(profile_id: ProfileArgument) -> None:
    """Print all that is held of one profile as one JSON object."""
    asyncio.run(_export(read_settings(), profile_id))


async def _history(settings: Settings, profile_id: str, form: Format) -> None:
    async with database(settings) as db:
        if not (await profiles.held(db, profile_id)).messages:
            raise CommandRefused(f"No message to the profile “{plain(profile_id)}” is known.")
        await write(
            profiles.history(db, profile_id),
            form,
            columns=await db.columns("read_history"),
            head=("delivery", "label", "address", "status", "at", "did"),
            cells=_cells,
        )


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        str(row["delivery_id"]),
        plain(row["label"]),
        plain(row["address"]),
        status_text(row),
        status_time(row),
        ", ".join(word for fact, word in _DID if row[fact] is not None),
    ]


async def _export(settings: Settings, profile_id: str) -> None:
    async with database(settings) as db:
        held = await profiles.held(db, profile_id)
        if not (held.erasable or held.denylisted):
            raise CommandRefused(f"Nothing is held of the profile “{plain(profile_id)}”.")
        await _write_all(db, profile_id)


async def _write_all(db: Database, profile_id: str) -> None:
    """Writes one object in constant memory: it writes the items of its lists as they come."""
    listed = to_json(await profiles.denylist(db, profile_id))
    sys.stdout.write(f'{{"profile_id": {to_json(profile_id)},\n "denylist": {listed}')
    parts = {"messages": profiles.messages(db, profile_id), "exclusions": profiles.exclusions(db, profile_id)}
    for name, rows in parts.items():
        sys.stdout.write(f',\n "{name}": [')
        between = "\n  "
        async for row in rows:
            sys.stdout.write(between + to_json(_readable(row)))
            between = ",\n  "
        sys.stdout.write("]")
    sys.stdout.write("}\n")


def _readable(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row with its variables as an object, not as text."""
    return {k: json.loads(v) if k == "variables" else v for k, v in row.items()}
