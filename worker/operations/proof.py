"""Sends what a recipient would get to a tester. It reads, and touches no account."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from contracts.sends import Send
from worker.channels.protocol import Proving
from worker.channels.registry import CHANNELS
from worker.db import reading
from worker.db.deliveries import DeliveryContents
from worker.domain.content import ContentInvalid
from worker.domain.verdicts import Accepted, Bounced, Failed, Unsure

if TYPE_CHECKING:
    from worker.db.pool import Database
    from worker.settings import Settings


class ProofRefused(Exception):
    """Nothing was sent; the message says why."""


@dataclass(frozen=True, slots=True)
class Proof:
    """A proof that the channel took."""

    recipient: int
    """The recipient whose message it is."""
    reply: str
    """The channel's answer."""


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
