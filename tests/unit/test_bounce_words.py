"""What the words of a refusal mean where its code says little: each phrase that real servers write."""

from __future__ import annotations

import pytest

from contracts.results import BounceKind, BounceReason, Fault
from worker.domain.bounces import LONGEST_REPLY, classify

HARD, SOFT = BounceKind.HARD, BounceKind.SOFT
RECIPIENT, SENDER, CONTENT, INFRASTRUCTURE = (
    Fault.RECIPIENT,
    Fault.SENDER,
    Fault.CONTENT,
    Fault.INFRASTRUCTURE,
)
R = BounceReason

PHRASES = {
    (SOFT, R.POLICY, SENDER): (
        *("relaying denied", "relay access denied", "relay is not permitted", "relay not allowed"),
        *("relaying prohibited", "unable to relay", "not allowed to relay", "not permitted to relay"),
        *("we do not relay", "allowed rcpthosts", "client host rejected", "HELO command rejected"),
        *("your account has been suspended", "sending paused for this account"),
        *(
            "policy",
            "policies",
            "not permitted",
            "not allowed",
            "administrative prohibition",
            "access denied",
        ),
    ),
    (SOFT, R.SYSTEM, INFRASTRUCTURE): (
        *("disk full", "insufficient system storage", "internal error", "try again later", "mail loop"),
    ),
    (SOFT, R.AUTHENTICATION, SENDER): (
        *("SPF", "dkim", "dmarc", "unauthenticated email", "unauthenticated mail", "unauthenticated sender"),
        *("reverse DNS", "ptr", "rdns", "reverse hostname"),
        *("cannot find your hostname", "cannot find your reverse hostname"),
    ),
    (SOFT, R.REFUSED, SENDER): (
        *("sender rejected", "sender address refused", "sender domain denied", "sender verify failed"),
        *("sender (blocked)", "sender mailbox does not exist", "invalid sender", "bad sender"),
        *("unknown sender", "sender callout"),
    ),
    (SOFT, R.SPAM, SENDER): (
        *("blocklist", "block list", "block-list", "blacklist", "black-list", "denylist", "deny list"),
        *("dnsbl", "nsbl", "rbl", "listed at x", "listed by x", "listed in x", "listed on x"),
        *("spamhaus", "spamcop", "barracuda", "sorbs", "surbl", "uribl", "proofpoint", "cloudmark"),
        *("senderscore", "reputation", "blocked using x", "blocked by x", "blocked due to x"),
        *("your ip was blocked", "ip banned", "[192.0.2.1] was blocked", "banned sending ip"),
        "part of their network is on",
    ),
    (SOFT, R.RATE_LIMITED, SENDER): (
        *("too many messages", "too many connections", "too many emails", "too many mails"),
        *("too many recipients", "rate limit", "rate-limit", "ratelimit", "throttled", "unusual rate"),
        *("receiving mail at a rate", "receiving messages too quickly", "receiving mail too fast"),
        *("sending rate", "message rate", "[TSS04]", "[TS01]"),
    ),
    (SOFT, R.SPAM, CONTENT): (
        *("spam", "unsolicited", "junk mail", "bulk mail", "phishing", "virus", "malware", "malicious"),
    ),
    (SOFT, R.GREYLISTED, INFRASTRUCTURE): ("greylisted", "graylist", "grey list", "grey-listing"),
    (SOFT, R.MAILBOX_FULL, RECIPIENT): (
        *("mailbox is full", "inbox full", "account exceeded", "user has no quota", "storage exceeded"),
        *("overquota", "over quota", "quota exceeded", "quota is exceeded", "exceeded storage allocation"),
        *("out of storage", "insufficient storage"),
    ),
    (SOFT, R.TOO_LARGE, CONTENT): (
        *("message too big", "message is too large", "mail too large", "size exceeds", "size limit"),
    ),
    (HARD, R.INVALID_DOMAIN, RECIPIENT): (
        *("domain not found", "domain name not found", "host not found", "host unknown"),
        *("domain does not exist", "domain doesn't exist", "no such domain", "nxdomain"),
        "not sent, since the domain is not reachable. Please check the domain",
    ),
    (HARD, R.ACCOUNT_DISABLED, RECIPIENT): (
        *("account disabled", "mailbox suspended", "user is inactive", "recipient deactivated"),
        *("mailbox inactivated", "account closed", "user discontinued", "disabled account"),
        *("inactive mailbox", "deactivated user", "suspended recipient"),
    ),
    (HARD, R.USER_UNKNOWN, RECIPIENT): (
        *("user unknown", "mailbox not found", "recipient no longer here", "account invalid"),
        *("address does not exist", "alias doesn't exist", "addressee does not have a box"),
        *("user isn't known", "user is not valid", "user isn't a valid one", "user not known"),
        *("mailbox not listed", "address not valid", "account not exist", "unknown user"),
        *("invalid mailbox", "no such recipient", "bad address", "non-existent account", "nonexistent user"),
        *("no such local user", "no such person", "mailbox unavailable", "no mailbox", "not our customer"),
        "undeliverable address",
    ),
    (SOFT, R.UNREACHABLE, INFRASTRUCTURE): (
        *("timed out", "time out", "timeout", "connection refused", "connection reset", "connection lost"),
        *("no route", "unreachable", "could not connect"),
    ),
}


@pytest.mark.parametrize(
    ("phrase", "meaning"), [(phrase, meaning) for meaning, phrases in PHRASES.items() for phrase in phrases]
)
def test_words_alone_have_a_meaning_in_any_case_and_anywhere(
    phrase: str, meaning: tuple[BounceKind, BounceReason, Fault]
) -> None:
    for text in (phrase, phrase.upper(), f"- {phrase} -", f"{phrase} <spam@block.list.example>"):
        found = classify(550, text)
        assert (found.kind, found.reason, found.fault) == meaning


@pytest.mark.parametrize(
    "text", ["antispammer", "not listed at all", "scriptures", "absorb", "viral", "full of joy", "ip address"]
)
def test_a_word_within_another_means_nothing(text: str) -> None:
    assert classify(599, text).reason is R.NOT_DEFINED


def test_words_beyond_what_is_kept_of_a_reply_mean_nothing() -> None:
    assert classify(599, "x" * (LONGEST_REPLY - 5) + " spam").reason is R.SPAM
    assert classify(599, "x" * (LONGEST_REPLY - 4) + " spam").reason is R.NOT_DEFINED


def test_words_are_found_over_the_line_ends_of_a_reply() -> None:
    assert classify(550, "no such\r\n   user").reason is R.USER_UNKNOWN


def test_words_are_found_around_an_address() -> None:
    assert classify(550, "no such <ana@example.org> user").reason is R.USER_UNKNOWN
