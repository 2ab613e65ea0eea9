"""Amazon SES, whose reports come over SNS: one event in a message."""

from __future__ import annotations

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
    Parsed,
    Tracked,
    Unreadable,
    event_id,
    read_json,
    read_model,
)
from worker.web.webhooks.sns import Sns, read_envelope
from worker.web.webhooks.verdicts import (
    CONTENT,
    FULL,
    HARD,
    SOFT,
    SUPPRESSED,
    TOO_LARGE,
    judge,
    own_verdict,
    quoted,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from worker.web.webhooks.fetching import Fetch
    from worker.web.webhooks.notices import Call, Notice

_BY_SUBTYPE: Final = {
    "NoEmail": own_verdict(BounceKind.HARD, BounceReason.USER_UNKNOWN, HARD.fault),
    "MailboxFull": FULL,
    "MessageTooLarge": TOO_LARGE,
    "ContentRejected": CONTENT,
    "AttachmentRejected": CONTENT,
}
"""What SES calls a bounce, where the server's words say nothing."""
_SUPPRESSED: Final = frozenset({"Suppressed", "OnAccountSuppressionList"})
"""SES did not send: the address had bounced, or its owner complained, perhaps to another sender."""
_NO_COMPLAINT: Final = frozenset({"not-spam", "auth-failure", "virus"})
"""As for complaints by mail (RFC 5965 section 7.3)."""
_ACTS: Final = {"Open": TrackingKind.OPEN, "Click": TrackingKind.CLICK}
_MOST_HEADERS: Final = 200


class _Recipient(Lenient):
    action: str | None = None
    status: str | None = None
    diagnosis: str | None = Field(None, alias="diagnosticCode")


class _Bounce(Lenient):
    type: str = Field(alias="bounceType")
    subtype: str = Field("", alias="bounceSubType")
    recipients: list[_Recipient] = Field(alias="bouncedRecipients", max_length=1_000)
    timestamp: Moment


class _Complaint(Lenient):
    timestamp: Moment
    feedback_type: str | None = Field(None, alias="complaintFeedbackType")


class _Act(Lenient):
    timestamp: Moment
    link: str | None = None
    user_agent: str | None = Field(None, alias="userAgent")


class _Preferences(Lenient):
    unsubscribed: bool = Field(default=False, alias="unsubscribeAll")


class _Subscription(Lenient):
    timestamp: Moment
    preferences: _Preferences = Field(_Preferences(), alias="newTopicPreferences")


class _Common(Lenient):
    message_id: str = Field("", alias="messageId")


class _Mail(Lenient):
    source: str = ""
    tags: dict[str, Any] = Field(default_factory=dict)
    headers: list[Any] = Field(default_factory=list)
    common: _Common = Field(_Common(), alias="commonHeaders")

    @property
    def names(self) -> tuple[str, ...]:
        """The tag, the Message-ID as we wrote it, and the envelope sender."""
        own = self.tags.get(NAME)
        tagged = [tag for tag in own if isinstance(tag, str)] if isinstance(own, list) else []
        written = [
            header["value"]
            for header in self.headers[:_MOST_HEADERS]
            if isinstance(header, dict)
            and str(header.get("name", "")).lower() == "message-id"
            and isinstance(header.get("value"), str)
        ]
        return (*tagged, *written, self.common.message_id, self.source)


class _Event(Lenient):
    event: str = Field("", alias="eventType")
    notification: str = Field("", alias="notificationType")
    mail: _Mail = _Mail()
    bounce: _Bounce | None = None
    complaint: _Complaint | None = None
    open: _Act | None = None
    click: _Act | None = None
    subscription: _Subscription | None = None


class Ses:
    """Verifies and reads the calls of SNS with events of SES."""

    name = "ses"
    challenge = "Signature"

    def __init__(self, topics: Sequence[str], most_age: timedelta, fetch: Fetch) -> None:
        """Takes the ARNs of the topics, the most age of a call, and what fetches certificates."""
        self._sns = Sns(topics, most_age, fetch)

    async def verify(self, call: Call) -> None:
        """Checks signature, topic and age; confirms a subscription to one of the topics."""
        await self._sns.verify(call)

    def parse(self, call: Call) -> Parsed:
        """Reads the event."""
        envelope = read_envelope(call)
        if envelope.type != "Notification" or not envelope.message.lstrip().startswith("{"):
            return Parsed([OTHER])  # SES tries a new topic with a sentence
        event = read_model(_Event, read_json(envelope.message), "Message: ")
        return Parsed([_read(event, event_id("ses", envelope.message_id))])


def _read(event: _Event, own: str) -> Notice:
    named = event.event or event.notification
    names = event.mail.names
    if named == "Bounce":
        return _bounce(names, _needed(event.bounce, "bounce"))
    if named == "DeliveryDelay":
        return DELAYED
    if named == "Complaint":
        complaint = _needed(event.complaint, "complaint")
        unasked = (complaint.feedback_type or "").lower() in _NO_COMPLAINT
        return OTHER if unasked else Tracked(names, complaint.timestamp, TrackingKind.COMPLAINT, own)
    if named in _ACTS:
        act = _needed(getattr(event, named.lower()), named.lower())
        return Tracked(names, act.timestamp, _ACTS[named], own, act.link, act.user_agent)
    return _optout(names, event.subscription, own) if named == "Subscription" else OTHER


def _optout(names: tuple[str, ...], subscription: _Subscription | None, own: str) -> Notice:
    if subscription is None or not subscription.preferences.unsubscribed:
        return OTHER
    return Tracked(names, subscription.timestamp, TrackingKind.OPTOUT, own)


def _bounce(names: tuple[str, ...], bounce: _Bounce) -> Notice:
    # A message goes to one recipient; a server that forwards it may name several: the first is theirs.
    recipient = next(iter(bounce.recipients), _Recipient())
    words = recipient.diagnosis or ""
    if bounce.type != "Permanent" and bounce.subtype == "General" and not words and not recipient.status:
        return OTHER  # so SES reports absence notes
    if bounce.subtype in _SUPPRESSED:
        return Bounced(names, bounce.timestamp, SUPPRESSED, quoted(words))
    otherwise = _BY_SUBTYPE.get(bounce.subtype, HARD if bounce.type == "Permanent" else SOFT)
    return Bounced(names, bounce.timestamp, judge(words, recipient.status, otherwise), quoted(words))


def _needed(part: Any, named: str) -> Any:  # noqa: ANN401 - one of the parts
    if part is None:
        raise Unreadable(f"Message: {named}: Field required.")
    return part
