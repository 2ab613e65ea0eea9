"""Mail providers' webhooks: who is believed, and what each documented call says."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from tests.support import webhooks as given_by
from tests.support.webhooks import (
    CERTIFICATE_URL,
    DATA,
    DAY,
    NOW,
    OURS,
    RETURNS,
    SECRET,
    SENDGRID_PUBLIC,
    SUBSCRIBE_URL,
    TOPIC,
    Request,
    call_of,
    certificate,
    recorded,
    sns,
    subscription,
)
from worker.web.webhooks.fetching import NotFetched
from worker.web.webhooks.generic import Generic
from worker.web.webhooks.mailgun import Mailgun
from worker.web.webhooks.notices import (
    Bounced,
    Call,
    Ignored,
    NotNow,
    NotSigned,
    TooOld,
    Tracked,
    Unreadable,
)
from worker.web.webhooks.postmark import Postmark
from worker.web.webhooks.sendgrid import SendGrid
from worker.web.webhooks.ses import Ses

if TYPE_CHECKING:
    from datetime import datetime

    from worker.web.webhooks.notices import Notice, Provider


@dataclass
class Web:
    """What `fetch` finds."""

    pages: dict[str, bytes] = field(
        default_factory=lambda: {CERTIFICATE_URL: certificate(), SUBSCRIBE_URL: b"ok"}
    )
    asked: list[str] = field(default_factory=list)

    async def fetch(self, url: str) -> bytes:
        self.asked.append(url)
        if url not in self.pages:
            raise NotFetched("There is no such page.")
        return self.pages[url]


def provider(name: str, web: Web | None = None) -> Provider:
    web = web or Web()
    made: dict[str, Provider] = {
        "ses": Ses([TOPIC], DAY, web.fetch),
        "sendgrid": SendGrid([SENDGRID_PUBLIC], DAY),
        "mailgun": Mailgun(["another key, of an older time", SECRET], DAY),
        "postmark": Postmark([SECRET]),
        "generic": Generic(["another secret, of an older time", SECRET], DAY),
    }
    return made[name]


def call(request: Request, now: datetime = NOW) -> Call:
    return Call(Headers(request.headers), request.body, now)


def named(name: str) -> str:
    return name.partition("-")[0]


def about(notice: Bounced | Tracked) -> Any:
    """The attempt that a notice is about, as the application finds it."""
    return next(found for name in notice.names if name and (found := RETURNS.read(name)))


def said(notice: Notice) -> tuple[Any, ...]:
    if isinstance(notice, Ignored):
        return (notice.outcome,)
    assert about(notice) == OURS
    assert NOW - notice.at == timedelta(minutes=1) or NOW - notice.at == timedelta(seconds=59.75)
    if isinstance(notice, Tracked):
        return (notice.kind.value, notice.url, notice.user_agent)
    verdict = notice.verdict
    return ("bounce", verdict.kind.value, verdict.reason.value, verdict.fault and verdict.fault.value)


FIREFOX = "Mozilla/5.0 (X11; Linux x86_64)"
OFFER = "https://example.org/offer"
UNKNOWN = ("bounce", "hard", "user_unknown", "recipient")
KEPT_BACK = ("bounce", "hard", "refused", "recipient")
OPENED, CLICKED = ("open", None, FIREFOX), ("click", OFFER, FIREFOX)
COMPLAINT, OPTOUT = ("complaint", None, None), ("optout", None, None)
SAID: dict[str, list[tuple[Any, ...]]] = {
    "ses-bounce": [UNKNOWN],
    "ses-bounce-feedback": [("bounce", "soft", "mailbox_full", "recipient")],
    "ses-absence-note": [("other",)],
    "ses-suppressed": [KEPT_BACK],
    "ses-complaint": [COMPLAINT],
    "ses-open": [OPENED],
    "ses-click": [("click", f"{OFFER}?a=1", FIREFOX)],
    "ses-delivery": [("other",)],
    "ses-delay": [("delayed",)],
    "ses-subscription": [OPTOUT],
    "sendgrid": [
        ("other",),
        ("delayed",),
        ("other",),
        UNKNOWN,
        ("bounce", "soft", "spam", "sender"),
        KEPT_BACK,
        ("bounce", "soft", "policy", "recipient"),
        ("open", None, "Mozilla/4.0 (compatible; MSIE 6.1; Windows XP)"),
        ("click", OFFER, "Mozilla/4.0"),
        COMPLAINT,
        OPTOUT,
        ("optout", "https://example.org/leave", None),
        ("other",),
    ],
    "mailgun-failed": [UNKNOWN],
    "mailgun-failed-suppressed": [KEPT_BACK],
    "mailgun-failed-temporary": [("delayed",)],
    "mailgun-opened": [OPENED],
    "mailgun-clicked": [CLICKED],
    "mailgun-complained": [COMPLAINT],
    "mailgun-unsubscribed": [("optout", None, FIREFOX)],
    "mailgun-delivered": [("other",)],
    "postmark-bounce": [UNKNOWN],
    "postmark-bounce-wordless": [UNKNOWN],
    "postmark-absence-note": [("other",)],
    "postmark-transient": [("delayed",)],
    "postmark-complaint": [COMPLAINT],
    "postmark-open": [OPENED],
    "postmark-click": [CLICKED],
    "postmark-optout": [OPTOUT],
    "postmark-resubscribed": [("other",)],
    "postmark-delivery": [("other",)],
    "generic": [
        UNKNOWN,
        ("bounce", "soft", "mailbox_full", "recipient"),
        COMPLAINT,
        ("open", None, "Mozilla/5.0"),
        ("click", OFFER, None),
        OPTOUT,
    ],
}


def test_every_recorded_call_has_its_reading() -> None:
    assert {path.stem for path in DATA.glob("*.json")} == set(SAID)


@pytest.mark.parametrize("name", SAID)
async def test_a_documented_call_is_verified_and_says_what_it_says(name: str) -> None:
    hook = provider(named(name))
    asked = call(call_of(name))
    await hook.verify(asked)
    parsed = hook.parse(asked)
    assert parsed.faults == []
    assert [said(notice) for notice in parsed.notices] == SAID[name]


@pytest.mark.parametrize("name", SAID)
def test_the_same_event_has_the_same_identifier_and_others_have_others(name: str) -> None:
    hook = provider(named(name))
    tracked = [
        [n.event_id for n in hook.parse(call(call_of(name, at))).notices if isinstance(n, Tracked)]
        for at in (NOW, NOW - timedelta(hours=1))
    ]
    assert tracked[0] == tracked[1]
    assert len(set(tracked[0])) == len(tracked[0])
    assert all(len(one) <= 200 and one.startswith(f"{hook.name}-") for one in tracked[0])


def test_a_message_is_found_by_its_message_id_where_the_reference_is_missing() -> None:
    for name in ("ses-bounce-feedback", "sendgrid", "mailgun-failed"):
        body = recorded(name).replace(RETURNS.token(OURS), "none")
        request = given_by.SIGN[named(name)](body)
        parsed = provider(named(name)).parse(call(request))
        assert {about(n) for n in parsed.notices if isinstance(n, Bounced)} == {OURS}


SIGNED = ["ses-open", "sendgrid", "mailgun-opened", "postmark-open", "generic"]


@pytest.mark.parametrize("name", SIGNED)
async def test_what_the_provider_did_not_sign_is_not_believed(name: str) -> None:
    hook = provider(named(name))
    right = call_of(name)
    changed = Request(
        right.body.replace(b"2026-11-27T11:59", b"2026-11-27T11:58").replace(b"event-", b"evend-"),
        right.headers,
    )
    bare = Request(right.body, {})
    for wrong in (changed, bare) if named(name) not in ("postmark", "mailgun") else (bare,):
        if named(name) == "ses" and wrong is bare:
            continue  # its signature is in the body
        if named(name) == "mailgun":
            wrong = given_by.mailgun(recorded(name), key="not the key of the account")  # noqa: PLW2901
        with pytest.raises(NotSigned):
            await hook.verify(call(wrong))


@pytest.mark.parametrize("name", [name for name in SIGNED if named(name) != "postmark"])
async def test_old_calls_and_those_of_the_future_are_refused(name: str) -> None:
    hook = provider(named(name))
    for at in (NOW - DAY, NOW + timedelta(minutes=9)):
        await hook.verify(call(call_of(name, at)))
    for at in (NOW - DAY - timedelta(seconds=2), NOW + timedelta(minutes=11)):
        with pytest.raises(TooOld, match="It was signed at 2026-11-2"):
            await hook.verify(call(call_of(name, at)))


async def test_a_token_of_mailgun_carries_one_event() -> None:
    hook = provider("mailgun")
    first = call_of("mailgun-opened")
    await hook.verify(call(first))
    await hook.verify(call(first))
    stolen: Any = json.loads(first.body)
    stolen["event-data"]["id"] = "another"
    with pytest.raises(NotSigned, match="another event"):
        await hook.verify(call(Request(json.dumps(stolen).encode(), {})))


async def test_postmark_may_send_its_secret_in_a_header() -> None:
    body = recorded("postmark-open").encode()
    await provider("postmark").verify(call(Request(body, {"X-Webhook-Token": SECRET})))
    for wrong in ("Basic !", "Bearer x", "Basic eDp5"):
        with pytest.raises(NotSigned):
            await provider("postmark").verify(call(Request(body, {"authorization": wrong})))


@pytest.mark.parametrize("version", ["1", "2"])
async def test_sns_signs_with_either_hash_and_its_certificate_is_fetched_once(version: str) -> None:
    web = Web()
    hook = provider("ses", web)
    for _ in range(3):
        await hook.verify(call(sns(recorded("ses-open"), SignatureVersion=version)))
    assert web.asked == [CERTIFICATE_URL]


@pytest.mark.parametrize(
    "url",
    [
        "http://sns.eu-west-1.amazonaws.com/a.pem",
        "https://sns.eu-west-1.amazonaws.com.example.org/a.pem",
        "https://sns.eu-west-1.amazonaws.com@example.org/a.pem",
        "https://me@sns.eu-west-1.amazonaws.com/a.pem",
        "https://sns.eu-west-1.amazonaws.com:8443/a.pem",
        "https://bucket.s3.amazonaws.com/a.pem",
        "https://amazonaws.com/a.pem",
        "https://sns.us-east-1.amazonaws.com/a.pem",
        "https://sns.eu-west-1.amazonaws.com/",
        "https://sns.eu-west-1.amazonaws.com/a.txt",
        "https://169.254.169.254/a.pem",
        "file:///etc/a.pem",
        "https://[/a.pem",
    ],
)
async def test_a_certificate_from_elsewhere_is_not_even_fetched(url: str) -> None:
    web = Web({url: certificate()})
    with pytest.raises(NotSigned, match="not at the address of SNS"):
        await provider("ses", web).verify(call(sns(recorded("ses-open"), SigningCertURL=url)))
    assert web.asked == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"TopicArn": "arn:aws:sns:eu-west-1:999999999999:theirs"}, "none of those in the settings"),
        ({"SignatureVersion": "3"}, "version"),
        ({"Signature": "bm90IGl0"}, "did not sign"),
        ({"Signature": "no base64"}, "did not sign"),
    ],
)
async def test_a_message_of_sns_that_is_not_ours_or_not_signed_is_refused(
    changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(NotSigned, match=why):
        await provider("ses").verify(call(sns(recorded("ses-open"), **changes)))


async def test_the_host_of_sns_is_that_of_the_topic_s_region() -> None:
    china = "arn:aws-cn:sns:cn-north-1:000000000000:news"
    url = "https://sns.cn-north-1.amazonaws.com.cn/a.pem"
    request = sns(recorded("ses-open"), TopicArn=china, SigningCertURL=url)
    await Ses([china], DAY, Web({url: certificate()}).fetch).verify(call(request))


async def test_a_certificate_must_be_one_and_last() -> None:
    for page, why in ((b"<html>", "no certificate"), (certificate(NOW - DAY), "expired")):
        web = Web({CERTIFICATE_URL: page})
        with pytest.raises(NotSigned, match=why):
            await provider("ses", web).verify(call(sns(recorded("ses-open"))))
    with pytest.raises(NotNow, match="cannot be fetched: There is no such page"):
        await provider("ses", Web({})).verify(call(sns(recorded("ses-open"))))


async def test_a_subscription_to_a_topic_of_ours_is_confirmed_and_no_other() -> None:
    web = Web()
    hook = provider("ses", web)
    asked = call(subscription())
    await hook.verify(asked)
    assert web.asked == [CERTIFICATE_URL, SUBSCRIBE_URL]
    assert [said(notice) for notice in hook.parse(asked).notices] == [("other",)]
    with pytest.raises(NotSigned, match="topic"):
        await hook.verify(call(subscription(TopicArn="arn:aws:sns:eu-west-1:1:theirs")))
    with pytest.raises(NotSigned, match="address that confirms"):
        await hook.verify(call(subscription(SubscribeURL="https://example.org/")))
    web.pages = {}
    with pytest.raises(NotNow, match="cannot be confirmed"):
        await hook.verify(call(subscription()))


def test_ses_tries_a_new_topic_with_a_sentence() -> None:
    parsed = provider("ses").parse(
        call(sns("Successfully validated SNS topic for Amazon SES event publishing."))
    )
    assert [said(notice) for notice in parsed.notices] == [("other",)]


ODD = [
    ("sendgrid", b"{}", "no array"),
    ("sendgrid", b"[", "not JSON"),
    ("sendgrid", b"\xff\xfe", "not JSON"),
    ("sendgrid", b"[" * 100_000, "not JSON"),
    ("sendgrid", b'["\\ud800"]', ""),
    ("sendgrid", b"[" + b"1," * 10_000 + b"1]", "10001 events"),
    ("mailgun", b'{"event-data": {}}', "signature: Field required"),
    ("mailgun", b'{"signature": {"timestamp": 1, "token": [], "signature": null}}', "signature.timestamp"),
    ("postmark", b"[]", "Input should be"),
    ("postmark", b'{"RecordType": "Open"}', "ReceivedAt: Field required"),
    ("postmark", b'{"RecordType": "Bounce", "Type": 1}', "Type: Input should be a valid string"),
    ("ses", b'{"Type": "Notification"}', "MessageId: Field required"),
    ("ses", b'{"Type": "Other"}', "Type: Input should be"),
    ("generic", b'"x"', ""),
]


@pytest.mark.parametrize(("name", "body", "why"), ODD)
def test_what_has_another_form_is_told_in_a_sentence(name: str, body: bytes, why: str) -> None:
    try:
        told = provider(name).parse(call(Request(body, {}))).told()
    except Unreadable as error:
        told = str(error)
    assert why in told
    assert len(told) > 15
    assert len(told) < 600


def test_an_event_that_does_not_fit_costs_no_other() -> None:
    events: Any = json.loads(recorded("sendgrid"))
    events[1] = {**events[3], "timestamp": "yesterday"}
    events[2] = {**events[3], "timestamp": 1e300}
    events[4] = 7
    parsed = provider("sendgrid").parse(call(Request(json.dumps(events).encode(), {})))
    assert len(parsed.notices) == len(events) - 3
    assert parsed.faults[0].startswith("Event 2 of 13: timestamp: Input should be a valid number")
    assert parsed.faults[1:] == [
        "Event 3 of 13: The timestamp is out of range.",
        "Event 5 of 13: Input should be a valid dictionary or instance of _Event.",
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "event",
                    "timestamp",
                    "sg_event_id",
                    "signature",
                    "event-data",
                    "RecordType",
                    "Type",
                    "Message",
                    "mail",
                    "tags",
                    "headers",
                    "bounce",
                    "reason",
                    "at",
                    "reference",
                    "event_id",
                    "Metadata",
                    "BouncedAt",
                ]
            )
            | st.text(max_size=5),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(st.sampled_from(["ses", "sendgrid", "mailgun", "postmark", "generic"]), JSON | st.binary())
def test_no_body_makes_a_reader_fail_otherwise(name: str, body: Any) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with_event = json.dumps([body]).encode() if not isinstance(body, bytes) else raw
    for one in (raw, with_event):
        with contextlib.suppress(Unreadable):
            provider(name).parse(call(Request(one, {})))


@given(
    st.sampled_from([name for name in SAID if name.count("-") or name in ("sendgrid", "generic")]), st.data()
)
def test_no_part_of_another_type_makes_a_reader_fail_otherwise(name: str, data: st.DataObject) -> None:
    filled: Any = json.loads(recorded(name))
    place = filled[data.draw(st.integers(0, len(filled) - 1))] if isinstance(filled, list) else filled
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(place)))
        if isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(JSON)
        break
    body = json.dumps(filled)
    request = sns(body) if named(name) == "ses" else Request(body.encode(), {})
    with contextlib.suppress(Unreadable):
        provider(named(name)).parse(call(request))
