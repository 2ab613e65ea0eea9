"""Settles unknown outcomes for an operator, in batches. Each batch is a transaction with its command log."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from contracts.commands import Reply, Status
from worker.db import accounts, commands, deliveries, reading
from worker.domain.authority import acting_operator
from worker.domain.settlement import Settlement, check_settlement
from worker.domain.states import Move, sources

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from contracts.states import State
    from worker.db.pool import Database
    from worker.domain.authority import Bearer
    from worker.domain.refusals import Refused

COMMAND: Final = "delivery.settle-unknown"
"""The name in the command log."""

_BATCH: Final = 1_000
"""Recipients in one batch."""


@dataclass(frozen=True, slots=True)
class SettlementRequest:
    """What to settle, how, and the operator who asks."""

    delivery_id: int
    how: Settlement
    operator: str
    recipients: tuple[int, ...] = ()
    """None for all recipients whose outcome is unknown."""
    bearer: Bearer | None = None
    """The bearer of a verified token, if tokens are required."""


@dataclass(frozen=True, slots=True)
class Settled:
    """The result of a settlement."""

    refused: Refused | None
    """Why it ended early; None if it did not. Outcomes that were settled before stay settled."""
    settled: int
    """How many outcomes were settled."""
    state: State | None
    """The delivery's state afterwards; None if there is no such delivery."""


async def settle(db: Database, request: SettlementRequest) -> Settled:
    """Settles unknown outcomes, except those that get a result meanwhile."""
    done = await _batch(db, request, [])
    async for recipients in _batches(db, request):
        if done.refused is not None:
            break
        one = await _batch(db, request, recipients)
        done = Settled(one.refused, done.settled + one.settled, one.state)
    return done


async def _batches(db: Database, request: SettlementRequest) -> AsyncIterator[Sequence[int]]:
    if not request.recipients:
        async for batch in reading.unknown(db, request.delivery_id, _BATCH):
            yield batch
    for start in range(0, len(request.recipients), _BATCH):
        yield request.recipients[start : start + _BATCH]


async def _batch(db: Database, request: SettlementRequest, recipients: Sequence[int]) -> Settled:
    """Settles one batch. An empty batch only checks whether it is allowed, and records a refusal."""
    number, how = request.delivery_id, request.how
    async with db.transaction() as tx:
        # A stop and a finish count "the rest" and hold this lock exclusively.
        await accounts.share_claims(tx, number)
        operator = acting_operator(await commands.read_operator(tx, request.operator), request.bearer)
        delivery = await deliveries.read_for_update(tx, number)
        now = await deliveries.now(tx)
        refused = check_settlement(how, operator, request.operator, delivery, number, now)
        state, settled = delivery.state if delivery else None, 0
        if refused is None and recipients:
            words = "To be sent again" if how is Settlement.RESEND else f"Settled as {how}"
            reply = f"{words} by {request.operator}."
            settled = await accounts.settle(tx, number, recipients, how, reply)
            if settled and how is Settlement.RESEND and state in sources(Move.RESEND):
                reason = "Unknown outcomes are sent again."
                state = await deliveries.move(
                    tx, number, Move.RESEND, operator=request.operator, reason=reason
                )
        if refused is not None or settled:
            answer = Reply(
                command_id=str(uuid.uuid4()),
                delivery_id=number,
                status=Status.ACCEPTED if refused is None else Status.REFUSED,
                reason=refused.reason if refused else None,
                message=refused.message if refused else f"{settled} unknown outcomes: {how}.",
                state=state,
            )
            body = {"delivery_id": number, "operator": request.operator, "resolve": how, "settled": settled}
            await commands.record(
                tx,
                command=COMMAND,
                operator=request.operator,
                publisher=None,
                body=json.dumps(body, ensure_ascii=False),
                reply=answer,
            )
    return Settled(refused, settled, state)
