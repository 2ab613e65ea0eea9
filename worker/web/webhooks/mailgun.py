"""Mailgun's webhooks: one event in a call, signed by an HMAC over a timestamp and a token.

The signature does not cover the event. So a token is taken for one event only, as far as this process
remembers; and whose recipient it is, is believed only by a name that we signed.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field

from contracts.tracking import TrackingKind
from worker.domain.provider_headers import NAME
from worker.web.webhooks.notices import (
    DELAYED,
    OTHER,
    Bounced,
    Lenient,
    NotSigned,
    Parsed,
    Tracked,
    check_age,
    event_id,
    from_seconds,
    read_json,
    read_model,
)
from worker.web.webhooks.verdicts import EXPIRED, HARD, SUPPRESSED, UNWANTED, judge, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from worker.domain.bounces import Classified
    from worker.web.webhooks.notices import Call, Notice

_TRACKED: Final = {
    "opened": TrackingKind.OPEN,
    "clicked": TrackingKind.CLICK,
    "complained": TrackingKind.COMPLAINT,
    "unsubscribed": TrackingKind.OPTOUT,
}
_BY_REASON: Final = {
    "old": EXPIRED,
    "suppress-bounce": SUPPRESSED,
    "suppress-complaint": UNWANTED,
    "suppress-unsubscribe": UNWANTED,
}
"""Why Mailgun did not send, or gave up, in its words."""
_TOKENS_KEPT: Final = 100_000


class _Signature(Lenient):
    timestamp: str = Field(max_length=20, pattern=r"^[0-9]+$")
    token: str = Field(max_length=100)
    signature: str = Field(max_length=200)


class _Status(Lenient):
    code: int | None = None
    message: str | None = None
    description: str | None = None
    enhanced: str | None = Field(None, alias="enhanced-code")


class _Headers(Lenient):
    message_id: str = Field("", alias="message-id")


class _Message(Lenient):
    headers: _Headers = _Headers()


class _Envelope(Lenient):
    sender: str = ""


class _Client(Lenient):
    user_agent: str | None = Field(None, alias="user-agent")


class _Event(Lenient):
    id: str = Field(min_length=1)
    event: str
    timestamp: float
    severity: str | None = None
    reason: str | None = None
    url: str | None = None
    status: _Status = Field(_Status(), alias="delivery-status")
    message: _Message = _Message()
    envelope: _Envelope = _Envelope()
    client: _Client = Field(_Client(), alias="client-info")
    variables: Any = Field(None, alias="user-variables")


class _Body(Lenient):
    signature: _Signature
    event: _Event = Field(alias="event-data")


class Mailgun:
    """Verifies and reads the calls of Mailgun."""

    name = "mailgun"
    challenge = "Signature"

    def __init__(self, signing_keys: Sequence[str], most_age: timedelta) -> None:
        """Takes the HTTP webhook signing keys, any of which may have signed, and the most age of a call."""
        self._keys = [key.encode() for key in signing_keys]
        self._most_age = most_age
        self._tokens: OrderedDict[str, str] = OrderedDict()

    async def verify(self, call: Call) -> None:
        """Checks signature, age and token."""
        body = read_model(_Body, read_json(call.body))
        signed = body.signature
        data = (signed.timestamp + signed.token).encode()
        given = signed.signature.lower().encode()
        digests = (hmac.digest(key, data, "sha256").hex().encode() for key in self._keys)
        if not any(hmac.compare_digest(digest, given) for digest in digests):
            raise NotSigned("None of the signing keys of Mailgun signed the timestamp and the token.")
        check_age(from_seconds(int(signed.timestamp)), call.now, self._most_age)
        if self._tokens.setdefault(signed.token, body.event.id) != body.event.id:
            raise NotSigned("The token came with another event before.")
        if len(self._tokens) > _TOKENS_KEPT:
            self._tokens.popitem(last=False)

    def parse(self, call: Call) -> Parsed:
        """Reads the event."""
        return Parsed([_read(read_model(_Body, read_json(call.body)).event)])


def _read(event: _Event) -> Notice:
    own = event.variables.get(NAME) if isinstance(event.variables, dict) else None
    names = (own if isinstance(own, str) else "", event.message.headers.message_id, event.envelope.sender)
    at = from_seconds(event.timestamp)
    if event.event == "failed":
        if event.severity != "permanent":
            return DELAYED
        words = event.status.message or event.status.description or ""
        return Bounced(names, at, _verdict(event, words), quoted(words))
    kind = _TRACKED.get(event.event)
    if kind is None:
        return OTHER
    return Tracked(names, at, kind, event_id("mailgun", event.id), event.url, event.client.user_agent)


def _verdict(event: _Event, words: str) -> Classified:
    known = _BY_REASON.get(event.reason or "")
    return known or judge(words, event.status.enhanced, HARD, event.status.code)
