"""The reads and writes of a preparation, on its one connection."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Final

from worker.db import deliveries
from worker.domain.audience import Cause, Target
from worker.domain.schedule import wave_ends

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from worker.db.pool import Transaction
    from worker.domain.delivery_file import DeliveryFile
    from worker.domain.preflight import Found
    from worker.domain.tracked_content import Link

_COPY_ROWS: Final = 20_000
"""Rows of one COPY. Each COPY is a statement with its own timeout."""


@dataclass(frozen=True, slots=True)
class Counts:
    """The counts of a preparation."""

    preparation: int
    to_deliver: int
    excluded: dict[str, int]
    """By cause."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a preparation writes beside the audience."""

    definition: DeliveryFile
    links: Sequence[Link]
    """The tracked links of its content."""
    found: Sequence[Found] = ()
    """What the preflight found in its content."""


async def stage(session: Transaction, rows: Iterator[Target]) -> None:
    """Puts the rows into the session's temporary table, by COPY, in constant memory."""
    await session.execute("create_staged_target")
    await session.execute("empty_staged_target")
    while (first := next(rows, None)) is not None:
        await session.connection.copy_records_to_table(
            "staged_target",
            schema_name="pg_temp",
            columns=Target._fields,
            records=chain([first], islice(rows, _COPY_ROWS - 1)),
        )
    await session.execute("analyze_staged_target")


async def lock_preparation(session: Transaction, delivery_id: int) -> bool:
    """Takes the lock to prepare a delivery until the session ends; False if another session has it."""
    return bool(await session.fetchval("lock_preparation", delivery_id=delivery_id))


async def create_delivery(tx: Transaction, definition: DeliveryFile, operator: str) -> int:
    """Adds a delivery in *editing* and returns its number."""
    return int(
        await tx.fetchval(
            "create_delivery", label=definition.label, channel=definition.channel, operator=operator
        )
    )


async def read_span(session: Transaction) -> tuple[datetime | None, datetime | None]:
    """Returns the first and the last due time of the staged rows that have their own times."""
    row = await session.fetchrow("read_span")
    return (row["first"], row["last"]) if row else (None, None)


async def replace_audience(tx: Transaction, delivery_id: int, contents: Contents, *, by_row: bool) -> Counts:
    """Replaces the delivery's audience by the staged rows, and its content and schedule by the file's.

    Args:
        tx: The transaction.
        delivery_id: The delivery.
        contents: The delivery file, the links of its content, and what the preflight found in it.
        by_row: Whether the staged rows have their own times.
    """
    definition = contents.definition
    await tx.execute("drop_audience", delivery_id=delivery_id)
    await tx.execute("exclude_duplicates", cause=Cause.DUPLICATE)
    await tx.execute("exclude_quarantined", channel=definition.channel, cause=Cause.QUARANTINED)
    await tx.execute("exclude_denylisted", channel=definition.channel, cause=Cause.DENYLISTED)
    await tx.execute("insert_exclusions", delivery_id=delivery_id)
    await _number(tx, delivery_id, definition, by_row=by_row)
    await tx.execute("insert_domains", delivery_id=delivery_id)
    await tx.execute(
        "complete_preparation",
        delivery_id=delivery_id,
        label=definition.label,
        channel=definition.channel,
        contact_date=definition.schedule.instant,
        time_zone=definition.schedule.zone,
        valid_for=definition.valid_for,
        late_limit=definition.schedule.late_limit,
        messages_per_hour=definition.limits.messages_per_hour,
        by_local_time=definition.schedule.local_time,
        breaker_minimum=definition.limits.breaker_minimum,
        hard_bounce_pct=definition.limits.hard_bounce_pct,
        error_pct=definition.limits.error_pct,
        refused_pct=definition.limits.refused_pct,
        max_attempts=definition.limits.max_attempts,
    )
    content = definition.content_json
    await tx.execute(
        "insert_content",
        delivery_id=delivery_id,
        content=content,
        digest=hashlib.sha256(content.encode()).digest() if definition.content else None,
        findings=json.dumps([one._asdict() for one in contents.found]),
    )
    if contents.links:
        await tx.execute(
            "insert_links",
            delivery_id=delivery_id,
            numbers=[link.number for link in contents.links],
            parts=[link.part for link in contents.links],
            targets=[link.target for link in contents.links],
        )
    return await read_counts(tx, delivery_id)


async def _number(tx: Transaction, delivery_id: int, definition: DeliveryFile, *, by_row: bool) -> None:
    """Numbers the remaining rows, so that every wave is a range of recipients."""
    if by_row:
        await tx.execute("insert_recipients_by_time", delivery_id=delivery_id)
        await tx.execute("insert_waves_by_time", delivery_id=delivery_id)
    elif definition.waves:
        ends = wave_ends(await tx.fetchval("count_staged"), definition.waves)
        firsts = [end + 1 for end in (0, *ends[:-1])]
        await tx.execute("insert_recipients_by_share", delivery_id=delivery_id, starts=firsts[1:])
        delays = [wave.after for wave in definition.waves]
        await tx.execute(
            "insert_waves_by_share", delivery_id=delivery_id, firsts=firsts, lasts=ends, delays=delays
        )
    else:
        await tx.execute("insert_recipients", delivery_id=delivery_id)


async def read_counts(tx: Transaction, delivery_id: int) -> Counts:
    """Returns the counts of a delivery's current preparation."""
    row = await tx.fetchrow("read_preparation", delivery_id=delivery_id)
    if row is None:
        raise LookupError(f"There is no delivery {delivery_id}.")
    excluded = await deliveries.excluded_by_cause(tx, delivery_id)
    return Counts(row["preparation"], row["to_deliver"], excluded)


async def name_source(
    tx: Transaction, delivery_id: int, source_delivery_id: int | None, criterion: str | None
) -> None:
    """Stores which earlier delivery the audience comes from, and who of it; None for none."""
    await tx.execute(
        "name_source", delivery_id=delivery_id, source_delivery_id=source_delivery_id, criterion=criterion
    )
