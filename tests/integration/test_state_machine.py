"""Random sequences of commands, moves of the clock and of the queue, against the real database.

The rules are the service's own, called as its consumer calls them; what is checked is that no state is
reached but by a legal move, that every command has one answer for good, and that the accounts balance after
every step.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from contracts import routing
from contracts.results import Bounce, BounceKind, BounceReason, Error, Fault, Sent
from contracts.states import State
from tests.support.claims import claim, expire
from worker.amqp.messages import Incoming
from worker.bootstrap import open_worker
from worker.db.accounts import Accounts
from worker.db.deliveries import Deliveries
from worker.db.pages import Pages, Turn
from worker.domain.outcomes import fold
from worker.domain.retry import Retries
from worker.domain.settlement import Settlement
from worker.domain.states import MOVES, OVER, RUNNING, UNDER_WAY
from worker.operations import settle
from worker.operations.prepare import PreparationRefused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from contracts.commands import Reply
    from tests.support.stack import Stack
    from worker.bootstrap import Worker
    from worker.db.pool import Database

RECIPIENTS = 6
EXAMPLES = 60
LEGAL = {(a, b) for origins, goals in MOVES.values() for a in origins for b in goals}
# A result is of the past, so that its retry is due at once.
RETRIES = Retries((60,), 3)
AT = "2026-11-23T10:00:00Z"
MOSTLY_FALSE = st.sampled_from([False, False, False, True])
MOSTLY_ANA = st.sampled_from(["ana", "ana", "ana", "paul"])


class DeliveryMachine(RuleBasedStateMachine):
    """One delivery, and everything that may happen to it."""

    stack: Stack
    worker: Worker
    loop: asyncio.AbstractEventLoop
    commands = Bundle("commands")

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, Reply] = {}
        self.count = 0

    def do(self, action: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(action)

    @initialize(confirmed=st.booleans())
    def prepare_it(self, *, confirmed: bool) -> None:
        (self.confirming,) = self.worker.build("confirm")
        (self.clock,) = self.worker.build("schedule")
        self.number = self.do(self.stack.prepare(RECIPIENTS))
        self.preparation = 1
        if confirmed:
            body = {"preparation": 1, "definitive": True, "operator": "ana"}
            self.deliver_it(self.message(routing.CONFIRM, body))

    @rule(contact=st.sampled_from(["", "[schedule]\ncontact_date = 2099-01-01T09:00:00Z"]))
    def prepare_again(self, contact: str) -> None:
        before = self.state()
        try:
            self.do(self.stack.prepare(RECIPIENTS, extra=contact, delivery=self.number))
        except PreparationRefused:
            assert before not in {State.READY, State.PREPARATION_FAILED}
        else:
            assert before in {State.READY, State.PREPARATION_FAILED}
            self.preparation += 1

    @rule(
        target=commands,
        stale=MOSTLY_FALSE,
        definitive=st.sampled_from([True, True, False]),
        operator=MOSTLY_ANA,
        late=MOSTLY_FALSE,
    )
    def confirm(self, *, stale: bool, definitive: bool, operator: str, late: bool) -> Incoming:
        preparation = max(self.preparation - stale, 1)
        body = {"preparation": preparation, "definitive": definitive, "operator": operator}
        return self.send(self.message(routing.CONFIRM, body), late=late)

    @rule(
        target=commands,
        key=st.sampled_from([routing.PAUSE] * 3 + [routing.RESUME] * 3 + [routing.STOP]),
        operator=MOSTLY_ANA,
        late=MOSTLY_FALSE,
    )
    def control(self, *, key: str, operator: str, late: bool) -> Incoming:
        return self.send(self.message(key, {"operator": operator, "reason": "why not"}), late=late)

    def send(self, command: Incoming, *, late: bool) -> Incoming:
        """Sends a command: delivered now, or not before `deliver` picks it, after others that came later."""
        if not late:
            self.deliver_it(command)
        return command

    @rule(command=commands)
    def deliver(self, command: Incoming) -> None:
        self.deliver_it(command)

    def deliver_it(self, command: Incoming) -> None:
        before = self.state()
        reply = self.do(self.confirming.handle(command))
        known = self.answers.setdefault(str(command.message_id), reply)
        assert reply == known
        if reply.status != "accepted":
            assert self.state() == before
        if b'"paul"' in command.body:
            assert reply.reason == "role_missing"

    @rule(first=st.integers(1, RECIPIENTS), last=st.integers(1, RECIPIENTS), attempt=st.integers(1, 3))
    def claim(self, first: int, last: int, attempt: int) -> None:
        wanted = {r: (attempt, f"user{r}@example.org") for r in range(first, last + 1)}
        granted = self.do(claim(self.stack.db, self.number, wanted)) if wanted else set()
        if granted:
            assert self.state() in {State.IN_PROGRESS, State.RETRY_PENDING}

    @rule(
        recipient=st.integers(1, RECIPIENTS),
        kind=st.sampled_from(["sent", "hard", "soft", "soft", "ignored", "error", "flaky"]),
        attempt=st.integers(1, 3),
    )
    def result(self, recipient: int, kind: str, attempt: int) -> None:
        if not self.do(Accounts(self.stack.db).audience_sizes([self.number])):
            return
        facts = fold([_result(self.number, recipient, kind, attempt)])
        known = {r: f for (_, r), f in facts.items()}
        self.do(Accounts(self.stack.db).record(self.number, known, RETRIES))
        self.do(Deliveries(self.stack.db).finish(self.number))

    @rule()
    def claims_run_out(self) -> None:
        self.do(expire(self.stack.db, self.number))

    @rule(how=st.sampled_from(Settlement), operator=MOSTLY_ANA)
    def settle_unknown(self, *, how: Settlement, operator: str) -> None:
        before = self.do(self.stack.deployment(self.number))
        done = self.do(settle.settle(self.stack.db, settle.SettlementRequest(self.number, how, operator)))
        if done.refused is None:
            assert operator == "ana"
            assert done.settled == before["unknown"]
        else:
            assert done.settled == 0

    @rule()
    def the_contact_date_comes(self) -> None:
        self.execute("UPDATE sendoff.delivery_record SET contact_date = now() WHERE delivery_id = $1")

    @rule(now=MOSTLY_FALSE)
    def the_validity_ends(self, *, now: bool) -> None:
        if now:
            self.execute(
                "UPDATE sendoff.delivery_record SET valid_until = now()"
                " WHERE delivery_id = $1 AND valid_until > now()"
            )

    @rule()
    def tick(self) -> None:
        self.do(self.clock.start_due())
        self.do(self.clock.handle())

    @rule()
    def fan_out(self) -> None:
        leased = self.do(
            Pages(self.stack.db).lease(Turn(0, ["email", "null"]), limit=50, seconds=60, owner="me")
        )
        for page in leased:
            self.do(Pages(self.stack.db).published(page, "me", 60))

    @invariant()
    def the_accounts_balance(self) -> None:
        if not hasattr(self, "number"):
            return
        row = self.do(self.stack.deployment(self.number))
        query = "SELECT status, count(*)::int AS n FROM sendoff.sending_log WHERE delivery_id = $1 GROUP BY 1"
        states = self.do(self.stack.rows(query, self.number))
        by_status = {s["status"]: s["n"] for s in states}
        for status in ("sent", "bounced", "error", "unknown", "sending", "pending", "retrying", "cancelled"):
            assert row[{"error": "errors"}.get(status, status)] == by_status.get(status, 0), status
        if row["state"] in ("finished", "stopped", "failed"):
            assert row["retrying"] == 0

    @invariant()
    def every_move_was_legal(self) -> None:
        if not hasattr(self, "number"):
            return
        moves = self.do(
            self.stack.rows(
                "SELECT from_state, to_state FROM sendoff.delivery_transition"
                " WHERE delivery_id = $1 ORDER BY number",
                self.number,
            )
        )
        chain = [State.EDITING, *(State(m["to_state"]) for m in moves)]
        assert all((State(m["from_state"]), State(m["to_state"])) in LEGAL for m in moves)
        assert [State(m["from_state"]) for m in moves] == chain[:-1]
        assert self.state() == chain[-1]

    def message(self, key: str, body: dict[str, Any]) -> Incoming:
        self.count += 1
        raw = json.dumps({"delivery_id": self.number, **body}).encode()
        return Incoming(raw, "", key, f"{self.number}-{self.count}", None, None, None, {}, 1, None)  # type: ignore[arg-type]

    def state(self) -> State:
        return State(self.do(self.stack.deployment(self.number))["state"])

    def execute(self, statement: str) -> None:
        async def run() -> None:
            async with self.stack.db.transaction() as tx:
                await tx.connection.execute(statement, self.number)

        self.do(run())


def _result(number: int, recipient: int, kind: str, attempt: int) -> Sent | Bounce | Error:
    common = json.dumps({"delivery_id": number, "recipient": recipient, "attempt": attempt, "at": AT})
    sent = Sent.model_validate_json(common)
    fields: dict[str, Any] = sent.model_dump(include={"delivery_id", "recipient", "attempt", "at"})
    if kind == "sent":
        return sent
    if kind in ("error", "flaky"):
        return Error(**fields, reason="connection", retryable=kind == "flaky")
    return Bounce(**fields, kind=BounceKind(kind), reason=BounceReason.SPAM, fault=Fault.SENDER)


@pytest.fixture
async def loop() -> asyncio.AbstractEventLoop:
    """The loop of the test's fixtures, at rest while a test that is no coroutine runs."""
    return asyncio.get_running_loop()


@pytest.fixture
async def worker(stack: Stack) -> AsyncIterator[Worker]:
    await stack.operator("paul", "prepare_deliveries")
    async with open_worker(stack.settings) as opened:
        yield opened


@pytest.mark.timeout(300)
def test_no_sequence_of_commands_and_losses_breaks_a_rule(
    stack: Stack, worker: Worker, loop: asyncio.AbstractEventLoop
) -> None:
    DeliveryMachine.stack, DeliveryMachine.worker, DeliveryMachine.loop = stack, worker, loop
    profile = settings(
        max_examples=EXAMPLES, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(DeliveryMachine, settings=profile)


async def test_the_database_groups_states_as_the_code_does(db: Database) -> None:
    groups = {"running": RUNNING, "under_way": UNDER_WAY, "over": OVER}
    async with db.session() as session:
        rows = await session.connection.fetch(
            "INSERT INTO sendoff.delivery_record (state, paused_in)"
            " SELECT s, CASE s WHEN 'paused' THEN 'in_progress' END FROM unnest($1::text[]) AS s RETURNING *",
            list(State),
        )
    found = {name: {State(row["state"]) for row in rows if row[name]} for name in groups}
    assert found == {name: set(states) for name, states in groups.items()}
