"""Writes the recipients file of a delivery out of the outcomes of an earlier one.

It is a file like any other, so that a preparation checks it like any other: its columns and addresses, the
lists and the sample.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from contracts.states import State
from worker.db import reading
from worker.domain.retarget import Criterion, refuse_source

if TYPE_CHECKING:
    from pathlib import Path

    from worker.db.pool import Database


class SourceRefused(Exception):
    """The earlier delivery has no audience for this; the message says why."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where an audience comes from."""

    delivery_id: int
    """The earlier delivery."""
    criterion: Criterion
    """Who of it."""


async def write_audience(db: Database, source: Source, path: Path) -> int:
    """Writes a recipients file in constant memory.

    Args:
        db: The database.
        source: The recipients to write.
        path: The file, which is made.

    Returns:
        How many recipients it has.

    Raises:
        SourceRefused: There is no such delivery, it is not over, retention removed it, or nobody fits.
    """
    found = await reading.source(db, source.delivery_id)
    if found is None:
        raise SourceRefused(f"There is no delivery {source.delivery_id}.")
    refused = refuse_source(source.delivery_id, State(found["state"]), found["purged_at"])
    if refused is not None:
        raise SourceRefused(refused)
    count, columns = 0, ["address"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        async for row in reading.retargeted(db, source.delivery_id, found["to_deliver"], source.criterion):
            variables = json.loads(row["variables"])
            if not count:
                columns += [name for name in variables if name != "address"]
                writer.writerow(columns)
            count += 1
            writer.writerow([row["address"], *(variables.get(name, "") for name in columns[1:])])
    if not count:
        raise SourceRefused(f"Nobody of the delivery {source.delivery_id} fits “{source.criterion}”.")
    return count
