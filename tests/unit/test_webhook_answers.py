"""What a gateway's answer means, how long it asks to wait, where it may be, and how its calls are signed."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from contracts.results import BounceKind, Fault
from worker.channels.webhook.answers import LONGEST_WAIT, Answer, Rule, rule_of, rules
from worker.channels.webhook.hosts import is_public
from worker.domain import standard_webhooks
from worker.domain.bounces import may_be_repeated
from worker.domain.verdicts import Accepted, Bounced
from worker.domain.webhook_options import GatewayUrl, signing_keys

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)


def answer(status: int = 200, body: bytes = b"", **headers: str) -> Answer:
    return Answer(status, "Said", {name.replace("_", "-"): value for name, value in headers.items()}, body)


@given(st.integers(-1, 2_000))
def test_every_status_has_a_rule(status: int) -> None:
    rule = rule_of(status)
    verdict = rule.verdict(answer(status))
    assert isinstance(verdict, Accepted) is (200 <= status < 300)
    if isinstance(verdict, Bounced):
        repeated = may_be_repeated(verdict.kind, verdict.reason, verdict.status)
        assert repeated is (rule.outcome in {"wait", "again"}), rule.name
        assert (verdict.kind is BounceKind.HARD) is (status == 410)
        assert status == 410 or verdict.fault is not Fault.RECIPIENT


@pytest.mark.parametrize(
    ("outcome", "statuses"),
    [
        ("sent", [200, 201, 202, 204, 299]),
        ("wait", [300, 301, 302, 303, 304, 307, 308, 401, 402, 405, 407, 429, 503, 511]),
        ("again", [408, 409, 421, 425, 500, 501, 502, 504, 507, 599]),
        ("refused", [100, 101, 400, 403, 404, 406, 410, 411, 413, 415, 418, 422, 451, 600, 999]),
    ],
)
def test_which_answers_are_waited_for_repeated_or_final(outcome: str, statuses: list[int]) -> None:
    assert {rule_of(status).outcome for status in statuses} == {outcome}


def test_each_rule_is_asked() -> None:
    assert {rule_of(status).name for status in range(100, 1_000)} == {rule.name for rule in rules()}


@pytest.mark.parametrize(
    "changes",
    [
        {"outcome": "again", "code": "5.0.0"},
        {"outcome": "refused", "code": "4.0.0"},
        {"outcome": "sent", "code": "4.0.0"},
        {"outcome": "refused", "code": "5.1.1", "hard": True, "fault": "sender"},
        {"outcome": "again", "code": "4.1.1", "hard": True, "fault": "recipient"},
        {"outcome": "sent", "statuses": ["2xx"]},
    ],
)
def test_a_rule_that_contradicts_itself_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Rule.model_validate({"name": "x", "why": "x", "statuses": ["200"], **changes})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        (" 7 ", 7),
        ("999999999999", LONGEST_WAIT),
        ("-5", 0),
        ("1.5", 0),
        ("٣", 0),
        ("soon", 0),
        ("", 0),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90),
        (format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0),
        ("Fri, 27 Nov 2026 13:00:30 -0000", LONGEST_WAIT),
        ("Fri, 27 Nov 9999 13:00:30 GMT", LONGEST_WAIT),
        ("Fri, 99 Nov 2026 13:00:30 GMT", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_bounded(text: str, seconds: float) -> None:
    assert answer(503, retry_after=text).wait(NOW) == seconds


def test_a_date_is_compared_with_the_gateways_own_clock() -> None:
    theirs = NOW - timedelta(hours=3)
    until = format_datetime(theirs + timedelta(seconds=40), usegmt=True)
    assert answer(429, retry_after=until, date=format_datetime(theirs, usegmt=True)).wait(NOW) == 40
    assert answer(429, retry_after=until, date="no date").wait(NOW) == 0
    assert answer(429).wait(NOW) == 0


@given(st.text(), st.text())
def test_no_header_stops_anything(retry: str, date: str) -> None:
    assert 0 <= answer(429, retry_after=retry, date=date).wait(NOW) <= LONGEST_WAIT


@pytest.mark.parametrize(
    ("body", "provider_id"),
    [
        (b'{"id": "m-1", "x": 2}', "m-1"),
        (b'{"id": 17}', "17"),
        (b'{"id": true}', None),
        (b'{"id": null}', None),
        (b'{"id": ""}', None),
        (b'{"id": "\\ud800"}', "?"),
        (b'["id"]', None),
        (b"[" * 15_000, None),
        (b'{"id": ' + b"9" * 6_000 + b"}", None),
        (b"\xff\xfe\x00", None),
        (b"", None),
    ],
)
def test_the_gateways_own_number_is_kept(body: bytes, provider_id: str | None) -> None:
    assert answer(200, body).provider_id == provider_id


def test_a_reply_is_one_line_of_characters() -> None:
    assert answer(400, b"no\r\n\xffsuch\tthing").reply == "400 Said: no �such thing"
    assert answer(204, b" \n").reply == "204 Said"
    assert len(answer(400, "é".encode() * 8_000).reply) < 1_100


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("::ffff:8.8.8.8", True),
        ("127.0.0.1", False),
        ("127.255.255.254", False),
        ("0.0.0.0", False),  # noqa: S104 - an address to refuse
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("192.0.2.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%lo", False),
        ("fec0::1", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("2001:db8::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True),
        ("2002:7f00:1::", False),
        ("2002:a00:1::", False),
    ],
)
def test_which_addresses_are_of_the_internet(address: str, public: bool) -> None:  # noqa: FBT001
    assert is_public(address) is public


def test_the_signature_is_that_of_the_standard() -> None:
    # The example of standardwebhooks.com's libraries.
    key = standard_webhooks.key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    signed = standard_webhooks.signature([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", body)
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


WORDS = st.text(st.characters(codec="ascii", exclude_characters=" \r\n"), min_size=1)


@given(st.binary(min_size=1), st.binary(min_size=1), st.binary(), WORDS, st.integers(0, 2**40))
def test_a_body_is_signed_by_its_keys_and_by_no_other(
    key: bytes, other: bytes, body: bytes, call_id: str, at: int
) -> None:
    given_by_both = standard_webhooks.signature([key, other], call_id, str(at), body)
    assert standard_webhooks.is_signed([key], call_id, str(at), body, given_by_both)
    assert standard_webhooks.is_signed([other], call_id, str(at), body, given_by_both)
    signed = standard_webhooks.signature([key], call_id, str(at), body)
    assert not standard_webhooks.is_signed([key], call_id, str(at), body + b" ", signed)
    assert not standard_webhooks.is_signed([key], call_id, str(at + 1), body, signed)
    assert not standard_webhooks.is_signed([key], call_id + "1", str(at), body, signed)
    assert not standard_webhooks.is_signed([key + b"1"], call_id, str(at), body, signed)
    assert not standard_webhooks.is_signed([key], call_id, str(at), body, signed.removeprefix("v1,"))


@given(st.dictionaries(st.text(), st.text()))
def test_what_a_receiver_reads_is_what_was_signed(values: dict[str, str]) -> None:
    body = json.dumps(values, ensure_ascii=True).encode()
    signed = standard_webhooks.signature([b"k"], "1", "2", body)
    assert standard_webhooks.is_signed([b"k"], "1", "2", body, f"v1a,x {signed} v2,y")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it holds no secret"),
        (" ,\n", "it holds no secret"),
        ("short", "secret 1 is too short: it needs 24 bytes or more"),
        (f"{'k' * 24},whsec_c2hvcnQ=", "secret 2 is too short"),
        (f"{'k' * 24}\nwhsec_no base64", "secret 2 is no base64 behind whsec_"),
    ],
)
def test_a_secret_that_cannot_be_used_is_said_and_not_shown(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        signing_keys(text)
    assert "c2hvcnQ" not in str(refused.value)


def test_several_secrets_stand_behind_commas_or_on_lines() -> None:
    assert signing_keys(f"{'a' * 24}, {'b' * 24}\n{'c' * 24}\n") == (b"a" * 24, b"b" * 24, b"c" * 24)


@pytest.mark.parametrize(
    ("url", "parsed", "shown"),
    [
        (
            "https://gateway.example.org/v1/send?k=v",
            GatewayUrl(True, "gateway.example.org", 443, "/v1/send?k=v"),
            "https://gateway.example.org",
        ),
        ("http://[::1]:8080", GatewayUrl(False, "::1", 8080, "/"), "http://[::1]:8080"),
        (
            "https://BÜCHER.example/",
            GatewayUrl(True, "xn--bcher-kva.example", 443, "/"),
            "https://xn--bcher-kva.example",
        ),
    ],
)
def test_a_url_is_taken_apart_and_shown_without_its_path(url: str, parsed: GatewayUrl, shown: str) -> None:
    assert GatewayUrl.parse(url) == parsed
    assert str(parsed) == shown


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("gateway.example.org", "it must be https:// or http://, a host"),
        ("ftp://gateway.example.org", "it must be https:// or http://"),
        ("https:///send", "a host, and a path"),
        ("https://user:pass@gateway.example.org", "no user, no password"),
        ("https://gateway.example.org/#x", "no #"),
        ("https://gateway.example.org:99999/", "its port cannot be read"),
        ("https://gateway.example.org/a b", "percent-encoded"),
        ("https://gateway.example.org/é", "percent-encoded"),
        ("https://[::1/", "cannot be read"),
        ("https://\u2024.example/", "its host is no name"),
    ],
)
def test_a_url_that_is_none_of_a_gateway_is_said_and_not_shown(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        GatewayUrl.parse(url)
    assert "pass@" not in str(refused.value)


def test_the_example_in_the_docs_verifies_what_we_sign() -> None:
    page = (Path(__file__).parents[2] / "docs/webhook-channel.md").read_text("utf-8")
    names: dict[str, Any] = {}
    exec(page.split("```python\n", 1)[1].split("```", 1)[0], names)  # noqa: S102 - our own page
    secret, body = "whsec_" + "c2VjcmV0" * 6, b'{"to": "x"}'
    at = str(int(time.time()))
    headers = {"webhook-id": "42-17-0123456789ab", "webhook-timestamp": at}
    keys = signing_keys(f"{'k' * 24},{secret}")
    headers["webhook-signature"] = standard_webhooks.signature(keys, "42-17-0123456789ab", at, body)
    assert names["is_ours"](secret, headers, body)
    assert not names["is_ours"](secret, headers, body + b" ")
    assert not names["is_ours"](secret, headers | {"webhook-timestamp": "1"}, body)
