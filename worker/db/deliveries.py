"""Deliveries: their rows, their moves, their contents.

Methods of `Deliveries` are transactions of their own; functions join a transaction.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from contracts.commands import Wave
from contracts.states import State
from worker.domain.approval import Approval
from worker.domain.deliveries import Delivery, Waves
from worker.domain.preflight import Found, Others
from worker.domain.states import EVENTS, OVER, Move, sources, target

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    import asyncpg

    from contracts.events import Figures
    from worker.db.pool import Database, Transaction

_WAVES_SHOWN: Final = 20


class Deliveries:
    """All deliveries. Each call is a transaction of its own."""

    def __init__(self, db: Database) -> None:
        """Takes the database."""
        self._db = db

    async def due(self) -> list[int]:
        """Lists confirmed deliveries whose contact date has come, at most 100, the earliest date first."""
        return _numbers(await self._db.fetch("read_due_deliveries"))

    async def seconds_to_next_start(self) -> float | None:
        """Returns the seconds until the next contact date, negative after it; None if no delivery waits."""
        seconds: float | None = await self._db.fetchval("read_seconds_to_next_start")
        return seconds

    async def expired(self) -> list[int]:
        """Lists deliveries with an ended validity whose rest is not yet cancelled, at most 100, by number."""
        return _numbers(await self._db.fetch("read_expired_deliveries"))

    async def complete(self) -> list[int]:
        """Lists the running deliveries in which nothing is open, by number."""
        return _numbers(await self._db.fetch("read_complete_deliveries"))

    async def confirmed(self, delivery_id: int) -> tuple[str, State] | None:
        """Returns the channel and the state of a delivery; None if it was never confirmed."""
        row = await self._db.fetchrow("read_confirmed_delivery", delivery_id=delivery_id)
        return (row["channel"], State(row["state"])) if row else None

    async def await_retries(self, delivery_id: int) -> None:
        """Moves a delivery from *in progress* to *retry pending*; any other stays as it is."""
        async with self._db.transaction() as tx:
            await move(tx, delivery_id, Move.AWAIT_RETRIES)

    async def finish(self, delivery_id: int) -> bool:
        """Finishes a delivery whose recipients all have an outcome, and closes its pages.

        Returns:
            Whether this call finished it.
        """
        expected = [s.value for s in sources(Move.FINISH)]
        async with self._db.transaction() as tx:
            if await tx.fetchval("read_nothing_open", delivery_id=delivery_id, expected=expected) is None:
                return False
            # A result under way may plan a retry: either we count it here, or it finds the delivery finished.
            await tx.execute("close_claims", delivery_id=delivery_id)
            done = await tx.fetchval(
                "finish_delivery", delivery_id=delivery_id, expected=expected, event=EVENTS[Move.FINISH]
            )
            if done is not None:
                await tx.execute("close_all_pages", delivery_id=delivery_id)
        return done is not None


def _numbers(rows: Iterable[asyncpg.Record]) -> list[int]:
    return [row["delivery_id"] for row in rows]


async def read_for_update(tx: Transaction, delivery_id: int) -> Delivery | None:
    """Reads and locks a delivery's row; None if there is none."""
    row = await tx.fetchrow("read_delivery_for_update", delivery_id=delivery_id)
    if row is None:
        return None
    facts = {name: value for name, value in row.items() if not name.startswith("first_approval_")}
    first = row["first_approval_by"] and Approval(
        row["first_approval_by"],
        row["first_approval_by_token"],
        row["first_approval_preparation"],
        row["first_approval_at"],
        row["first_approval_until"],
    )
    return Delivery(**{**facts, "state": State(row["state"]), "first_approval": first})


async def move(
    tx: Transaction,
    delivery_id: int,
    by: Move,
    *,
    to: State | None = None,
    operator: str | None = None,
    reason: str | None = None,
    command_id: str | None = None,
    figures: Figures | None = None,
) -> State | None:
    """Moves a delivery by one legal move, records it, and puts its event into the outbox.

    Args:
        tx: The transaction.
        delivery_id: The delivery.
        by: The move. The guarded update expects one of its source states.
        to: The target state, for the one move (*resume*) that has several.
        operator: The operator, if a person moved it.
        reason: Why, in words.
        command_id: The command that asked for it.
        figures: What tripped the circuit breaker, if it tripped.

    Returns:
        The new state; None if the delivery was in none of the source states, because somebody moved it
        before.
    """
    goal = to if to is not None else target(by)
    expected = [s.value for s in sources(by)]
    row = await tx.fetchrow(
        "move_delivery",
        delivery_id=delivery_id,
        expected=expected,
        target=goal.value,
        over=goal in OVER,
        operator=operator,
        reason=reason,
        command_id=command_id,
        event=EVENTS.get(by),
        figures=figures and figures.model_dump_json(),
    )
    return State(row["to_state"]) if row else None


async def paused_in(tx: Transaction, delivery_id: int) -> State | None:
    """Returns the state to which a paused delivery returns."""
    state = await tx.fetchval("read_paused_in", delivery_id=delivery_id)
    return State(state) if state else None


async def confirm(tx: Transaction, delivery_id: int, operator: str, valid_until: datetime) -> None:
    """Records the operator who confirmed, the time, and the end of the validity."""
    await tx.execute("confirm_delivery", delivery_id=delivery_id, operator=operator, valid_until=valid_until)


async def approve(tx: Transaction, delivery_id: int, first: Approval | None) -> None:
    """Records the first of two OKs, or, with None, that there is none."""
    await tx.execute(
        "approve_delivery",
        delivery_id=delivery_id,
        operator=first and first.operator,
        by_token=first and first.by_token,
        preparation=first and first.preparation,
        at=first and first.at,
        until=first and first.until,
    )


async def authorise(tx: Transaction, delivery_id: int, operator: str, *, by_token: bool) -> None:
    """Records under whose authority the delivery starts, and whether a token gave it."""
    await tx.execute("authorise_delivery", delivery_id=delivery_id, operator=operator, by_token=by_token)


async def authority(tx: Transaction, delivery_id: int) -> tuple[str, bool]:
    """Returns under whose authority a confirmed delivery starts, and whether a token gave it."""
    row = await tx.fetchrow("read_authority", delivery_id=delivery_id)
    if row is None or row["authorised_by"] is None:
        raise LookupError(f"The delivery {delivery_id} was never confirmed.")
    return row["authorised_by"], row["authorised_by_token"]


async def excluded_by_cause(tx: Transaction, delivery_id: int) -> dict[str, int]:
    """Counts the targets that the preparation left out, by cause."""
    return {
        r["cause"]: r["excluded"] for r in await tx.fetch("read_excluded_by_cause", delivery_id=delivery_id)
    }


async def waves(tx: Transaction, delivery_id: int) -> Waves:
    """Reads the first waves of a delivery, and the number of all."""
    rows = await tx.fetch("read_waves", delivery_id=delivery_id, shown=_WAVES_SHOWN)
    shown = tuple(
        Wave(recipients=r["recipients"], due_at=r["due_at"], due_after=r["due_after"]) for r in rows
    )
    return Waves(rows[0]["waves"] if rows else 0, shown)


async def others(tx: Transaction | Database, delivery_id: int) -> tuple[int, Others] | None:
    """Reads what the preflight compares a delivery with.

    Returns:
        The number of its recipients, and what it is compared with; None if there is no such delivery.
    """
    row = await tx.fetchrow("read_others", delivery_id=delivery_id)
    if row is None:
        return None
    stored = tuple(Found(**one) for one in json.loads(row["findings"] or "[]"))
    last = (row["last_id"], row["last_to_deliver"] or 0)
    return row["to_deliver"], Others(stored, *last, row["same_id"], row["same_confirmed_at"])


async def now(tx: Transaction) -> datetime:
    """Returns the database's time: the clock that schedulers on several machines share."""
    moment: datetime = await tx.fetchval("read_clock")
    return moment


class DeliveryContents:
    """The contents of deliveries."""

    def __init__(self, db: Database) -> None:
        """Takes the database."""
        self._db = db

    async def content(self, delivery_id: int) -> tuple[str, dict[str, Any]] | None:
        """Reads a delivery's channel and content; None if it was never prepared."""
        row = await self._db.fetchrow("read_content", delivery_id=delivery_id)
        return (row["channel"], json.loads(row["content"])) if row else None

    async def seconds_since_due(self, delivery_id: int) -> float | None:
        """Returns the seconds since a delivery was confirmed, or since its contact date if that is later."""
        found: float | None = await self._db.fetchval("seconds_since_due", delivery_id=delivery_id)
        return found
