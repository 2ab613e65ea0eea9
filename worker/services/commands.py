"""The commands of an operator: confirm, pause, resume, stop. Each is carried out once and answered for good.

The role, the state and the answer are read and written in one transaction, so that a command is either wholly
done and answered, or not done at all and delivered again.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import structlog
from pydantic import ValidationError

from contracts import routing
from contracts.base import explain
from contracts.commands import Confirm, Control, Reason, Reply, Status
from contracts.states import State
from worker.amqp.requests import reply_to, take_each
from worker.db import accounts, commands, deliveries, pages
from worker.db.retrying import Idempotent
from worker.domain.authority import standing
from worker.domain.confirmation import check_confirm, summary
from worker.domain.deliveries import unknown_delivery, validity_end, words
from worker.domain.operators import Role, refuse_operator
from worker.domain.refusals import Refused
from worker.domain.states import Move, sources, targets

if TYPE_CHECKING:
    import asyncio

    from worker.amqp.dead import DeadQueue
    from worker.amqp.messages import Consumer, Incoming, Publisher
    from worker.auth.authority import Authority
    from worker.db.pool import Database, Transaction
    from worker.domain.authority import Bearer
    from worker.domain.deliveries import Delivery
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_MOVES: Final = {routing.PAUSE: Move.PAUSE, routing.RESUME: Move.RESUME, routing.STOP: Move.STOP}
_DONE: Final = {Move.PAUSE: "paused", Move.RESUME: "resumed", Move.STOP: "stopped"}
_BODY_KEPT: Final = 10_000


class ConfirmService:
    """Consumes commands, one after the other."""

    name = "confirm"

    def __init__(
        self,
        consumer: Consumer,
        publisher: Publisher,
        dead: DeadQueue,
        db: Database,
        metrics: Metrics,
        authority: Authority,
        *,
        page_size: int,
    ) -> None:
        """Takes its parts; `page_size` is in recipients."""
        self._metrics = metrics
        self._authority = authority
        self._consumer = consumer
        self._publisher = publisher
        self._dead = dead
        self._db = db
        self._page_size = page_size

    async def run(self, stop: asyncio.Event) -> None:
        """Answers commands until `stop`."""
        await take_each(self._consumer, self._dead, self._handle, stop)

    async def _handle(self, message: Incoming) -> None:
        answering = Idempotent(lambda: self._answer(message))
        reply = await self._db.until_done(answering, "answering a command")
        log.info(
            "command",
            command=message.routing_key,
            command_id=reply.command_id,
            delivery_id=reply.delivery_id,
            status=reply.status.value,
            reason=reply.reason and reply.reason.value,
        )
        self._metrics.commands.labels(message.routing_key, reply.status.value, reply.reason or "").inc()
        if message.reply_to:
            await reply_to(self._publisher, message, reply.model_dump_json().encode(), routing.TYPE_REPLY)

    async def _answer(self, message: Incoming) -> Reply:
        command_id = (message.message_id or "").replace("\x00", "\ufffd")[:200]
        body = message.body.decode("utf-8", "replace").replace("\x00", "\ufffd")[:_BODY_KEPT]
        async with self._db.transaction() as tx:
            if not command_id:
                command_id = f"unidentified-{uuid.uuid4()}"
                reply = _malformed(command_id, "The message_id is missing: it makes a repeated command safe.")
                command = None
            else:
                known = await commands.recorded(tx, command_id)
                if known is not None:
                    return _again(known, message, body)
                command, reply = _read(command_id, message)
                speaker = self._authority.vouch(message, command.operator if command else None)
                if isinstance(speaker, Refused):
                    reply = _refused(command_id, command, speaker, None)
                elif command is not None:
                    reply = await self._carry_out(tx, command_id, message.routing_key, command, speaker)
            await commands.record(
                tx,
                command=message.routing_key,
                operator=command.operator if command else None,
                publisher=message.user_id,
                body=body,
                reply=reply,
            )
        return reply

    async def _carry_out(
        self,
        tx: Transaction,
        command_id: str,
        routing_key: str,
        command: Confirm | Control,
        bearer: Bearer | None,
    ) -> Reply:
        operator = standing(await commands.read_operator(tx, command.operator), bearer)
        if isinstance(command, Confirm):
            delivery = await deliveries.read_for_update(tx, command.delivery_id)
            now = datetime.now(UTC)
            refused = check_confirm(command, operator, delivery, now)
            if refused is not None or delivery is None:
                return _refused(
                    command_id, command, refused or unknown_delivery(command.delivery_id), delivery
                )
            if not command.definitive:
                return await self._summarise(tx, command_id, delivery, now)
            await deliveries.authorise(tx, command.delivery_id, command.operator, by_token=bearer is not None)
            return await self._confirm(tx, command_id, command, delivery, now)
        move = _MOVES[routing_key]
        refused = refuse_operator(
            operator, command.operator, Role.START_DELIVERIES, f"{move.value} a delivery"
        )
        # Before the row's lock: claims hold this lock and then read the row.
        await accounts.close_claims(tx, command.delivery_id)
        delivery = await deliveries.read_for_update(tx, command.delivery_id)
        if refused is not None or delivery is None:
            return _refused(command_id, command, refused or unknown_delivery(command.delivery_id), delivery)
        if move is Move.RESUME and delivery.state is State.PAUSED:
            await deliveries.authorise(tx, command.delivery_id, command.operator, by_token=bearer is not None)
        return await self._control(tx, command_id, command, delivery, move)

    async def _summarise(self, tx: Transaction, command_id: str, delivery: Delivery, now: datetime) -> Reply:
        excluded = await deliveries.excluded_by_cause(tx, delivery.delivery_id)
        people = "recipient" if delivery.to_deliver == 1 else "recipients"
        waves = await deliveries.waves(tx, delivery.delivery_id)
        return Reply(
            command_id=command_id,
            delivery_id=delivery.delivery_id,
            status=Status.FINALIZE,
            message=f"“{delivery.label}” goes to {delivery.to_deliver} {people}. Confirm to send it.",
            state=delivery.state,
            summary=summary(delivery, excluded, waves, now),
        )

    async def _confirm(
        self, tx: Transaction, command_id: str, command: Confirm, delivery: Delivery, now: datetime
    ) -> Reply:
        who, number = command.operator, delivery.delivery_id
        await deliveries.confirm(tx, number, who, validity_end(delivery, now))
        state = await deliveries.move(tx, number, Move.CONFIRM, operator=who, command_id=command_id)
        await pages.create(tx, number, self._page_size, delivery.messages_per_hour)
        sentence = "Confirmed: sending begins at the contact date."
        if delivery.contact_date is None or delivery.contact_date <= now:
            state = await deliveries.move(tx, number, Move.START)
            sentence = "Confirmed: sending has begun."
        return Reply(
            command_id=command_id, delivery_id=number, status=Status.ACCEPTED, message=sentence, state=state
        )

    async def _control(
        self, tx: Transaction, command_id: str, command: Control, delivery: Delivery, move: Move
    ) -> Reply:
        number = delivery.delivery_id
        if delivery.state in targets(move):
            return Reply(
                command_id=command_id,
                delivery_id=number,
                status=Status.ACCEPTED,
                message=f"Nothing to do: the delivery is {words(delivery.state)} already.",
                state=delivery.state,
            )
        to = await deliveries.paused_in(tx, number) if move is Move.RESUME else None
        state = None
        if delivery.state in sources(move):
            state = await deliveries.move(
                tx,
                number,
                move,
                to=to,
                operator=command.operator,
                reason=command.reason,
                command_id=command_id,
            )
        if state is None:
            refused = Refused(
                Reason.WRONG_STATE, f"It cannot be {_DONE[move]}: the delivery is {words(delivery.state)}."
            )
            return _refused(command_id, command, refused, delivery)
        if move is Move.STOP:
            await accounts.cancel_remaining(tx, number)
        if move is Move.RESUME:
            await pages.reopen_all(tx, number)
        return Reply(
            command_id=command_id,
            delivery_id=number,
            status=Status.ACCEPTED,
            message=f"The delivery is {_DONE[move]}.",
            state=state,
        )


def _read(command_id: str, message: Incoming) -> tuple[Confirm | Control | None, Reply]:
    if message.routing_key not in (routing.CONFIRM, *_MOVES):
        return None, _malformed(command_id, f"There is no command “{message.routing_key}”.")
    model = Confirm if message.routing_key == routing.CONFIRM else Control
    try:
        return model.model_validate_json(message.body), _malformed(command_id, "")
    except ValidationError as error:
        return None, _malformed(command_id, f"The command could not be read: {explain(error)}")


def _again(known: commands.Recorded, message: Incoming, body: str) -> Reply:
    if (known.command, known.publisher, known.body) == (message.routing_key, message.user_id, body):
        return known.reply
    return _malformed(
        known.reply.command_id, "Another command was sent with this message_id. Give each its own."
    )


def _malformed(command_id: str, sentence: str) -> Reply:
    return Reply(command_id=command_id, status=Status.INVALID, reason=Reason.MALFORMED, message=sentence)


def _refused(
    command_id: str, command: Confirm | Control | None, refused: Refused, delivery: Delivery | None
) -> Reply:
    return Reply(
        command_id=command_id,
        delivery_id=command.delivery_id if command else None,
        status=Status.REFUSED,
        reason=refused.reason,
        message=refused.message,
        state=delivery.state if delivery else None,
    )
