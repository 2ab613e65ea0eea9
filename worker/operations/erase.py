"""Erases a profile for an operator: overwrites personal data, and keeps the counts."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from contracts.commands import Reply, Status
from worker.db import commands, profiles
from worker.db.deliveries import Deliveries
from worker.domain.authority import acting_operator
from worker.domain.erasure import check_erasure, fingerprint

if TYPE_CHECKING:
    from worker.db.pool import Database
    from worker.domain.authority import Bearer

COMMAND: Final = "profile.erase"
"""The name in the command log."""


class ErasureRefused(Exception):
    """The operator may not erase, nothing is stored, or one of the deliveries is being prepared."""


@dataclass(frozen=True, slots=True)
class ErasureRequest:
    """The profile to erase, and the operator who asks."""

    profile_id: str
    operator: str
    bearer: Bearer | None = None
    """The bearer of a verified token, if tokens are required."""
    fingerprint_key: str | None = None
    """The secret key of the profile's fingerprint; None for no fingerprint."""


@dataclass(frozen=True, slots=True)
class Erased:
    """The result of an erasure."""

    messages: int
    """Messages whose recipient was erased."""
    exclusions: int
    """Entries of preparations that had left the profile out."""
    kept_from: int
    """Messages that were not yet sent, or waited for a retry. They will not be sent."""


async def look(db: Database, request: ErasureRequest) -> profiles.Held:
    """Returns how much would be erased. It changes nothing, except that it logs a refusal.

    Raises:
        ErasureRefused: the operator may not erase, or nothing is stored about the profile.
    """
    return await _allow(db, request, record=False)


async def erase(db: Database, request: ErasureRequest) -> Erased:
    """Erases a profile, one delivery at a time. If it is interrupted, run it again.

    The request is recorded before the first change. It contains the profile only as a fingerprint.

    Raises:
        ErasureRefused: the operator may not erase, nothing is stored about the profile, or a delivery is
            being prepared. Data that was erased before stays erased.
    """
    await _allow(db, request, record=True)
    erased = kept_from = exclusions = 0
    while batch := await profiles.erasable(db, request.profile_id):
        for number, recipients in batch.items():
            done = await profiles.erase_messages(db, request.profile_id, number, recipients)
            if done is None:
                raise ErasureRefused(
                    f"The delivery {number} is being prepared at this moment: erase again when that is done."
                    " What was erased until now is."
                )
            messages, kept = done
            erased, kept_from = erased + messages, kept_from + kept
            if kept:
                await Deliveries(db).finish(number)
    while count := await profiles.erase_exclusions(db, request.profile_id):
        exclusions += count
    return Erased(erased, exclusions, kept_from)


async def _allow(db: Database, request: ErasureRequest, *, record: bool) -> profiles.Held:
    async with db.transaction() as tx:
        operator = acting_operator(await commands.read_operator(tx, request.operator), request.bearer)
        refused = check_erasure(operator, request.operator)
        held = await profiles.held(tx, request.profile_id)
        if refused is not None or (record and held.erasable):
            answer = Reply(
                command_id=str(uuid.uuid4()),
                status=Status.ACCEPTED if refused is None else Status.REFUSED,
                reason=refused.reason if refused else None,
                message=refused.message if refused else _sentence(held),
            )
            key = request.fingerprint_key
            body = {
                "operator": request.operator,
                "profile_hmac": fingerprint(request.profile_id, key) if key else None,
                **asdict(held),
            }
            await commands.record(
                tx,
                command=COMMAND,
                operator=request.operator,
                publisher=None,
                body=json.dumps(body, ensure_ascii=False),
                reply=answer,
            )
    if refused is not None:
        raise ErasureRefused(refused.message)
    if not held.erasable:
        listed = " but its entries of the denylist, which stay" if held.denylisted else ""
        raise ErasureRefused(f"Nothing is held of the profile “{request.profile_id}”{listed}.")
    return held


def _sentence(held: profiles.Held) -> str:
    return (
        f"Erasure of a profile: {held.messages} messages of {held.deliveries} deliveries,"
        f" {held.tracking_events} tracking events, {held.exclusions} exclusions."
    )
