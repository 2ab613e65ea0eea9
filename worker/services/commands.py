"""The commands of an operator: confirm, pause, resume, stop. Each is executed once, its answer never changes.

One transaction reads and writes the role, the state and the answer. So a command is either wholly executed
and answered, or it is not executed, and the broker delivers it again.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import structlog
from pydantic import ValidationError

from contracts import routing
from contracts.base import explain
from contracts.commands import Confirm, Control, Reason
from contracts.states import State
from worker.amqp.octets import storable
from worker.amqp.requests import reply_to, take_each
from worker.crashing import crash_point
from worker.db.retrying import Idempotent
from worker.domain.answers import OTHER_COMMAND, accepted, finalize, malformed, refusal
from worker.domain.approval import Approval, ask, decide, lapsed, shown_approval
from worker.domain.authority import acting_operator
from worker.domain.confirmation import check_confirm, summary
from worker.domain.deliveries import unknown_delivery, validity_end, words
from worker.domain.operators import Role, refuse_operator
from worker.domain.preflight import findings, refuse_findings
from worker.domain.refusals import Refused
from worker.domain.states import Move, sources, targets
from worker.telemetry.metrics import OTHER

if TYPE_CHECKING:
    from collections.abc import Hashable
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from contracts.commands import Reply
    from worker.amqp.dead import Burying
    from worker.amqp.messages import Consumer, Incoming, Publisher
    from worker.db.commands import RecordedCommand
    from worker.db.retrying import Retrying
    from worker.domain.approval import ApprovalRule
    from worker.domain.authority import Bearer
    from worker.domain.deliveries import Delivery, Waves
    from worker.domain.operators import Operator
    from worker.domain.preflight import Findings, Others
    from worker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_MOVES: Final = {routing.PAUSE: Move.PAUSE, routing.RESUME: Move.RESUME, routing.STOP: Move.STOP}
_COMMANDS: Final = (routing.CONFIRM, *_MOVES)
_DONE: Final = {Move.PAUSE: "paused", Move.RESUME: "resumed", Move.STOP: "stopped"}
_BODY_KEPT: Final = 10_000

PREFETCH: Final = 64
"""Commands in hand, many more than are executed at once: a stop behind so many confirms is seen."""


class Execution(Protocol):
    """What one command reads and writes within its transaction: `worker.db.executions.Execution`."""

    async def recorded(self, command_id: str) -> RecordedCommand | None:
        """Looks up an answer. Until the transaction ends, nobody else answers the same command."""

    async def record(
        self, *, command: str, operator: str | None, publisher: str | None, body: str, reply: Reply
    ) -> None:
        """Records a command with its answer."""

    async def operator(self, name: str) -> Operator | None:
        """Reads an operator."""

    async def close_claims(self, delivery_id: int) -> None:
        """Waits for the claims under way, and blocks new ones until the transaction ends."""

    async def delivery(self, delivery_id: int) -> Delivery | None:
        """Reads and locks a delivery's row."""

    async def now(self) -> datetime:
        """Returns the database's time, by which everything is decided."""

    async def excluded_by_cause(self, delivery_id: int) -> dict[str, int]:
        """Counts the targets that the preparation left out, by cause."""

    async def others(self, delivery_id: int) -> Others:
        """Reads what the preflight found, and what it compares with."""

    async def waves(self, delivery_id: int) -> Waves:
        """Reads the first waves, and the number of all."""

    async def authorise(self, delivery_id: int, operator: str, *, by_token: bool) -> None:
        """Records under whose authority the delivery starts."""

    async def approve(self, delivery_id: int, first: Approval | None) -> None:
        """Records the first of two OKs, or that there is none."""

    async def confirm(self, delivery_id: int, operator: str, valid_until: datetime) -> None:
        """Records who confirmed, and the validity."""

    async def move(
        self,
        delivery_id: int,
        by: Move,
        *,
        to: State | None = None,
        operator: str | None = None,
        reason: str | None = None,
        command_id: str | None = None,
    ) -> State | None:
        """Moves the delivery; returns the new state, or None if somebody moved it first."""

    async def paused_in(self, delivery_id: int) -> State | None:
        """Returns the state that a paused delivery goes back to."""

    async def create_pages(
        self, delivery_id: int, recipients: int, page_size: int, messages_per_hour: int | None
    ) -> None:
        """Creates the pages."""

    async def reopen_pages(self, delivery_id: int) -> None:
        """Opens every published page, to be published again."""

    async def cancel_remaining(self, delivery_id: int) -> None:
        """Counts the recipients that were not tried as cancelled."""


class Executions(Protocol):
    """Opens the transactions in which commands are executed: `worker.db.executions.Executions`."""

    def begin(self) -> AbstractAsyncContextManager[Execution]:
        """Opens a transaction. An exception in the block rolls it back."""


class Authority(Protocol):
    """Identifies the sender of a command: `worker.auth.authority.Authority`."""

    def identify(self, message: Incoming, operator: str | None) -> Bearer | Refused | None:
        """Returns the bearer of a command's token, None if no token is required, or the refusal."""


@dataclass(frozen=True, slots=True)
class ConfirmParts:
    """What the service works with."""

    consumer: Consumer
    """Reads the queue of commands."""
    publisher: Publisher
    """Publishes the answers."""
    dead: Burying
    """Takes messages that cannot be answered."""
    executions: Executions
    """The transactions of commands."""
    retrying: Retrying
    """Carries transactions out."""
    authority: Authority
    """Says who may publish commands."""
    metrics: Metrics
    """The metrics."""


@dataclass(frozen=True, slots=True)
class ConfirmLimits:
    """The limits of the service."""

    page_size: int
    """Recipients in a page of a delivery that is neither limited nor very large."""
    approvals: ApprovalRule
    """Which deliveries need the OK of two operators."""
    at_once: int
    """Confirms that are executed side by side, each over a connection, and as many commands of control."""
    blocks: tuple[str, ...] = ()
    """The checks of the preflight whose findings block."""


class ConfirmService:
    """Consumes commands: those of one delivery one after the other, those of different ones side by side.

    Confirms and control have places of their own, so that a stop never waits for the confirms of others.
    """

    name = "confirm"

    def __init__(self, parts: ConfirmParts, limits: ConfirmLimits) -> None:
        """Takes its parts and its limits."""
        self._parts = parts
        self._page_size = limits.page_size
        self._approvals = limits.approvals
        self._blocks = limits.blocks
        self._confirms = asyncio.Semaphore(limits.at_once)
        self._controls = asyncio.Semaphore(limits.at_once)

    async def run(self, stop: asyncio.Event) -> None:
        """Answers commands until `stop`."""
        await take_each(self._parts.consumer, self._parts.dead, self.handle, self._place, stop)

    async def handle(self, message: Incoming) -> Reply:
        """Executes a command in one transaction, records the answer, and publishes it to `reply_to`.

        Args:
            message: The command. One that was answered before gets the same answer again.

        Returns:
            The answer, also for refused and invalid commands.

        Raises:
            Busy, Unstorable, Broken, Stopped: as `worker.db.retrying.Retrier.until_done`.
        """
        answering = Idempotent(lambda: self._answer(message))
        reply = await self._parts.retrying.until_done(answering, "answering a command")
        crash_point("command.committed")
        reason = reply.reason.value if reply.reason else None
        log.info(
            "command",
            command=message.routing_key,
            command_id=reply.command_id,
            delivery_id=reply.delivery_id,
            status=reply.status.value,
            reason=reason,
        )
        label = message.routing_key if message.routing_key in _COMMANDS else OTHER
        self._parts.metrics.commands.labels(label, reply.status.value, reason or "").inc()
        if message.reply_to:
            body = reply.model_dump_json().encode()
            await reply_to(self._parts.publisher, message, body, routing.TYPE_REPLY)
        return reply

    def _place(self, message: Incoming) -> tuple[Hashable, asyncio.Semaphore]:
        command, _ = _read("", message)
        line = command.delivery_id if command else id(message)
        return line, self._confirms if message.routing_key == routing.CONFIRM else self._controls

    async def _answer(self, message: Incoming) -> Reply:
        command_id = storable(message.message_id or "")[:200]
        name = storable(message.routing_key)
        body = storable(message.body.decode("utf-8", "replace"))[:_BODY_KEPT]
        async with self._parts.executions.begin() as execution:
            if not command_id:
                command_id = f"unidentified-{uuid.uuid4()}"
                reply = malformed(command_id, "The message_id is missing: it makes a repeated command safe.")
                command = None
            else:
                known = await execution.recorded(command_id)
                if known is not None:
                    return _again(known, message, name, body)
                command, reply = _read(command_id, message)
                speaker = self._parts.authority.identify(message, command.operator if command else None)
                if isinstance(speaker, Refused):
                    named = command.delivery_id if command else None
                    reply = refusal(command_id, named, speaker, None)
                elif command is not None:
                    reply = await self._carry_out(
                        execution, command_id, message.routing_key, command, speaker
                    )
            await execution.record(
                command=name,
                operator=command.operator if command else None,
                publisher=message.user_id,
                body=body,
                reply=reply,
            )
            crash_point("command.carried-out")
        return reply

    async def _carry_out(
        self,
        execution: Execution,
        command_id: str,
        routing_key: str,
        command: Confirm | Control,
        bearer: Bearer | None,
    ) -> Reply:
        operator = acting_operator(await execution.operator(command.operator), bearer)
        number = command.delivery_id
        if isinstance(command, Confirm):
            delivery = await execution.delivery(number)
            now = await execution.now()
            refused = check_confirm(command, operator, delivery, now)
            if refused is None and delivery is not None and command.definitive:
                refused = refuse_findings(await self._found(execution, delivery))
            if refused is not None or delivery is None:
                return refusal(command_id, number, refused or unknown_delivery(number), delivery)
            if not command.definitive:
                return await self._summarise(execution, command_id, command, delivery, now)
            until = now + self._approvals.within
            given = Approval(command.operator, bearer is not None, delivery.preparation, now, until)
            listed = await _first_operator(execution, delivery)
            decision = decide(delivery, listed, given, self._approvals, now)
            if decision.first != delivery.first_approval:
                await execution.approve(number, decision.first)
            if decision.refused is not None:
                return refusal(command_id, number, decision.refused, delivery)
            await execution.authorise(number, command.operator, by_token=bearer is not None)
            return await self._confirm(execution, command_id, command, delivery, decision.first, now)
        move = _MOVES[routing_key]
        refused = refuse_operator(
            operator, command.operator, Role.START_DELIVERIES, f"{move.value} a delivery"
        )
        if refused is None:  # else nobody's claims are held up
            # Before the row's lock: claims hold this lock and then read the row.
            await execution.close_claims(number)
        delivery = await execution.delivery(number)
        if refused is not None or delivery is None:
            return refusal(command_id, number, refused or unknown_delivery(number), delivery)
        if move is Move.RESUME and delivery.state is State.PAUSED:
            await execution.authorise(number, command.operator, by_token=bearer is not None)
        return await self._control(execution, command_id, command, delivery, move)

    async def _summarise(
        self, execution: Execution, command_id: str, command: Confirm, delivery: Delivery, now: datetime
    ) -> Reply:
        excluded = await execution.excluded_by_cause(delivery.delivery_id)
        waves = await execution.waves(delivery.delivery_id)
        people = "recipient" if delivery.to_deliver == 1 else "recipients"
        asks, approvals = "Confirm to send it.", None
        if self._approvals.needs_second(delivery.to_deliver):
            first = delivery.first_approval
            listed = await _first_operator(execution, delivery)
            first = None if first and lapsed(first, listed, delivery.preparation, now) else first
            asks, approvals = ask(first, command.operator), shown_approval(first, self._approvals)
        sentence = f"“{delivery.label}” goes to {delivery.to_deliver} {people}. {asks}"
        shown = summary(delivery, excluded, waves, now, approvals, await self._found(execution, delivery))
        return finalize(command_id, delivery, sentence, shown)

    async def _found(self, execution: Execution, delivery: Delivery) -> Findings:
        return findings(delivery.to_deliver, await execution.others(delivery.delivery_id), self._blocks)

    async def _confirm(
        self,
        execution: Execution,
        command_id: str,
        command: Confirm,
        delivery: Delivery,
        first: Approval | None,
        now: datetime,
    ) -> Reply:
        who, number = command.operator, delivery.delivery_id
        await execution.confirm(number, who, validity_end(delivery, now))
        state = await execution.move(number, Move.CONFIRM, operator=who, command_id=command_id)
        await execution.create_pages(number, delivery.to_deliver, self._page_size, delivery.messages_per_hour)
        sentence = f"Confirmed by “{first.operator}” and “{who}”" if first else "Confirmed"
        if delivery.contact_date is not None and delivery.contact_date > now:
            return accepted(command_id, delivery, f"{sentence}: sending begins at the contact date.", state)
        state = await execution.move(number, Move.START)
        return accepted(command_id, delivery, f"{sentence}: sending has begun.", state)

    async def _control(
        self, execution: Execution, command_id: str, command: Control, delivery: Delivery, move: Move
    ) -> Reply:
        number = delivery.delivery_id
        if delivery.state in targets(move):
            sentence = f"Nothing to do: the delivery is {words(delivery.state)} already."
            return accepted(command_id, delivery, sentence, delivery.state)
        to = await execution.paused_in(number) if move is Move.RESUME else None
        state = None
        if delivery.state in sources(move):
            state = await execution.move(
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
            return refusal(command_id, number, refused, delivery)
        if move is Move.STOP:
            await execution.cancel_remaining(number)
        if move is Move.RESUME:
            await execution.reopen_pages(number)
        return accepted(command_id, delivery, f"The delivery is {_DONE[move]}.", state)


async def _first_operator(execution: Execution, delivery: Delivery) -> Operator | None:
    first = delivery.first_approval
    return await execution.operator(first.operator) if first else None


def _read(command_id: str, message: Incoming) -> tuple[Confirm | Control | None, Reply]:
    if message.routing_key not in _COMMANDS:
        return None, malformed(command_id, f"There is no command “{storable(message.routing_key)}”.")
    model = Confirm if message.routing_key == routing.CONFIRM else Control
    try:
        return model.model_validate_json(message.body), malformed(command_id, "")
    except ValidationError as error:
        return None, malformed(command_id, f"The command could not be read: {explain(error)}")


def _again(known: RecordedCommand, message: Incoming, name: str, body: str) -> Reply:
    if (known.command, known.publisher, known.body) == (name, message.user_id, body):
        return known.reply
    return malformed(known.reply.command_id, OTHER_COMMAND)
