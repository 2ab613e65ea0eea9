"""Postmark's webhooks: one record in a call. Postmark signs nothing; it sends a secret that it was given."""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field

from contracts.results import BounceKind, BounceReason
from contracts.tracking import TrackingKind
from worker.domain.provider_headers import NAME
from worker.web.webhooks.notices import (
    DELAYED,
    OTHER,
    Bounced,
    Lenient,
    Moment,
    NotSigned,
    Parsed,
    Tracked,
    Unreadable,
    event_id,
    read_json,
    read_model,
)
from worker.web.webhooks.verdicts import (
    AUTHENTICATION,
    CONTENT,
    HARD,
    SOFT,
    SPAM,
    SUPPRESSED,
    UNREACHABLE,
    judge,
    own_verdict,
    quoted,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from worker.web.webhooks.notices import Call, Notice

_TOKEN: Final = "x-webhook-token"  # noqa: S105 - the name of a header
_BY_TYPE: Final = {
    "HardBounce": HARD,
    "BadEmailAddress": own_verdict(BounceKind.HARD, BounceReason.USER_UNKNOWN, HARD.fault),
    "ManuallyDeactivated": SUPPRESSED,
    "SpamNotification": SPAM,
    "Blocked": SPAM,
    "DMARCPolicy": AUTHENTICATION,
    "DnsError": UNREACHABLE,
    "VirusNotification": CONTENT,
    "SoftBounce": SOFT,
    "Undeliverable": SOFT,
}
"""What Postmark calls a bounce, where the server's words say nothing."""
_NO_BOUNCE: Final = frozenset(
    {"AutoResponder", "AddressChange", "ChallengeVerification", "OpenRelayTest", "Subscribe", "Unsubscribe"}
)
"""Answers of programs and people, which say nothing about the address."""


class _Record(Lenient):
    record: str = Field(alias="RecordType")
    id: int | None = Field(None, alias="ID")
    type: str = Field("", alias="Type")
    message_id: str | None = Field(None, alias="MessageID")
    description: str | None = Field(None, alias="Description")
    details: str | None = Field(None, alias="Details")
    bounced_at: Moment | None = Field(None, alias="BouncedAt")
    received_at: Moment | None = Field(None, alias="ReceivedAt")
    changed_at: Moment | None = Field(None, alias="ChangedAt")
    link: str | None = Field(None, alias="OriginalLink")
    user_agent: str | None = Field(None, alias="UserAgent")
    suppress: bool | None = Field(None, alias="SuppressSending")
    origin: str | None = Field(None, alias="Origin")
    suppression_reason: str | None = Field(None, alias="SuppressionReason")
    metadata: Any = Field(None, alias="Metadata")

    @property
    def names(self) -> tuple[str, ...]:
        own = self.metadata.get(NAME) if isinstance(self.metadata, dict) else None
        return (own,) if isinstance(own, str) else ()


class Postmark:
    """Verifies and reads the calls of Postmark."""

    name = "postmark"
    challenge = 'Basic realm="webhooks", charset="UTF-8"'

    def __init__(self, secrets: Sequence[str]) -> None:
        """Takes the secrets: each is the password of the URL, or the value of `X-Webhook-Token`."""
        self._secrets = [secret.encode() for secret in secrets]

    async def verify(self, call: Call) -> None:
        """Checks the secret. There is no timestamp to check."""
        given = _password(call.headers.get("authorization", "")) or call.headers.get(_TOKEN, "").encode()
        if not any(hmac.compare_digest(secret, given) for secret in self._secrets):
            raise NotSigned("The call carries none of the secrets that Postmark was given.")

    def parse(self, call: Call) -> Parsed:
        """Reads the record."""
        return Parsed([_read(read_model(_Record, read_json(call.body)))])


def _read(record: _Record) -> Notice:
    match record.record:
        case "Bounce":
            return _bounce(record)
        case "SpamComplaint":
            return _tracked(record, TrackingKind.COMPLAINT, record.bounced_at, "BouncedAt")
        case "Open":
            return _tracked(record, TrackingKind.OPEN, record.received_at, "ReceivedAt")
        case "Click":
            return _tracked(record, TrackingKind.CLICK, record.received_at, "ReceivedAt")
        case "SubscriptionChange" if (
            record.suppress
            and record.origin == "Recipient"
            and record.suppression_reason == "ManualSuppression"
        ):
            return _tracked(record, TrackingKind.OPTOUT, record.changed_at, "ChangedAt")
    return OTHER


def _bounce(record: _Record) -> Notice:
    if record.type in _NO_BOUNCE:
        return OTHER
    if record.type == "Transient":
        return DELAYED
    words = record.details or ""
    verdict = judge(words, None, _BY_TYPE.get(record.type, SOFT))
    at = _needed(record.bounced_at, "BouncedAt")
    return Bounced(record.names, at, verdict, quoted(words or record.description or ""))


def _tracked(record: _Record, kind: TrackingKind, at: datetime | None, named: str) -> Notice:
    at = _needed(at, named)
    # Postmark numbers bounces only, so the moment and what it is about stand for the number of an event.
    own = event_id(
        "postmark", kind, record.message_id or "", at.isoformat(), record.link or "", *record.names
    )
    return Tracked(record.names, at, kind, own, record.link, record.user_agent)


def _needed(at: datetime | None, named: str) -> datetime:
    if at is None:
        raise Unreadable(f"{named}: Field required.")
    return at


def _password(authorization: str) -> bytes:
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(encoded.strip(), validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""
