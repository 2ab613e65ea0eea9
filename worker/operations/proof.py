"""Sends what a recipient would get to a tester. It reads, and touches no account."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from contracts.commands import Reply, Status
from contracts.sends import Send
from worker.channels.protocol import Proving
from worker.channels.registry import CHANNELS
from worker.db import commands, reading
from worker.db.deliveries import DeliveryContents
from worker.domain.answers import OTHER_COMMAND, malformed, refusal
from worker.domain.authority import acting_operator
from worker.domain.content import ContentInvalid
from worker.domain.operators import Role, refuse_operator
from worker.domain.verdicts import Accepted, Bounced, Failed, Unsure
from worker.settings import SettingsError

if TYPE_CHECKING:
    from worker.db.pool import Database, Transaction
    from worker.domain.authority import Bearer
    from worker.settings import Settings

COMMAND: Final = "delivery.proof"
"""The name in the command log, of a proof that has a number."""


class ProofRefused(Exception):
    """Nothing was sent; the message says why."""


@dataclass(frozen=True, slots=True)
class Proof:
    """A proof that the channel took."""

    recipient: int
    """The recipient whose message it is."""
    reply: str
    """The channel's answer."""


@dataclass(frozen=True, slots=True)
class ProofRequest:
    """A proof that an operator asks for, once."""

    command_id: str
    """The number of the request: the same one gets the same answer, and one proof is sent."""
    delivery_id: int
    tester: str
    """The address that gets it."""
    recipient: int
    """The recipient whose message it is."""
    operator: str
    bearer: Bearer | None = None
    """The bearer of a verified token, if tokens are required."""


async def prove_once(settings: Settings, db: Database, request: ProofRequest) -> Reply:
    """Sends a proof, unless the same request did so before; records it with its answer.

    It is recorded before it is sent: of a process that dies in between, nobody knows whether the proof went
    out, and it is not sent again. The command log is read by people who see no address. So it has a digest of
    the tester's.

    Args:
        settings: The settings, for the channel.
        db: The database.
        request: The request.

    Returns:
        The answer, also of a refusal.
    """
    async with db.transaction() as tx:
        known = await commands.recorded(tx, request.command_id)
        if known is not None:
            same = (known.command, known.body) == (COMMAND, _asked(request))
            return known.reply if same else malformed(request.command_id, OTHER_COMMAND)
        begun = await _begin(tx, request)
        await commands.record(
            tx,
            command=COMMAND,
            operator=request.operator,
            publisher=None,
            body=_asked(request),
            reply=begun,
        )
    if begun.status is Status.REFUSED:
        return begun
    refused = False
    try:
        sent = await prove(settings, db, request.delivery_id, request.tester, request.recipient)
        said = f"Sent what recipient {sent.recipient} would get, as a proof: {sent.reply}"
    except (ProofRefused, SettingsError) as error:
        said, refused = str(error), True
    status = Status.REFUSED if refused else Status.ACCEPTED
    reply = begun.model_copy(update={"message": said.replace(request.tester, "…"), "status": status})
    async with db.transaction() as tx:
        await commands.conclude(tx, reply)
    return reply


async def _begin(tx: Transaction, request: ProofRequest) -> Reply:
    operator = acting_operator(await commands.read_operator(tx, request.operator), request.bearer)
    refused = refuse_operator(operator, request.operator, Role.START_DELIVERIES, "send a proof")
    if refused is not None:
        return refusal(request.command_id, request.delivery_id, refused, None)
    return Reply(
        command_id=request.command_id,
        delivery_id=request.delivery_id,
        status=Status.ACCEPTED,
        message="The proof is being sent. Whether the relay took it is not known.",
    )


def _asked(request: ProofRequest) -> str:
    tester = hashlib.sha256(f"{request.command_id} {request.tester}".encode()).hexdigest()
    asked = {
        "delivery_id": request.delivery_id,
        "operator": request.operator,
        "recipient": request.recipient,
        "to_sha256": tester,
    }
    return json.dumps(asked, ensure_ascii=False)


async def prove(settings: Settings, db: Database, delivery_id: int, tester: str, recipient: int) -> Proof:
    """Sends a proof.

    Args:
        settings: The settings, for the channel.
        db: The database.
        delivery_id: The delivery, in any state in which it has a content.
        tester: The address that gets it.
        recipient: The recipient whose values it is filled with.

    Raises:
        ProofRefused: There is no such delivery, content or recipient, or the message was not taken.
        SettingsError: A setting of the channel is wrong.
    """
    found = await DeliveryContents(db).content(delivery_id)
    if found is None:
        raise ProofRefused(f"The delivery {delivery_id} has no content: it is not there, or not prepared.")
    channel_name, content = found
    row = await reading.recipient(db, delivery_id, recipient)
    if row is None:
        audience = await reading.audience(db, delivery_id)
        raise ProofRefused(
            f"The delivery {delivery_id} has no recipient {recipient}: they are numbered from 1 to"
            f" {audience[0] if audience else 0}."
        )
    kind = CHANNELS.get(channel_name)
    channel = kind.open(settings) if kind else None
    if not isinstance(channel, Proving):
        raise ProofRefused(f"The channel “{channel_name}” sends no proofs.")
    address, variables = row
    send = Send(
        delivery_id=delivery_id,
        recipient=recipient,
        attempt=1,
        channel=channel_name,
        address=address,
        variables=variables,
    )
    try:
        verdict = await channel.prove(channel.prepare(content), send, tester)
    except ContentInvalid as error:
        raise ProofRefused(f"The content cannot be sent to anybody: {error}") from error
    finally:
        await channel.close()
    if isinstance(verdict, Accepted):
        return Proof(recipient, verdict.reply)
    if isinstance(verdict, Bounced):
        raise ProofRefused(f"It was refused: {verdict.reply}")
    raise ProofRefused(verdict.detail if isinstance(verdict, Failed | Unsure) else "It was withheld.")
