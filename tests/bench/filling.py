"""Fills a database with deliveries as months of use would, in set-based SQL: seconds per million rows.

Rows are written as the services write them, a claim and then its result, so that tables and indexes have the
shape that they have in production; counters are the sums of what was written, so that a recount finds none to
repair. Everything follows from the numbers of delivery and recipient: two fillings are the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sql import queries

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

_SECONDS: Final = 1_800
"""For one statement: the largest writes a few million rows."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A delivery to be made: its recipients, and how far it is: `finished`, `in_progress` or `stopped`."""

    recipients: int
    state: str = "finished"

    @property
    def claimed(self) -> int:
        """How many recipients were claimed: all, or the first half."""
        return self.recipients if self.state == "finished" else self.recipients // 2


def shapes(rows: int) -> list[Shape]:
    """Deals recipients into deliveries: a tenth in one, half in fifty, the rest in smaller ones.

    Args:
        rows: How many recipients there are, a thousand at least.

    Returns:
        The largest first; the second is under way, and the third was stopped.
    """
    sizes = [rows // 10, *[rows // 100] * 50, *[rows // 1_000] * 200]
    small = max(1, rows // 10_000)
    sizes += [small] * ((rows - sum(sizes)) // small)
    states = {1: "in_progress", 2: "stopped"}
    return [Shape(size, states.get(at, "finished")) for at, size in enumerate(sizes)]


async def fill(
    connection: asyncpg.Connection, wanted: Sequence[Shape], *, profiles: int, sets: int = 1
) -> list[int]:
    """Makes deliveries.

    Args:
        connection: Of a user who may write the tables.
        wanted: The deliveries, in this order.
        profiles: How many profiles there are; a delivery has each at most once if it is no larger.
        sets: How many sets of partitions they are spread over, as if so many periods had passed.

    Returns:
        The numbers of the deliveries.
    """
    filler, numbers = _Filler(connection), []
    await filler.run("block_profiles", profiles)
    for at, shape in enumerate(wanted):
        if at and at * sets // len(wanted) > (at - 1) * sets // len(wanted):
            await connection.execute("SELECT sendoff.open_partition_set('0 s')")
        numbers.append(await filler.deliver(at, shape, profiles))
    return numbers


class _Filler:
    def __init__(self, connection: asyncpg.Connection) -> None:
        text = Path(__file__).with_suffix(".sql").read_text("utf-8")
        _, *blocks = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
        self._statements = dict(zip(blocks[::2], blocks[1::2], strict=True))
        self._statements["insert_domains"] = queries()["insert_domains"].text
        self._connection = connection

    async def run(self, name: str, *values: Any) -> None:
        await self._connection.execute(self._statements[name], *values, timeout=_SECONDS)

    async def deliver(self, at: int, shape: Shape, profiles: int) -> int:
        size, going_on = shape.recipients, shape.state == "in_progress"
        cancelled = size - shape.claimed if shape.state == "stopped" else 0
        async with self._connection.transaction():
            row = await self._connection.fetchrow(self._statements["delivery"], at, shape.state, size)
            number: int = row["delivery_id"]
            await self.run("recipients", number, size, profiles)
            await self.run("insert_domains", number)
            await self.run("exclusions", number, size // 50)
            await self.run("wave", number, size)
            await self.run("commands", number, row["started_at"])
            await self.run("claims", number, shape.claimed, row["started_at"])
        async with self._connection.transaction():
            await self.run("results", number, shape.claimed, going_on)
            await self.run("counters", number, cancelled)
            await self.run("events", number)
            await self.run("tracked", number)
        return number
