"""What operators do: each act is the command that everybody else publishes, with an id made with its form.

A form that is sent twice, or a page that is loaded again, is one command: the second one gets the recorded
answer. What is shown is that answer, read from the command log.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter, ValidationError
from starlette.responses import RedirectResponse

from contracts import routing
from contracts.base import explain
from contracts.commands import ComputeStats, Confirm, Control, Reply, Status, Summary
from contracts.stats import Stats
from worker.amqp.errors import BrokerForbids, BrokerUnreachable
from worker.amqp.messages import Unroutable
from worker.amqp.pika.client import NoAnswer
from worker.domain.settlement import Settlement
from worker.operations import settle as settling
from worker.operations.proof import ProofRequest
from worker.web.console.deliveries import read_delivery
from worker.web.console.parts import absent, forbidden, read_number, text_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from contracts.base import Message
    from worker.web.console.parts import Console
    from worker.web.console.people import Person

_SECONDS: Final = 5.0
"""How long an answer is waited for before the page says that it waits."""
_STATS_SECONDS: Final = 30.0
_STATS_KEPT: Final = 600
"""How long a form of *compute stats* gets the same answer again."""
_NO_NUMBER: Final = "The form has no number of its own. Load the page again."

_CONTROL: Final = {"pause": routing.PAUSE, "resume": routing.RESUME, "stop": routing.STOP}
_ANSWER: Final[TypeAdapter[Stats | Reply]] = TypeAdapter(Stats | Reply)


async def confirm(console: Console, request: Request) -> Response:
    """*Confirm send*: asks for the summary that a person must see. Nothing is sent yet."""
    number = await _may_act(console, request)
    form = await _form(request)
    return await _publish(
        console, request, form, routing.CONFIRM, f"/deliveries/{number}/confirm", definitive=False
    )


async def dialog(console: Console, request: Request) -> Response:
    """Shows the dialog with the summary, and *OK*."""
    row = await read_delivery(console, request)
    number = row["delivery_id"]
    command = text_of(request, "command") or ""
    answered = await console.reads.command(command)
    if answered is not None and (
        answered["delivery_id"] != number or answered["status"] != Status.FINALIZE.value
    ):
        return RedirectResponse(f"/deliveries/{number}?command={command}", 303)
    summary = Summary.model_validate_json(_json(answered["reply"]["summary"])) if answered else None
    return console.draw(
        request, "confirm.html", row=row, summary=summary, message_id=str(uuid.uuid4()), command=command
    )


async def send(console: Console, request: Request) -> Response:
    """*OK* of the dialog: starts the delivery, as it was prepared when the person saw it."""
    number = await _may_act(console, request)
    form = await _form(request)
    seen = form.get("preparation", "")
    return await _publish(
        console,
        request,
        form,
        routing.CONFIRM,
        f"/deliveries/{number}",
        definitive=True,
        preparation=read_number(seen, 2**31 - 1) or None,
    )


async def control(console: Console, request: Request) -> Response:
    """Pauses, resumes or stops."""
    number = await _may_act(console, request)
    form = await _form(request)
    name = request.path_params["act"]
    if name not in _CONTROL:
        raise absent(f"There is no command “{name}”.")
    return await _publish(
        console, request, form, _CONTROL[name], f"/deliveries/{number}", reason=form.get("reason", "").strip()
    )


async def stats(console: Console, request: Request) -> Response:
    """Recounts, and shows the KPIs and the drift."""
    row = await read_delivery(console, request)
    if request.state.person.read_only:
        raise forbidden(request.state.person.cannot_start)
    number = row["delivery_id"]
    command_id = _command_id(await _form(request))
    if command_id is None:
        return console.said(request, 400, _NO_NUMBER, back=number)

    async def ask() -> bytes:
        body = ComputeStats(delivery_id=number)
        return await console.ask(
            routing.COMPUTE_STATS, body, seconds=_STATS_SECONDS, token=None, command_id=command_id
        )

    try:
        told = await console.recounts.get((number, command_id), ask, seconds=_STATS_KEPT)
    except (BrokerUnreachable, BrokerForbids, Unroutable, NoAnswer) as error:
        return console.said(request, 503, str(error), back=number)
    answer = _ANSWER.validate_json(told)
    if isinstance(answer, Reply):
        return console.said(request, 409, answer.message, back=number)
    return console.draw(request, "stats.html", row=row, stats=answer.model_dump(), panel="stats")


async def settle(console: Console, request: Request) -> Response:
    """Settles unknown outcomes: all, or those that are named."""
    number = await _may_act(console, request)
    form = await _form(request)
    person: Person = request.state.person
    command_id = _command_id(form)
    if command_id is None:
        return console.said(request, 400, _NO_NUMBER, back=number)
    try:
        how = Settlement(form.get("how", ""))
    except ValueError:
        return console.said(request, 400, "Say what they become: resend, sent or error.", back=number)
    named = tuple(sorted({read_number(n, 2**31 - 1) for n in form.get("recipients", "").split()}))
    if 0 in named:
        return console.said(
            request, 400, "Name recipients by their numbers, with spaces between.", back=number
        )
    asked = settling.SettlementRequest(number, how, person.name, named, person.bearer, command_id)
    done = await settling.settle(console.db, asked)
    if done.before:
        return console.said(request, 200, f"This was done before: {done.before}", back=number)
    if done.refused is not None:
        said = (
            f"After {done.settled:,} outcomes: {done.refused.message}"
            if done.settled
            else done.refused.message
        )
        return console.said(request, 409, said, back=number)
    return RedirectResponse(f"/deliveries/{number}/log?status=unknown&settled={done.settled}&how={how}", 303)


async def proof(console: Console, request: Request) -> Response:
    """Sends what a recipient would get to a tester, once for each form."""
    number = await _may_act(console, request)
    form = await _form(request)
    person: Person = request.state.person
    command_id, tester = _command_id(form), form.get("to", "").strip()[:1_000]
    recipient = read_number(request.path_params["recipient"], 2**31 - 1)
    if command_id is None:
        return console.said(request, 400, _NO_NUMBER, back=number)
    if not tester:
        return console.said(request, 400, "Name the address that the proof goes to.", back=number)
    reply = await console.prove(
        ProofRequest(command_id, number, tester, recipient, person.name, person.bearer)
    )
    status = {Status.ACCEPTED: 200, Status.INVALID: 400}.get(reply.status, 409)
    return console.said(request, status, reply.message, back=number)


async def _may_act(console: Console, request: Request) -> int:
    """Returns the delivery's number.

    Raises:
        HTTPException: There is no such delivery, or the person may only look.
    """
    row = await read_delivery(console, request)
    person: Person = request.state.person
    if person.read_only:
        raise forbidden(person.cannot_start)
    number: int = row["delivery_id"]
    return number


def _command_id(form: dict[str, str]) -> str | None:
    """Returns the number that a form got when it was drawn; None if it has none."""
    try:
        return str(uuid.UUID(form.get("command", "")))
    except ValueError:
        return None


async def _form(request: Request) -> dict[str, str]:
    async with request.form(max_files=0, max_fields=20) as form:
        return {name: value for name, value in form.items() if isinstance(value, str)}


async def _publish(
    console: Console,
    request: Request,
    form: dict[str, str],
    routing_key: str,
    then: str,
    **fields: Any,  # noqa: ANN401
) -> Response:
    """Publishes a command, and leads to the page that shows its answer.

    That page waits for an answer which does not come soon: the command is carried out when it can be.
    """
    person: Person = request.state.person
    number = read_number(request.path_params["delivery"], 2**63 - 1)
    command_id = _command_id(form)
    if command_id is None:
        return console.said(request, 400, _NO_NUMBER, back=number)
    model = Confirm if routing_key == routing.CONFIRM else Control
    try:
        body: Message = model(delivery_id=number, operator=person.name, **fields)
    except ValidationError as error:
        return console.said(request, 400, explain(error), back=number)
    try:
        await console.ask(routing_key, body, seconds=_SECONDS, token=person.token, command_id=command_id)
    except NoAnswer:
        pass  # it is queued, and the page says so
    except (BrokerUnreachable, BrokerForbids, Unroutable) as error:
        # The same form with the same id: nobody knows whether the broker has it, and twice is once.
        return console.said(request, 503, str(error), back=number, again=form, action=request.url.path)
    return RedirectResponse(f"{then}?command={command_id}", 303)


def _json(value: object) -> str:
    return TypeAdapter(Any).dump_json(value).decode()
