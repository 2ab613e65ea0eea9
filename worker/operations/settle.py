"""Settles unknown outcomes for an operator, in batches. Each batch is a transaction with its command log.

The first batch is recorded under the number of the request. So a request that comes twice is carried out
once.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from contracts.commands import Reason, Reply, Status
from worker.db import accounts, commands, deliveries, reading
from worker.domain.answers import OTHER_COMMAND
from worker.domain.authority import acting_operator
from worker.domain.refusals import Refused
from worker.domain.settlement import Settlement, check_settlement
from worker.domain.states import Move, sources

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from contracts.states import State
    from worker.db.commands import RecordedCommand
    from worker.db.pool import Database, Transaction
    from worker.domain.authority import Bearer

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
    command_id: str | None = None
    """The number of the request; None for a new one. The same one is carried out once."""


@dataclass(frozen=True, slots=True)
class Settled:
    """The result of a settlement."""

    refused: Refused | None
    """Why it ended early; None if it did not. Outcomes that were settled before stay settled."""
    settled: int
    """How many outcomes were settled."""
    state: State | None
    """The delivery's state afterwards; None if there is no such delivery."""
    before: str = ""
    """What was answered to this request before; nothing is done now. Empty for a request that is new."""


async def settle(db: Database, request: SettlementRequest) -> Settled:
    """Settles unknown outcomes, except those that get a result meanwhile."""
    batches = _batches(db, request)
    done = await _batch(db, request, await anext(batches, []), request.command_id)
    async for recipients in batches:
        if done.refused is not None or done.before:
            break
        one = await _batch(db, request, recipients, None)
        done = Settled(one.refused, done.settled + one.settled, one.state)
    return done


async def _batches(db: Database, request: SettlementRequest) -> AsyncIterator[Sequence[int]]:
    if not request.recipients:
        async for batch in reading.unknown(db, request.delivery_id, _BATCH):
            yield batch
    for start in range(0, len(request.recipients), _BATCH):
        yield request.recipients[start : start + _BATCH]


async def _batch(
    db: Database, request: SettlementRequest, recipients: Sequence[int], command_id: str | None
) -> Settled:
    """Settles one batch. One of nobody checks whether it is allowed.

    Args:
        db: The database.
        request: What is asked.
        recipients: The recipients of the batch.
        command_id: The number that it is recorded under, also if it settles nobody. None for a new one.
    """
    number, how = request.delivery_id, request.how
    async with db.transaction() as tx:
        if command_id and (known := await commands.recorded(tx, command_id)):
            return _again(known, request)
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
        if refused is not None or settled or command_id:
            await _record(tx, request, command_id or str(uuid.uuid4()), Settled(refused, settled, state))
    return Settled(refused, settled, state)


async def _record(tx: Transaction, request: SettlementRequest, command_id: str, done: Settled) -> None:
    refused, outcomes = done.refused, "outcome" if done.settled == 1 else "outcomes"
    answer = Reply(
        command_id=command_id,
        delivery_id=request.delivery_id,
        status=Status.ACCEPTED if refused is None else Status.REFUSED,
        reason=refused.reason if refused else None,
        message=refused.message if refused else f"{done.settled} unknown {outcomes}: {request.how}.",
        state=done.state,
    )
    await commands.record(
        tx,
        command=COMMAND,
        operator=request.operator,
        publisher=None,
        body=f'{_asked(request)}, "settled": {done.settled}}}',
        reply=answer,
    )


def _asked(request: SettlementRequest) -> str:
    """Writes what is asked: the beginning of the recorded body."""
    asked: dict[str, object] = {
        "delivery_id": request.delivery_id,
        "operator": request.operator,
        "resolve": request.how.value,
        "recipients": request.recipients[:_BATCH],
    }
    return json.dumps(asked, ensure_ascii=False).removesuffix("}")


def _again(known: RecordedCommand, request: SettlementRequest) -> Settled:
    """Answers a request whose number was used before: as then, if the same was asked."""
    if known.command != COMMAND or not known.body.startswith(_asked(request) + ","):
        return Settled(Refused(Reason.MALFORMED, OTHER_COMMAND), 0, None)
    if known.reply.status is Status.REFUSED and known.reply.reason is not None:
        return Settled(Refused(known.reply.reason, known.reply.message), 0, known.reply.state)
    return Settled(None, 0, known.reply.state, known.reply.message)
