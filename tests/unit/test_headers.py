"""Header fields by their kind: no value of a recipient adds an item, or is decoded into another."""

from __future__ import annotations

import email
import re
from datetime import UTC, datetime
from email import policy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from worker.channels.email.message import MessageBuilder
from worker.domain import headers
from worker.domain.audience import AddressInvalid, mail_address
from worker.domain.content import EmailContent
from worker.domain.mailbox import MailboxInvalid, mailbox, named_mailbox
from worker.domain.templates import Renderer, RenderFailed

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def content(fields: dict[str, str]) -> EmailContent:
    table = {"from": "n@example.org", "subject": "a", "text": "b", "headers": fields}
    return EmailContent.model_validate(table)


def built(name: str, template: str, **values: Any) -> list[str]:
    """Returns the header's lines as they are sent; none if it is not sent."""
    some = content({name: template})
    rendered = Renderer(some).render(values)
    at = datetime(2026, 12, 1, tzinfo=UTC)
    raw = MessageBuilder(some).build(rendered, mailbox("ana@example.net"), message_id="<1@e.org>", at=at)
    strict = email.message_from_bytes(raw, policy=policy.SMTP.clone(raise_on_defect=True))
    assert len(strict.get_all(name, [])) <= 1
    head = raw.partition(b"\r\n\r\n")[0].decode("ascii")
    assert max(map(len, head.split("\r\n"))) <= 998
    fields = re.split(r"\r\n(?! )", head)
    return [line for field in fields if field.startswith(f"{name}:") for line in field.split("\r\n")]


@pytest.mark.parametrize(
    ("template", "value", "line"),
    [
        ("<https://u/{{ v }}>", "Zoë", "<https://u/Zo%C3%AB>"),
        ("<https://u/{{ v }}>", "a b>, <mailto:x@example.com", "<https://u/a%20b%3E%2C%20%3Cmailto:x@example.com>"),
        ("<https://u/?q=?{{ v }}>", "b", "<https://u/?q=?b>"),
        ("https://u/?q={{ v }}", "a,b", "<https://u/?q=a%2Cb>"),
        ("<{{ v }}>", "https://u/a?b=c&d=%2F#e", "<https://u/a?b=c&d=%2F#e>"),
        ("<https://u/{{ v|urlencode }}>", "a/b é%", "<https://u/a/b%20%C3%A9%25>"),
        ("<https://u/{{ v }}>", "100%", "<https://u/100%25>"),
        ("<https://u/größe/{{ v }}>", "1", "<https://u/gr%C3%B6%C3%9Fe/1>"),
        ("<https://u/{{ v }}>", "=?utf-8?q?a?=", "<https://u/%3D?utf-8?q?a?=>"),
        ("<https://u/{{ v }}>", "a\r\nBcc: eve@example.org", "<https://u/a%0D%0ABcc:%20eve@example.org>"),
        ("<mailto:u@example.org?subject={{ v|urlencode }}>,  <https://u>", "a&b",
         "<mailto:u@example.org?subject=a%26b>, <https://u>"),
        ("<{{ v }}>, <https://u>", "", "<https://u>"),
    ],
)  # fmt: skip
def test_a_value_is_an_ordinary_part_of_its_uri(template: str, value: str, line: str) -> None:
    assert built("List-Unsubscribe", template, v=value) == [f"List-Unsubscribe: {line}"]


@given(value=TEXTS)
def test_no_value_adds_a_uri(value: str) -> None:
    (line,) = built("List-Help", "<https://u/{{ v }}>", v=value)
    found = re.fullmatch(r"List-Help: <https://u/([!-~]*)>", line)
    assert found
    assert not re.search(r"[<>,\"]", found[1])


@pytest.mark.parametrize(
    ("name", "template"),
    [("X-Tag", "{{ v }}"), ("List-Unsubscribe", "<{{ v }}>"), ("List-Unsubscribe", "{{ v }}"),
     ("Feedback-ID", "{{ v }}"), ("List-Id", "{{ v }}"), ("X-Tag", " {{ v }} ")],
)  # fmt: skip
def test_an_empty_value_sends_no_header(name: str, template: str) -> None:
    assert built(name, template, v="") == []


def test_an_empty_subject_is_no_header() -> None:
    some = EmailContent.model_validate({"from": "n@example.org", "subject": "{{ v }}", "text": "b"})
    at = datetime(2026, 12, 1, tzinfo=UTC)
    rendered = Renderer(some).render({"v": ""})
    raw = MessageBuilder(some).build(rendered, mailbox("a@example.net"), message_id="<1@e.org>", at=at)
    assert b"Subject" not in raw


@pytest.mark.parametrize(
    ("name", "template", "value", "words"),
    [
        ("List-Unsubscribe", "<https://u>, {{ v }}", "x", "each in angle brackets"),
        ("List-Unsubscribe", "<https://u> <https://v>", "x", "each in angle brackets"),
        ("List-Unsubscribe", "<{{ v }}>", "somewhere", "whole address such as https"),
        ("List-Unsubscribe", "{{ v }}", "/u/17", "whole address such as https"),
        ("List-Id", "News, {{ v }}", "x", "identifier in angle brackets"),
        ("List-Id", "<a> {{ v }}", "x", "identifier in angle brackets"),
        ("Feedback-ID", "é:{{ v }}", "x", "printable ASCII"),
        ("Feedback-ID", "=?:{{ v }}", "x", "printable ASCII"),
    ],
)
def test_what_is_no_such_field_is_told_with_its_part(
    name: str, template: str, value: str, words: str
) -> None:
    with pytest.raises(RenderFailed, match=rf"^headers\.{name}: .*{words}"):
        built(name, template, v=value)


def test_an_identifier_stays_one() -> None:
    assert built("Feedback-ID", "{{ v }}:news:mail:shop", v="a:b é") == [
        "Feedback-ID: a%3Ab%20%C3%A9:news:mail:shop"
    ]
    assert built("List-Unsubscribe", "<https://u/{{ v }}>", v="x" * 200) == [
        f"List-Unsubscribe: <https://u/{'x' * 200}>"
    ]
    assert built("Auto-Submitted", "auto-generated") == ["Auto-Submitted: auto-generated"]


@given(value=TEXTS.filter(str.strip))
def test_no_value_leaves_its_place_in_an_identifier(value: str) -> None:
    try:
        lines = built("References", "<{{ v }}@example.org>", v=value)
    except RenderFailed as error:
        assert "control character" in str(error)  # noqa: PT017 - either way is right
        return
    assert re.fullmatch(r"References: <[!-;=?-~]+@example\.org>", " ".join(lines))


@pytest.mark.parametrize(
    ("template", "value", "lines"),
    [
        ("<news.example.org>", "", ["List-Id: <news.example.org>"]),
        ("news.example.org", "", ["List-Id: <news.example.org>"]),
        ("News, {{ v }} <news.example.org>", "daily", ['List-Id: "News, daily" <news.example.org>']),
        ("News <news.{{ v }}.example.org>", "a b", ["List-Id: News <news.a%20b.example.org>"]),
        ("{{ v }} <news.example.org>", "a <b@c>", ['List-Id: "a %3Cb@c%3E" <news.example.org>']),
        ("{{ v }} <news.example.org>", "é", ["List-Id: =?utf-8?b?w6k=?= <news.example.org>"]),
    ],
)
def test_a_list_id_is_a_phrase_and_an_identifier(template: str, value: str, lines: list[str]) -> None:
    assert built("List-Id", template, v=value) == lines


def test_a_long_list_is_folded_between_its_uris() -> None:
    lines = built("List-Help", ", ".join(f"<https://example.org/help/{n}/{'x' * 30}>" for n in range(4)))
    assert len(lines) == 4
    assert all(line.rstrip(",").endswith(">") for line in lines)


@pytest.mark.parametrize(
    "name",
    ["Delivered-To", "Return-Receipt-To", "Disposition-Notification-To", "X-Original-To", "Errors-To",
     "Apparently-To", "Envelope-To", "Mail-Followup-To", "DomainKey-Signature", "Resent-Bcc"],
)  # fmt: skip
def test_headers_that_name_further_mailboxes_or_ask_for_receipts_are_refused(name: str) -> None:
    for spelt in (name, name.lower()):
        with pytest.raises(ValidationError, match=f"the header {spelt} .*; leave it out"):
            content({spelt: "a@example.org"})


def test_a_name_leaves_room_for_an_encoded_word() -> None:
    assert built("X" * 50, "{{ v }}", v="é" * 100)
    with pytest.raises(ValidationError, match="longer than 50 characters"):
        content({"X" * 51: "a"})


def test_one_click_needs_the_address_that_is_clicked() -> None:
    post = {"List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}
    with pytest.raises(ValidationError, match="needs List-Unsubscribe"):
        content(post)
    assert content(post | {"List-Unsubscribe": "<https://u>"})


@pytest.mark.parametrize("address", ["=?utf-8?b?SGk=?=@example.net", "a=?b@example.net", '"=?x"@example.net'])
def test_an_address_that_reads_as_an_encoded_word_is_none(address: str) -> None:
    with pytest.raises(MailboxInvalid, match="encoded words"):
        mailbox(address)
    with pytest.raises(MailboxInvalid):
        named_mailbox(f"Ana <{address}>")
    with pytest.raises(AddressInvalid, match="encoded words"):
        mail_address(address)


@given(value=st.text(max_size=80), name=st.sampled_from(["List-Help", "List-Id", "Feedback-ID"]))
def test_what_is_shaped_is_shaped_already(value: str, name: str) -> None:
    try:
        once = headers.shaped(name, value.strip())
    except (headers.HeaderInvalid, UnicodeEncodeError):
        return
    assert headers.shaped(name, once) == once
