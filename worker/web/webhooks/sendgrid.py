"""SendGrid's signed event webhook.

An array of events. The signature is over the timestamp and the body, with the key of the account (ECDSA on
P-256 with SHA-256; Ed25519 is read too).
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pydantic import Field

from contracts.tracking import TrackingKind
from worker.domain.provider_headers import NAME
from worker.web.webhooks.notices import (
    DELAYED,
    OTHER,
    Bounced,
    Lenient,
    NotSigned,
    Tracked,
    check_age,
    event_id,
    from_seconds,
    read_each,
    read_json,
    read_model,
)
from worker.web.webhooks.verdicts import EXPIRED, HARD, SOFT, SPAM, SUPPRESSED, UNWANTED, judge, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from worker.domain.bounces import Classified
    from worker.web.webhooks.notices import Call, Notice, Parsed

_SIGNATURE: Final = "x-twilio-email-event-webhook-signature"
_TIMESTAMP: Final = "x-twilio-email-event-webhook-timestamp"
_TRACKED: Final = {
    "open": TrackingKind.OPEN,
    "click": TrackingKind.CLICK,
    "spamreport": TrackingKind.COMPLAINT,
    "unsubscribe": TrackingKind.OPTOUT,
    "group_unsubscribe": TrackingKind.OPTOUT,
}
_DROPPED: Final = {
    "bounced address": SUPPRESSED,
    "invalid": SUPPRESSED,
    "unsubscribed address": UNWANTED,
    "spam reporting address": UNWANTED,
    "spam content (if spam checker app enabled)": SPAM,
}
"""Why SendGrid did not send, in its words."""


class _Event(Lenient):
    event: str
    timestamp: float
    sg_event_id: str
    smtp_id: str = Field("", alias="smtp-id")
    reference: str = Field("", alias=NAME)
    reason: str | None = None
    status: str | None = None
    type: str | None = None
    url: str | None = None
    useragent: str | None = None


class SendGrid:
    """Verifies and reads the calls of SendGrid."""

    name = "sendgrid"
    challenge = "Signature"

    def __init__(self, public_keys: Sequence[str], most_age: timedelta) -> None:
        """Takes the keys.

        Args:
            public_keys: Of the account, as its settings show them (base64 of DER). Any may have signed.
            most_age: How long ago a call may have been signed.

        Raises:
            ValueError: One is no such key; the message says which.
        """
        self._keys = [_read_key(place, text) for place, text in enumerate(public_keys, 1)]
        self._most_age = most_age

    async def verify(self, call: Call) -> None:
        """Checks signature and age."""
        timestamp = call.headers.get(_TIMESTAMP, "")
        try:
            signature = base64.b64decode(call.headers.get(_SIGNATURE, ""), validate=True)
        except (binascii.Error, ValueError):
            signature = b""
        signed = timestamp.encode() + call.body
        if not signature or not any(_signed(key, signature, signed) for key in self._keys):
            raise NotSigned("None of the public keys of SendGrid signed the body.")
        if not timestamp.isascii() or not timestamp.isdigit():
            raise NotSigned("The signed timestamp is no number.")
        check_age(from_seconds(int(timestamp)), call.now, self._most_age)

    def parse(self, call: Call) -> Parsed:
        """Reads the events."""
        return read_each(read_json(call.body), _read)


def _read(item: Any) -> list[Notice]:  # noqa: ANN401 - what JSON holds
    event = read_model(_Event, item)
    names = (event.reference, event.smtp_id)
    at = from_seconds(event.timestamp)
    if event.event in ("bounce", "dropped"):
        words = (event.reason or "").strip()
        verdict = _verdict(event, words)
        return [Bounced(names, at, verdict, quoted(words))]
    kind = _TRACKED.get(event.event)
    if kind is not None:
        own = event_id("sendgrid", event.sg_event_id)
        return [Tracked(names, at, kind, own, event.url, event.useragent)]
    return [DELAYED if event.event == "deferred" else OTHER]


def _verdict(event: _Event, words: str) -> Classified:
    if event.event == "dropped":
        return _DROPPED.get(words.lower(), SOFT)
    if event.type == "blocked":
        return judge(words, event.status, SOFT)
    return judge(words, event.status, EXPIRED if event.type == "expired" else HARD)


def _signed(key: EllipticCurvePublicKey | Ed25519PublicKey, signature: bytes, data: bytes) -> bool:
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, data)
        else:
            key.verify(signature, data, ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def _read_key(place: int, text: str) -> EllipticCurvePublicKey | Ed25519PublicKey:
    try:
        key = load_der_public_key(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"public key {place} is not base64 of a key in DER") from error
    if not isinstance(key, EllipticCurvePublicKey | Ed25519PublicKey):
        raise ValueError(f"public key {place} is neither of an elliptic curve nor Ed25519")  # noqa: TRY004
    return key
