"""Pauses all deliveries at an operator's word: straight in the database, so that no service is needed."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from worker.db import accounts, commands, deliveries
from worker.domain.answers import accepted, refusal
from worker.domain.authority import acting_operator
from worker.domain.operators import Role, refuse_operator
from worker.domain.states import Move

if TYPE_CHECKING:
    from contracts.commands import Reply
    from worker.db.pool import Database, Transaction
    from worker.domain.authority import Bearer
    from worker.domain.refusals import Refused

COMMAND: Final = "delivery.pause-all"
"""The name in the command log."""


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """Who pauses all deliveries, and why."""

    operator: str
    reason: str
    bearer: Bearer | None = None
    """The bearer of a verified token, if tokens are required."""


@dataclass(frozen=True, slots=True)
class Held:
    """What was paused."""

    refused: Refused | None
    """Why it ended early; None if it did not. What was paused before stays paused."""
    deliveries: list[int]
    """The deliveries that this call paused, by number."""


async def pause_all(db: Database, request: HoldRequest) -> Held:
    """Pauses every delivery that could go on, each in a transaction of its own, until there is none left."""
    held: list[int] = []
    if refused := await _refused(db, request):
        return Held(refused, held)
    while going := [row["delivery_id"] for row in await db.fetch("read_going_deliveries")]:
        for number in going:
            refused, paused = await _pause(db, number, request)
            if refused is not None:
                return Held(refused, held)
            held += [number] if paused else []
    return Held(None, held)


async def _refused(db: Database, request: HoldRequest) -> Refused | None:
    """Checks the operator, and records a refusal."""
    async with db.transaction() as tx:
        operator = acting_operator(await commands.read_operator(tx, request.operator), request.bearer)
        refused = refuse_operator(operator, request.operator, Role.START_DELIVERIES, "pause deliveries")
        if refused is not None:
            await _record(tx, request, refusal(str(uuid.uuid4()), None, refused, None))
    return refused


async def _pause(db: Database, number: int, request: HoldRequest) -> tuple[Refused | None, bool]:
    async with db.transaction() as tx:
        # As a pause by command does, and before the lock of the row. After this no claim is granted.
        await accounts.close_claims(tx, number)
        operator = acting_operator(await commands.read_operator(tx, request.operator), request.bearer)
        refused = refuse_operator(operator, request.operator, Role.START_DELIVERIES, "pause deliveries")
        delivery = await deliveries.read_for_update(tx, number)
        if refused is not None or delivery is None:
            return refused, False
        state = await deliveries.move(
            tx, number, Move.PAUSE, operator=request.operator, reason=request.reason
        )
        if state is not None:
            said = "The delivery is paused, as all are."
            await _record(tx, request, accepted(str(uuid.uuid4()), delivery, said, state))
    return None, state is not None


def _body(request: HoldRequest) -> str:
    return json.dumps({"operator": request.operator, "reason": request.reason}, ensure_ascii=False)


async def _record(tx: Transaction, request: HoldRequest, reply: Reply) -> None:
    body = _body(request)
    await commands.record(
        tx, command=COMMAND, operator=request.operator, publisher=None, body=body, reply=reply
    )
