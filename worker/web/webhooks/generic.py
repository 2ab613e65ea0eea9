"""The generic form, for any program: signed as Standard Webhooks says (standardwebhooks.com).

`webhook-id`, `webhook-timestamp` and `webhook-signature`: `v1,` and the base64 of an HMAC-SHA256 over
`<id>.<timestamp>.<body>`; several are parted by spaces. The body is one event or an array of events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from contracts.results import BounceKind, BounceReason, Fault
from contracts.tracking import TrackingKind
from worker.domain import standard_webhooks
from worker.domain.bounces import Classified
from worker.web.webhooks.notices import (
    Bounced,
    Lenient,
    Moment,
    NotSigned,
    Tracked,
    check_age,
    event_id,
    from_seconds,
    read_each,
    read_json,
    read_model,
)
from worker.web.webhooks.verdicts import HARD, SOFT, judge, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from worker.web.webhooks.notices import Call, Notice, Parsed


class _Event(Lenient):
    event: Literal["bounce", "complaint", "open", "click", "optout", "mirror"]
    event_id: str = Field(min_length=1)
    reference: str = Field(min_length=1)
    at: Moment
    kind: BounceKind | None = None
    reason: BounceReason | None = None
    fault: Fault | None = None
    status: str | None = Field(None, pattern=r"^[45]\.[0-9]{1,3}\.[0-9]{1,3}$")
    reply: str = ""
    url: str | None = None
    user_agent: str | None = None


class Generic:
    """Verifies and reads the calls of any program that has a secret of ours."""

    name = "generic"
    challenge = "Signature"

    def __init__(self, secrets: Sequence[str], most_age: timedelta) -> None:
        """Takes the secrets and the most age of a call.

        Args:
            secrets: Any may have signed. One that begins with `whsec_` is base64 behind that; any other is
                taken as it is.
            most_age: How long ago a call may have been signed.

        Raises:
            ValueError: What is behind `whsec_` is no base64.
        """
        self._secrets = [_octets(place, secret) for place, secret in enumerate(secrets, 1)]
        self._most_age = most_age

    async def verify(self, call: Call) -> None:
        """Checks signature and age."""
        call_id, timestamp, given = (
            call.headers.get(name, "")
            for name in (standard_webhooks.ID, standard_webhooks.TIMESTAMP, standard_webhooks.SIGNATURE)
        )
        if not standard_webhooks.is_signed(self._secrets, call_id, timestamp, call.body, given):
            raise NotSigned("None of the secrets signed webhook-id, webhook-timestamp and the body.")
        if not timestamp.isascii() or not timestamp.isdigit():
            raise NotSigned("The webhook-timestamp is no number.")
        check_age(from_seconds(int(timestamp)), call.now, self._most_age)

    def parse(self, call: Call) -> Parsed:
        """Reads the events."""
        body = read_json(call.body)
        return read_each(body if isinstance(body, list) else [body], _read)


def _read(item: Any) -> list[Notice]:  # noqa: ANN401 - what JSON holds
    event = read_model(_Event, item)
    names = (event.reference,)
    if event.event == "bounce":
        return [Bounced(names, event.at, _verdict(event), quoted(event.reply))]
    own = event_id("generic", event.event_id)
    return [Tracked(names, event.at, TrackingKind(event.event), own, event.url, event.user_agent)]


def _verdict(event: _Event) -> Classified:
    """Returns what the program says; where it says nothing, what the words mean."""
    otherwise = HARD if event.kind is BounceKind.HARD else SOFT
    words = judge(event.reply, event.status, otherwise)
    if event.kind is None:
        return words
    return Classified(
        event.kind,
        event.reason or words.reason,
        event.status or words.status,
        event.fault or words.fault,
        again=False,
        rule="provider",
    )


def _octets(place: int, secret: str) -> bytes:
    try:
        return standard_webhooks.key_of(secret)
    except ValueError as error:
        raise ValueError(f"secret {place} {error}") from None
