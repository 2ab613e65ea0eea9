"""Commands without a database: the transactions that they are executed in, and a confirm service on them."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from contracts import routing
from contracts.states import State
from tests.support.fakes import FakeConsumer, FakeDead, FakePublisher, FakeRetrying, incoming, metrics
from worker.db.commands import RecordedCommand
from worker.domain.approval import ApprovalRule
from worker.domain.deliveries import Delivery, Waves
from worker.domain.operators import Operator, Role
from worker.domain.preflight import Others
from worker.domain.states import Move, sources, target
from worker.services.commands import ConfirmLimits, ConfirmParts, ConfirmService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from contracts.commands import Reply
    from worker.amqp.messages import Incoming
    from worker.domain.approval import Approval
    from worker.domain.authority import Bearer
    from worker.domain.refusals import Refused

PAST, FUTURE = datetime(2020, 1, 1, tzinfo=UTC), datetime(2099, 1, 1, tzinfo=UTC)
STARTER = frozenset({Role.START_DELIVERIES})
ONE_OK = ApprovalRule(0, timedelta(hours=24))
DELIVERY = Delivery(
    delivery_id=7,
    label="Test",
    channel="null",
    state=State.READY,
    preparation=2,
    to_deliver=4,
    contact_date=None,
    time_zone=None,
    valid_for=timedelta(days=3),
    valid_until=None,
    confirmed_at=None,
    messages_per_hour=600,
)


def confirm(message_id: str | None = "c1", **changes: Any) -> Incoming:
    body = {"delivery_id": 7, "operator": "ana", "preparation": 2, "definitive": True}
    return command(routing.CONFIRM, body | changes, message_id)


def control(key: str, message_id: str = "c1", **changes: Any) -> Incoming:
    return command(key, {"delivery_id": 7, "operator": "ana", "reason": "a test"} | changes, message_id)


def command(key: str, body: dict[str, Any], message_id: str | None = "c1") -> Incoming:
    return incoming(json.dumps(body).encode(), key, message_id=message_id, user_id="upstream")


class FakeExecution:
    """A transaction over one delivery, the operators and the answers; `did` lists what was done in it."""

    def __init__(self, delivery: Delivery | None) -> None:
        self.present = delivery
        self.operators = {
            "ana": Operator("ana", active=True, roles=STARTER),
            "ben": Operator("ben", active=True, roles=STARTER),
            "paul": Operator("paul", active=True, roles=frozenset({Role.PREPARE_DELIVERIES})),
        }
        self.answers: dict[str, RecordedCommand] = {}
        self.operator_of: dict[str, str | None] = {}
        self.did: list[Any] = []
        self.time = datetime.now(UTC)
        self.paused: State | None = None
        self.overtaken = False
        """Somebody else moves the delivery first."""
        self.fault: Exception | None = None
        self.found = Others()

    async def recorded(self, command_id: str) -> RecordedCommand | None:
        return self.answers.get(command_id)

    async def record(
        self, *, command: str, operator: str | None, publisher: str | None, body: str, reply: Reply
    ) -> None:
        if self.fault:
            raise self.fault
        assert reply.command_id not in self.answers
        self.answers[reply.command_id] = RecordedCommand(command, publisher, body, reply)
        self.operator_of[reply.command_id] = operator

    async def operator(self, name: str) -> Operator | None:
        return self.operators.get(name)

    async def close_claims(self, delivery_id: int) -> None:
        self.did.append(("close claims", delivery_id))

    async def delivery(self, delivery_id: int) -> Delivery | None:
        self.did.append(("lock", delivery_id))
        return self.present if self.present and self.present.delivery_id == delivery_id else None

    async def now(self) -> datetime:
        return self.time

    async def excluded_by_cause(self, delivery_id: int) -> dict[str, int]:
        return {"invalid": delivery_id}

    async def others(self, delivery_id: int) -> Others:  # noqa: ARG002
        return self.found

    async def waves(self, delivery_id: int) -> Waves:  # noqa: ARG002
        return Waves(0, ())

    async def authorise(self, delivery_id: int, operator: str, *, by_token: bool) -> None:
        self.did.append(("authorise", delivery_id, operator, by_token))

    async def approve(self, delivery_id: int, first: Approval | None) -> None:
        assert self.present is not None
        self.present = replace(self.present, first_approval=first)
        self.did.append(("approve", delivery_id, first))

    async def confirm(self, delivery_id: int, operator: str, valid_until: datetime) -> None:
        self.did.append(("confirm", delivery_id, operator, valid_until))

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
        assert self.present is not None
        state = to or target(by)
        if self.overtaken or self.present.state not in sources(by):
            return None
        self.present = replace(self.present, state=state)
        self.did.append((by, delivery_id, state, operator, reason, command_id))
        return state

    async def paused_in(self, delivery_id: int) -> State | None:  # noqa: ARG002
        return self.paused

    async def create_pages(
        self, delivery_id: int, recipients: int, page_size: int, messages_per_hour: int | None
    ) -> None:
        self.did.append(("create pages", delivery_id, recipients, page_size, messages_per_hour))

    async def reopen_pages(self, delivery_id: int) -> None:
        self.did.append(("reopen pages", delivery_id))

    async def cancel_remaining(self, delivery_id: int) -> None:
        self.did.append(("cancel remaining", delivery_id))


class FakeExecutions:
    """Transactions one after the other; what one did that raised is undone."""

    def __init__(self, delivery: Delivery | None) -> None:
        self.now = FakeExecution(delivery)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[FakeExecution]:
        before = self.now.present, dict(self.now.answers), list(self.now.did)
        try:
            yield self.now
        except BaseException:
            self.now.present, self.now.answers, self.now.did = before
            raise


class FakeAuthority:
    """Says the same of everybody."""

    def __init__(self, speaker: Bearer | Refused | None = None) -> None:
        self.speaker = speaker
        self.asked: list[str | None] = []

    def identify(self, message: Incoming, operator: str | None) -> Bearer | Refused | None:  # noqa: ARG002
        self.asked.append(operator)
        return self.speaker


class Setup:
    """A confirm service on fakes."""

    def __init__(
        self,
        delivery: Delivery | None = DELIVERY,
        *,
        speaker: Bearer | Refused | None = None,
        messages: Iterable[Incoming] = (),
        retrying: FakeRetrying | None = None,
        approvals: ApprovalRule = ONE_OK,
        blocks: tuple[str, ...] = (),
        **changes: Any,
    ) -> None:
        self.executions = FakeExecutions(delivery and replace(delivery, **changes))
        self.consumer = FakeConsumer(messages)
        self.publisher = FakePublisher()
        self.dead = FakeDead()
        self.authority = FakeAuthority(speaker)
        self.metrics = metrics()
        self.service = ConfirmService(
            ConfirmParts(
                consumer=self.consumer,
                publisher=self.publisher,
                dead=self.dead,
                executions=self.executions,
                retrying=retrying or FakeRetrying(),
                authority=self.authority,
                metrics=self.metrics,
            ),
            ConfirmLimits(page_size=100, approvals=approvals, at_once=2, blocks=blocks),
        )

    @property
    def execution(self) -> FakeExecution:
        return self.executions.now

    @property
    def did(self) -> list[Any]:
        """What was written; locks are left out."""
        return [done for done in self.execution.did if done[0] not in ("close claims", "lock")]

    @property
    def answers(self) -> dict[str, Reply]:
        return {name: known.reply for name, known in self.execution.answers.items()}
