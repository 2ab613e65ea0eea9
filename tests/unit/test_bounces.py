"""What real servers' refusals mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.results import BounceKind, BounceReason, Fault
from worker.domain.bounces import LONGEST_REPLY, Classified, classify, enhanced_status, reply_line

HARD, SOFT = BounceKind.HARD, BounceKind.SOFT
RECIPIENT, SENDER, CONTENT, INFRASTRUCTURE = (
    Fault.RECIPIENT,
    Fault.SENDER,
    Fault.CONTENT,
    Fault.INFRASTRUCTURE,
)
R = BounceReason

REPLIES = [
    # No such mailbox
    (550, "5.1.1 The email account that you tried to reach does not exist.", HARD, R.USER_UNKNOWN, RECIPIENT),
    (
        550,
        "5.1.1 <ana@example.org>: Recipient address rejected: User unknown in virtual mailbox table",
        HARD,
        R.USER_UNKNOWN,
        RECIPIENT,
    ),
    (550, "5.1.1 User unknown", HARD, R.USER_UNKNOWN, RECIPIENT),
    (550, "5.1.1 <spam@example.org>: no such user here", HARD, R.USER_UNKNOWN, RECIPIENT),
    (550, "No such user here", HARD, R.USER_UNKNOWN, RECIPIENT),
    (550, "Unknown user", HARD, R.USER_UNKNOWN, RECIPIENT),
    (
        550,
        "ana@example.org... User not listed in public Name & Address Book",
        HARD,
        R.USER_UNKNOWN,
        RECIPIENT,
    ),
    (
        550,
        "5.5.0 Requested action not taken: mailbox unavailable (S2017062302).",
        HARD,
        R.USER_UNKNOWN,
        RECIPIENT,
    ),
    (
        550,
        "5.4.1 Recipient address rejected: Access denied. [AM5EUR02FT012.example.net]",
        HARD,
        R.USER_UNKNOWN,
        RECIPIENT,
    ),
    (
        554,
        "delivery error: dd This user doesn't have an example.com account (ana@example.com) [0]",
        HARD,
        R.USER_UNKNOWN,
        RECIPIENT,
    ),
    (511, "sorry, no mailbox here by that name (#5.1.1 - chkuser)", HARD, R.USER_UNKNOWN, RECIPIENT),
    (553, "5.1.3 The recipient address is not a valid RFC 5321 address", HARD, R.USER_UNKNOWN, RECIPIENT),
    (550, "5.1.6 recipient no longer on server", HARD, R.MOVED, RECIPIENT),
    (551, "User not local; please try <ana@elsewhere.example>", HARD, R.MOVED, RECIPIENT),
    (
        450,
        "4.1.1 <ana@example.org>: Recipient address rejected: unverified address",
        SOFT,
        R.USER_UNKNOWN,
        RECIPIENT,
    ),
    # Closed mailboxes
    (
        550,
        "5.2.1 The email account that you tried to reach is disabled.",
        HARD,
        R.ACCOUNT_DISABLED,
        RECIPIENT,
    ),
    (
        554,
        "30 Sorry, your message to ana@example.com cannot be delivered. This mailbox is disabled (554.30).",
        HARD,
        R.ACCOUNT_DISABLED,
        RECIPIENT,
    ),
    (525, "5.7.13 User account disabled", SOFT, R.ACCOUNT_DISABLED, RECIPIENT),
    # Full mailboxes are not for good
    (
        552,
        "5.2.2 The email account that you tried to reach is over quota and inactive.",
        SOFT,
        R.MAILBOX_FULL,
        RECIPIENT,
    ),
    (452, "4.2.2 The email account that you tried to reach is over quota.", SOFT, R.MAILBOX_FULL, RECIPIENT),
    (550, "Mailbox full", SOFT, R.MAILBOX_FULL, RECIPIENT),
    (552, "Requested mail action aborted: exceeded storage allocation", SOFT, R.MAILBOX_FULL, RECIPIENT),
    # Domains
    (
        550,
        "5.1.2 <ana@nowhere.example>: Recipient address rejected: Domain not found",
        HARD,
        R.INVALID_DOMAIN,
        RECIPIENT,
    ),
    (
        450,
        "4.1.2 <ana@nowhere.example>: Recipient address rejected: Domain not found",
        SOFT,
        R.INVALID_DOMAIN,
        RECIPIENT,
    ),
    (556, "5.1.10 <ana@example.org>: Recipient address has null MX", HARD, R.INVALID_DOMAIN, RECIPIENT),
    (
        550,
        "5.4.4 Host or domain name not found. Name service error for name=nowhere.example",
        HARD,
        R.INVALID_DOMAIN,
        RECIPIENT,
    ),
    (521, "example.org does not accept mail", HARD, R.INVALID_DOMAIN, RECIPIENT),
    # Our reputation never condemns the address, whatever code stands beside it
    (550, "5.1.1 Message rejected: your IP is listed at zen.spamhaus.org", SOFT, R.SPAM, SENDER),
    (
        550,
        "5.7.1 Messages from [192.0.2.1] weren't sent. Part of their network is on our block list.",
        SOFT,
        R.SPAM,
        SENDER,
    ),
    (
        554,
        "5.7.1 Service unavailable; Client host [192.0.2.1] blocked using bl.spamcop.net",
        SOFT,
        R.SPAM,
        SENDER,
    ),
    (550, "5.7.606 Access denied, banned sending IP [192.0.2.1]", SOFT, R.SPAM, SENDER),
    (
        550,
        "5.7.1 [192.0.2.1] Suspicious due to the very low reputation of the sending domain.",
        SOFT,
        R.SPAM,
        SENDER,
    ),
    (
        421,
        "4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume",
        SOFT,
        R.RATE_LIMITED,
        SENDER,
    ),
    (
        554,
        "Your access to this mail system has been rejected due to the sending MTA's poor reputation.",
        SOFT,
        R.SPAM,
        SENDER,
    ),
    (554, "5.7.1 This message has been blocked because it contains a virus", SOFT, R.SPAM, CONTENT),
    (
        550,
        "5.7.1 [192.0.2.1 12] Our system has detected that this message is likely unsolicited mail.",
        SOFT,
        R.SPAM,
        CONTENT,
    ),
    (554, "5.7.9 Message not accepted for policy reasons.", SOFT, R.POLICY, SENDER),
    (550, "High probability of spam", SOFT, R.SPAM, CONTENT),
    # Authentication and set-up of the sender
    (
        550,
        "5.7.26 This mail has been blocked because the sender is unauthenticated.",
        SOFT,
        R.AUTHENTICATION,
        SENDER,
    ),
    (550, "5.7.1 Email rejected per DMARC policy for example.org", SOFT, R.AUTHENTICATION, SENDER),
    (
        550,
        "Requested action not taken: mailbox unavailable. Invalid DNS PTR resource record",
        SOFT,
        R.AUTHENTICATION,
        SENDER,
    ),
    (550, "5.1.8 <news@example.org>: Sender address rejected: Domain not found", SOFT, R.REFUSED, SENDER),
    (
        550,
        "5.1.0 <news@example.org>: Sender address rejected: User unknown in virtual mailbox table",
        SOFT,
        R.REFUSED,
        SENDER,
    ),
    (550, "5.7.1 <mx.example.org>: Helo command rejected: Host not found", SOFT, R.POLICY, SENDER),
    (554, "5.7.1 <ana@example.net>: Relay access denied", SOFT, R.POLICY, SENDER),
    (
        553,
        "sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)",
        SOFT,
        R.POLICY,
        SENDER,
    ),
    # Passing trouble
    (
        450,
        "4.2.0 <ana@example.org>: Recipient address rejected: Greylisted, see http://postgrey.example",
        SOFT,
        R.GREYLISTED,
        INFRASTRUCTURE,
    ),
    (451, "4.7.1 Greylisting in action, please come back later", SOFT, R.GREYLISTED, INFRASTRUCTURE),
    (
        450,
        "4.2.1 The user you are trying to contact is receiving mail at a rate that prevents delivery.",
        SOFT,
        R.RATE_LIMITED,
        SENDER,
    ),
    (452, "4.5.3 Too many recipients", SOFT, R.RATE_LIMITED, SENDER),
    (451, "4.3.0 Temporary lookup failure", SOFT, R.SYSTEM, INFRASTRUCTURE),
    (451, "Requested action aborted: local error in processing", SOFT, R.SYSTEM, INFRASTRUCTURE),
    (421, "Service not available, closing transmission channel", SOFT, R.UNREACHABLE, INFRASTRUCTURE),
    (451, "4.4.1 Connection timed out", SOFT, R.UNREACHABLE, INFRASTRUCTURE),
    (550, "5.4.7 Delivery expired (message too old)", SOFT, R.EXPIRED, INFRASTRUCTURE),
    # The message
    (552, "5.3.4 Message size exceeds fixed limit", SOFT, R.TOO_LARGE, CONTENT),
    (552, "5.2.3 Your message exceeded the size limits", SOFT, R.TOO_LARGE, CONTENT),
    (554, "5.6.0 Message contains invalid header", SOFT, R.CONTENT, CONTENT),
    # Too little said to condemn anybody
    (550, "", SOFT, R.REFUSED, None),
    (554, "Transaction failed", SOFT, R.REFUSED, None),
    (554, "5.7.1 <ana@example.org>: Recipient address rejected: Access denied", SOFT, R.POLICY, SENDER),
    (599, "?", SOFT, R.NOT_DEFINED, None),
]


@pytest.mark.parametrize(
    ("code", "text", "kind", "reason", "fault"),
    REPLIES,
    ids=[f"{code} {text[:50]}" for code, text, *_ in REPLIES],
)
def test_a_reply_of_a_real_server_has_its_kind_reason_and_fault(
    code: int, text: str, kind: BounceKind, reason: BounceReason, fault: Fault | None
) -> None:
    meaning = classify(code, text)
    assert (meaning.kind, meaning.reason, meaning.fault) == (kind, reason, fault)


@pytest.mark.parametrize(
    ("code", "text", "status"),
    [
        (550, "5.1.1 User unknown", "5.1.1"),
        (550, "sorry (#5.1.1)", "5.1.1"),
        (450, "5.1.1 User unknown", "4.1.1"),
        (550, "4.2.2 over quota", "5.2.2"),
        (550, "User unknown", "5.0.0"),
        (451, "5.1.1.7 is not a status", "4.0.0"),
        (550, "5.007.026 padded", "5.7.26"),
    ],
)
def test_the_status_is_the_servers_with_the_class_of_the_basic_code(
    code: int, text: str, status: str
) -> None:
    assert classify(code, text).status == status


def test_a_status_that_is_given_wins_over_the_text() -> None:
    assert classify(550, "some words", status="5.1.1") == Classified(
        HARD, R.USER_UNKNOWN, "5.1.1", RECIPIENT, again=False, rule="mailbox_unknown"
    )


@pytest.mark.parametrize(("code", "text"), [(550, "5.1.1 User unknown"), (550, "No such user"), (553, "")])
def test_a_refusal_of_mail_blames_no_recipient(code: int, text: str) -> None:
    meaning = classify(code, text, recipient_named=False)
    assert (meaning.kind, meaning.fault) == (SOFT, SENDER)


_TEXTS = st.one_of(
    st.text(),
    st.sampled_from([text for _, text, *_ in REPLIES]),
    st.from_regex(r"[245]\.[0-9]{1,3}\.[0-9]{1,3} .*", fullmatch=True),
)


@given(code=st.integers(400, 599), text=_TEXTS, recipient_named=st.booleans())
def test_only_a_permanent_refusal_of_the_named_recipient_is_hard(
    code: int,
    text: str,
    recipient_named: bool,  # noqa: FBT001 - drawn by hypothesis
) -> None:
    meaning = classify(code, text, recipient_named=recipient_named)
    assert meaning.status[0] == str(code)[0]
    if code < 500:
        assert meaning.again
    if meaning.kind is HARD:
        assert code >= 500
        assert not meaning.again
        assert meaning.fault is RECIPIENT
        assert recipient_named


@given(code=st.integers(200, 599), text=st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_a_reply_becomes_one_sound_line(code: int, text: str) -> None:
    line = reply_line(code, text)
    assert line.startswith(str(code))
    assert line.isprintable()
    assert len(line) <= LONGEST_REPLY
    line.encode()


def test_an_address_of_a_machine_is_no_status() -> None:
    assert enhanced_status("5.1.1.7 refused") is None
    assert enhanced_status("blocked [5.1.1.7]") is None


def test_the_later_code_of_a_text_counts_where_it_stands_after_a_hash() -> None:
    assert enhanced_status("  5.1.1 no") == "5.1.1"
    assert enhanced_status("sorry #4.2.2") == "4.2.2"
    assert enhanced_status("see 5.1.1") is None
    assert enhanced_status("3.1.1 go on") is None
    assert enhanced_status("5.1.1234 no") is None


def test_octets_that_are_no_text_and_controls_leave_the_rest_of_a_reply() -> None:
    assert reply_line(550, "caf\udce9 \x1b[2Jno\r\nuser  here ") == "550 caf\ufffd [2Jno user here"
    assert reply_line(550, "") == "550"
    assert reply_line(550, "x" * 2_000) == "550 " + "x" * 996
