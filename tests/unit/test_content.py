"""What may stand in the `[email]` table."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from worker.domain.content import EmailContent, control_character
from worker.domain.mailbox import Mailbox, MailboxInvalid, mailbox, named_mailbox

GOOD: dict[str, Any] = {"from": "News <news@example.org>", "subject": "Hello {{ first_name }}", "text": "Hi"}


def test_the_table_becomes_a_content_and_back() -> None:
    table = GOOD | {
        "html": "<p>Hi</p>",
        "reply_to": "answers@example.org",
        "headers": {"List-Unsubscribe": "<https://example.org/u/{{ recipient }}>"},
    }
    content = EmailContent.model_validate(table)
    assert list(content.parts) == ["subject", "text", "html", "headers.List-Unsubscribe"]
    assert EmailContent.model_validate(content.model_dump(mode="json", exclude_none=True)) == content
    assert content.model_dump(exclude_none=True) == table | {"attachments": ()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"text": None}, "give `text`, `html` or both"),
        ({"text": "  \n"}, "blank"),
        ({"subject": ""}, "blank"),
        ({"subject": "Hello\r\nBcc: all@example.org"}, "one line"),
        ({"subject": "Hello\x85"}, "one line"),
        ({"subject": "Hello\u2028"}, "one line"),
        ({"to_name": "a\nb"}, "one line"),
        ({"htlm": "<p>"}, "htlm"),
        ({"from": "News"}, "not a mail address"),
        ({"from": "a@example.org, b@example.org"}, "not one mail address"),
        ({"from": "News\r\nBcc: x@example.org <news@example.org>"}, "control character"),
        ({"from": "{{ who }} <news@{{ domain }}>"}, "mail address"),
        ({"reply_to": ""}, "not one mail address"),
        ({"headers": {"X Y": "1"}}, "not a header name"),
        ({"headers": {"X:Y": "1"}}, "not a header name"),
        ({"headers": {"X\r\nBcc": "1"}}, "not a header name"),
        ({"headers": {"": "1"}}, "not a header name"),
        ({"headers": {"Bcc": "all@example.org"}}, "leave it out"),
        ({"headers": {"MESSAGE-ID": "1"}}, "leave it out"),
        ({"headers": {"Content-Type": "text/plain"}}, "leave it out"),
        ({"headers": {"X-A": "1", "x-a": "2"}}, "twice"),
        ({"headers": {"X-A": "1\r\nBcc: all@example.org"}}, "one line"),
        ({"headers": {"X-A": " "}}, "blank"),
    ],
)
def test_a_content_that_would_break_or_forge_a_message_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        EmailContent.model_validate(GOOD | change)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ana@example.org", Mailbox("", "ana@example.org")),
        ("o'hara+tag@mail.example.co.uk", Mailbox("", "o'hara+tag@mail.example.co.uk")),
        ("root@localhost", Mailbox("", "root@localhost")),
        ("ana@bücher.example", Mailbox("", "ana@xn--bcher-kva.example")),
        ("δοκιμή@παράδειγμα.gr", Mailbox("", "δοκιμή@παράδειγμα.gr", smtputf8=True)),
        ('"a b"@example.org', Mailbox("", '"a b"@example.org')),
    ],
)
def test_an_address_takes_the_form_of_the_wire_and_tells_whether_it_needs_smtputf8(
    text: str, expected: Mailbox
) -> None:
    assert mailbox(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "ana", "@example.org", "ana@", "a b@example.org", "a@b@c", "ana@example.org>", "<ana@example.org>",
     "ana@example.org\r\nRCPT TO:<eve@example.org>", "Ana <ana@example.org>", "ana@example.org SIZE=1",
     "ana@exa\x00mple.org", "a..b@example.org", "ana@-example.org"],
)  # fmt: skip
def test_anything_but_one_bare_address_is_refused(text: str) -> None:
    with pytest.raises(MailboxInvalid):
        mailbox(text)


@given(st.text())
def test_an_address_that_is_taken_fits_into_a_command(text: str) -> None:
    try:
        found = mailbox(text)
    except MailboxInvalid:
        return
    assert found.address.isprintable()
    assert found.smtputf8 is not found.address.isascii()


def test_a_display_name_is_read_apart_from_its_address() -> None:
    assert named_mailbox('"News, daily" <news@example.org>') == Mailbox("News, daily", "news@example.org")
    assert named_mailbox("Übersicht <news@bücher.example>").domain == "xn--bcher-kva.example"


@pytest.mark.parametrize(
    "name",
    ["Bcc", "Cc", "Date", "From", "Message-ID", "MIME-Version", "Reply-To", "Sender", "Subject", "To",
     "Content-Type", "Resent-To", "ARC-Seal", "DKIM-Signature", "Received", "Received-SPF", "Return-Path",
     "Authentication-Results"],
)  # fmt: skip
def test_no_header_is_given_that_sendoff_or_a_mail_server_writes(name: str) -> None:
    for spelt in (name, name.lower(), name.upper()):
        with pytest.raises(ValidationError) as refused:
            EmailContent.model_validate(GOOD | {"headers": {spelt: "1"}})
        sentence = f"the header {spelt} is written by Sendoff or by mail servers; leave it out"
        assert sentence in str(refused.value)


@pytest.mark.parametrize("name", ["List-Unsubscribe", "X-Tag", "Precedence", "!", "~", "Contents", "Tok"])
def test_any_other_header_is_taken(name: str) -> None:
    assert EmailContent.model_validate(GOOD | {"headers": {name: "1"}}).headers == {name: "1"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"text": None}, "Value error, the message is empty: give `text`, `html` or both"),
        ({"text": " "}, "Value error, it must not be blank"),
        ({"html": "a\0"}, "Value error, it holds a NUL character"),
        (
            {"subject": "a\nb"},
            "Value error, it must be one line, without line breaks or other control characters",
        ),
        (
            {"headers": {"a b": "1"}},
            "Value error, 'a b' is not a header name: printable ASCII without spaces and colons",
        ),
        ({"headers": {"X-A": "1", "x-a": "2"}}, "Value error, the header x-a is there twice"),
    ],
)
def test_a_content_that_is_refused_is_told_in_a_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as refused:
        EmailContent.model_validate(GOOD | change)
    assert [error["msg"] for error in refused.value.errors()] == [sentence]


def test_an_address_as_long_as_a_command_can_carry_is_taken() -> None:
    host = ".".join(["b" * 60] * 3) + ".org"
    longest = "a" * (253 - len(host)) + "@" + host
    assert len(longest) == 254
    assert mailbox(longest, "Ana") == Mailbox("Ana", longest)
    with pytest.raises(MailboxInvalid, match="is not a mail address: "):
        mailbox("a" + longest)


def test_a_named_address_is_refused_in_a_sentence() -> None:
    with pytest.raises(MailboxInvalid, match=r"^'a\\nb' holds a line break or another control character\.$"):
        named_mailbox("a\nb")
    for text in ("", "a@example.org, b@example.org"):
        with pytest.raises(MailboxInvalid, match="' is not one mail address such as “News <news@"):
            named_mailbox(text)


@given(st.text(max_size=40))
def test_a_header_value_is_held_up_by_its_first_control_character_alone(value: str) -> None:
    controls = [c for c in value if unicodedata.category(c) in {"Cc", "Zl", "Zp"}]
    assert control_character(value) == (controls[0] if controls else None)
