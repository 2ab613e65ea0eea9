"""What the codes of a refusal mean where its words say nothing: RFC 3463, RFC 5248 and RFC 5321."""

from __future__ import annotations

import pytest

from contracts.results import BounceKind, BounceReason, Fault
from worker.domain.bounces import classify

R, F = BounceReason, Fault

CONDEMNED = {
    *("1.1", "1.2", "1.3", "1.6", "1.10", "1.351", "4.310"),  # nobody there, no such domain, moved
    "2.1",  # disabled
    *("7.17", "7.18"),  # a new owner has the mailbox, or the domain
}
"""The only subjects and details that say of an address that it does not work."""

MEANINGS: dict[tuple[BounceReason, Fault | None], str] = {
    (R.USER_UNKNOWN, F.RECIPIENT): "1.1 1.3 1.351 7.17",
    (R.INVALID_DOMAIN, F.RECIPIENT): "1.2 1.10 4.310 7.18",
    (R.MOVED, F.RECIPIENT): "1.6",
    (R.ACCOUNT_DISABLED, F.RECIPIENT): "2.1 7.13",
    (R.MAILBOX_FULL, F.RECIPIENT): "2.2",
    (R.REFUSED, F.RECIPIENT): "1.4 2.4",
    (R.REFUSED, None): "1.0 2.0",
    (R.REFUSED, F.SENDER): "1.7 1.8 7.27",
    (R.POLICY, F.SENDER): "7.0 7.1 7.2 7.10 7.11 7.12 7.57 7.64 7.124 7.133 7.134 7.136",
    (
        R.AUTHENTICATION,
        F.SENDER,
    ): "7.8 7.9 7.20 7.21 7.22 7.23 7.24 7.25 7.26 7.29 7.30 7.31 7.32 7.40 7.509 7.515",
    (R.SPAM, F.SENDER): "7.501 7.508 7.511 7.513 7.606 7.649 7.708 7.750",
    (R.RATE_LIMITED, F.SENDER): "5.3 7.28 1.90 2.121 2.122 7.705",
    (R.RATE_LIMITED, F.INFRASTRUCTURE): "4.5",
    (R.TOO_LARGE, F.CONTENT): "2.3 3.4",
    (R.CONTENT, F.CONTENT): "6.0 6.1 6.2 6.3 6.5 6.6 7.512",
    (R.SYSTEM, F.INFRASTRUCTURE): "3.0 3.1 3.2 3.5 4.3 4.6 4.14",
    (R.UNREACHABLE, F.INFRASTRUCTURE): "4.0 4.1 4.2 4.4",
    (R.EXPIRED, F.INFRASTRUCTURE): "4.7 4.312 4.316",
    (R.PROTOCOL, F.INFRASTRUCTURE): "1.9 3.3 5.0 5.1 5.2 5.4 5.5 6.7 6.8 6.9 6.10",
}
MEANING = {code: meaning for meaning, codes in MEANINGS.items() for code in codes.split()}
VAGUE = {
    "1.0",
    "2.0",
    "2.1",
    "3.0",
    "3.2",
    "4.0",
    "4.1",
    "4.2",
    "4.4",
    "5.0",
    "5.1",
    "5.2",
    "5.4",
    "6.0",
    "6.6",
    "7.0",
    "7.1",
    "7.9",
}
"""Codes that servers give with words that say more."""

BASIC: dict[tuple[BounceReason, Fault | None], str] = {
    (R.UNREACHABLE, F.INFRASTRUCTURE): "421",
    (R.REFUSED, None): "450 550 553 554",
    (R.SYSTEM, F.INFRASTRUCTURE): "451 452",
    (R.AUTHENTICATION, F.SENDER): "454 530 534 535 538",
    (R.PROTOCOL, F.INFRASTRUCTURE): "455 500 501 502 503 504 555",
    (R.INVALID_DOMAIN, F.RECIPIENT): "521 556",
    (R.MOVED, F.RECIPIENT): "551",
    (R.MAILBOX_FULL, F.RECIPIENT): "552",
}
BASICS = {int(code): meaning for meaning, codes in BASIC.items() for code in codes.split()}


@pytest.mark.parametrize("code", MEANING)
def test_an_enhanced_code_means_what_its_rfc_says(code: str) -> None:
    meaning = classify(599, f"5.{code} -")
    assert (meaning.reason, meaning.fault) == MEANING[code]
    assert (meaning.kind is BounceKind.HARD) == (code in CONDEMNED)
    for_now = classify(450, f"4.{code} -")
    assert for_now == classify(450, "-", status=f"4.{code}")
    assert for_now.kind is BounceKind.SOFT
    assert for_now.again
    if code != "2.1":  # for now it says of the mailbox only that something is the matter
        assert for_now.reason is meaning.reason


def test_an_enhanced_code_that_is_not_registered_counts_as_the_vague_one_of_its_subject() -> None:
    for subject in range(1, 8):
        for detail in range(100):
            code = f"{subject}.{detail}"
            if code not in MEANING:
                meaning = classify(599, f"5.{code} -")
                assert (meaning.reason, meaning.fault) == MEANING[f"{subject}.0"], code
                assert not meaning.again
                assert meaning.status == f"5.{code}"
                assert meaning.kind is BounceKind.SOFT


@pytest.mark.parametrize("code", MEANING)
def test_words_say_more_than_a_vague_code_and_less_than_an_exact_one(code: str) -> None:
    meaning = classify(550, f"5.{code} connection timed out")
    said = (R.UNREACHABLE, F.INFRASTRUCTURE)
    assert (meaning.reason, meaning.fault) == (said if code in VAGUE else MEANING[code])


@pytest.mark.parametrize("code", MEANING)
def test_words_against_the_sender_say_more_than_any_code(code: str) -> None:
    meaning = classify(550, f"5.{code} listed by spamhaus")
    assert (meaning.kind, meaning.reason, meaning.fault) == (BounceKind.SOFT, R.SPAM, F.SENDER)


def test_a_basic_code_alone_means_what_rfc_5321_and_its_extensions_say() -> None:
    for code in range(400, 600):
        meaning = classify(code, "-")
        assert (meaning.reason, meaning.fault) == BASICS.get(code, (R.NOT_DEFINED, None)), code
        assert (meaning.kind is BounceKind.HARD) == (code in {521, 551, 556})
        assert meaning.status == f"{code // 100}.0.0"
        assert meaning.again == (code < 500 or meaning.reason is R.MAILBOX_FULL)


@pytest.mark.parametrize("status", ["5.0.0", "5.9.9"])
def test_a_code_that_says_nothing_leaves_the_word_to_the_basic_one(status: str) -> None:
    meaning = classify(551, "-", status=status)
    assert (meaning.reason, meaning.status) == (R.MOVED, status)
