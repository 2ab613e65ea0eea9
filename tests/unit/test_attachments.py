"""Attachments and inline images: read at the preparation, encoded once, and read back whole."""

from __future__ import annotations

import email
from datetime import UTC, datetime
from email import policy
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any

import pytest
from fast_mail_parser import parse_email
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from worker.channels.email.message import MessageBuilder
from worker.domain import attachments
from worker.domain.attachments import MOST_OCTETS, Attachment
from worker.domain.completion import completed
from worker.domain.content import ContentInvalid, EmailContent
from worker.domain.mailbox import mailbox
from worker.domain.templates import Renderer

if TYPE_CHECKING:
    from fast_mail_parser import PyMail

STRICT = policy.SMTP.clone(raise_on_defect=True)
NAMES = st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters="/\\"), min_size=1, max_size=120
)
ENDS = st.sampled_from(["", ".pdf", ".csv", ".txt", ".png", ".eml", ".tar.gz"])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


def content(**parts: object) -> EmailContent:
    table = {"from": "n@example.org", "subject": "a", "text": "b"} | parts
    return EmailContent.model_validate(table)


def filled(files: dict[str, bytes], **parts: object) -> EmailContent:
    def read(path: str, most: int) -> bytes:
        return files[path][:most]

    return completed(content(**parts), read)


def parsed(some: EmailContent, values: dict[str, Any] | None = None) -> EmailMessage:
    message, _ = parsed_twice(some, values)
    return message


def parsed_twice(some: EmailContent, values: dict[str, Any] | None = None) -> tuple[EmailMessage, PyMail]:
    """Reads what is sent by the standard library's strict policy, and by a parser of other hands."""
    stored = EmailContent.model_validate_json(some.model_dump_json(exclude_none=True))
    renderer = Renderer(stored)
    at = datetime(2026, 12, 1, tzinfo=UTC)
    raw = MessageBuilder(stored, renderer.fixed).build(
        renderer.render(values or {}), mailbox("ana@example.net"), message_id="<1@e.org>", at=at
    )
    assert raw.isascii()
    assert max(map(len, raw.split(b"\r\n"))) <= 998
    message = email.message_from_bytes(raw, policy=STRICT)
    assert isinstance(message, EmailMessage)
    for part in message.walk():
        for value in part.values():
            assert not value.defects
    second = parse_email(raw)
    assert second.warnings == []
    return message, second


def shape(message: Any) -> Any:
    kind = message.get_content_type()
    return (kind, [shape(part) for part in message.iter_parts()]) if message.is_multipart() else kind


def test_each_kind_of_part_has_its_place() -> None:
    files = {"a/logo.png": b"\x89PNG", "terms.pdf": b"%PDF", "list.csv": "é;1\n".encode()}
    given = [
        {"file": "a/logo.png", "cid": "logo"},
        {"file": "terms.pdf", "name": "Conditions générales.pdf"},
        {"file": "list.csv"},
    ]
    some = filled(files, html='<img src="cid:logo">', attachments=given)
    message = parsed(some)
    assert shape(message) == (
        "multipart/mixed",
        [
            (
                "multipart/alternative",
                ["text/plain", ("multipart/related", ["text/html", "image/png"])],
            ),
            "application/pdf",
            "text/csv",
        ],
    )
    related = next(part for part in message.walk() if part.get_content_type() == "multipart/related")
    assert related.get_param("type") == "text/html"
    image = next(part for part in message.walk() if part.get_content_type() == "image/png")
    assert image["Content-ID"] == "<logo>"
    assert image.get_content_disposition() == "inline"
    pdf, csv = message.iter_attachments()
    assert (pdf.get_filename(), pdf.get_content()) == ("Conditions générales.pdf", b"%PDF")
    assert (csv.get_filename(), csv.get_content()) == ("list.csv", "é;1\n")


def test_a_text_alone_with_a_file_is_mixed() -> None:
    message = parsed(filled({"a": b"1"}, attachments=[{"file": "a"}]))
    assert shape(message) == ("multipart/mixed", ["text/plain", "application/octet-stream"])


@settings(deadline=None)
@given(
    files=st.lists(st.tuples(NAMES, ENDS, st.binary(max_size=400)), max_size=4),
    image=st.none() | st.binary(max_size=100),
    text=TEXTS,
    subject=st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=80),
)
def test_any_file_comes_back_from_a_message_without_a_defect(
    files: list[tuple[str, str, bytes]], image: bytes | None, text: str, subject: str
) -> None:
    octets = {f"file{number}{end}": data for number, (_, end, data) in enumerate(files)}
    given: list[dict[str, str]] = [
        {"file": path, "name": name + end} for path, (name, end, _) in zip(octets, files, strict=True)
    ]
    html = "<p>{{ v }}</p>"
    if image is not None:
        octets["i.gif"] = image
        given.append({"file": "i.gif", "cid": "i.1"})
        html += '<img src="cid:i.1">'
    some = filled(octets, attachments=given, html=html, subject="{{ s }}")
    message, second = parsed_twice(some, {"v": text, "s": subject})
    assert second.subject == (message["Subject"] or "")
    assert second.text_plain[0] == "b\r\n"
    (shown,) = [part for part in message.walk() if part.get_content_type() == "text/html"]
    assert second.text_html[0].splitlines() == shown.get_content().splitlines()
    told = [one for one in second.attachments if one.disposition == "attachment"]
    assert [one.filename for one in told] == [name + end for name, end, _ in files]
    assert [one.content for one in told] == [data for *_, data in files]
    found = [part for part in message.walk() if part.get_content_disposition() == "attachment"]
    assert [part.get_filename() for part in found] == [name + end for name, end, _ in files]
    assert [part.get_payload(decode=True) for part in found] == [data for *_, data in files]
    if image is not None:
        inline = next(part for part in message.walk() if part.get_content_disposition() == "inline")
        assert inline.get_payload(decode=True) == image


def test_what_all_recipients_share_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = filled({"a": b"1"}, attachments=[{"file": "a"}])
    renderer, builder = Renderer(stored), MessageBuilder(stored)
    monkeypatch.delattr(attachments.Attachment, "octets")
    at = datetime(2026, 12, 1, tzinfo=UTC)
    for number in range(2):
        name = f"<{number}@e.org>"
        raw = builder.build(renderer.render({}), mailbox("a@example.net"), message_id=name, at=at)
        assert b"MQ==" in raw


@pytest.mark.parametrize(
    ("name", "octets", "kind"),
    [
        ("a.txt", b"caf\xe9", "application/octet-stream"),
        ("a.txt", b"plain", "text/plain"),
        ("a.eml", b"Subject: x\n\n", "application/octet-stream"),
        ("a.PDF", b"", "application/pdf"),
        ("a", b"", "application/octet-stream"),
    ],
)
def test_the_type_is_by_the_name_unless_base64_would_break_it(name: str, octets: bytes, kind: str) -> None:
    assert Attachment(file=f"x/{name}").filled(octets).type == kind


@pytest.mark.parametrize(
    ("one", "words"),
    [
        ({}, "give `file`"),
        ({"file": "a", "data": ""}, "give `file`"),
        ({"data": ""}, "give `name` and `type`"),
        ({"name": "a", "type": "text/plain", "data": "="}, "not base64"),
        ({"file": "a", "name": "a/b"}, "without /"),
        ({"file": "a", "name": "a\nb"}, "one line"),
        ({"file": "a", "type": "pdf"}, "not a media type"),
        ({"file": "a", "type": "message/rfc822"}, "cannot be attached"),
        ({"file": "a", "cid": "a b"}, "letters, digits"),
        ({"file": "a", "cid": "logo"}, "does not show the inline image"),
        ({"path": "a"}, "path"),
    ],
)
def test_an_attachment_that_cannot_be_sent_is_refused(one: dict[str, str], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        content(attachments=[one])


def test_html_and_inline_images_belong_together() -> None:
    with pytest.raises(ValidationError, match="“cid:logo” is none of the attachments"):
        content(html='<img src="cid:logo">')
    twice = [{"file": "a", "cid": "l"}, {"file": "b", "cid": "l"}]
    with pytest.raises(ValidationError, match="same `cid`"):
        content(html='<img src="cid:l">', attachments=twice)


def test_files_that_cannot_be_read_or_are_too_large_are_told() -> None:
    def read(path: str, most: int) -> bytes:
        if path == "none":
            raise FileNotFoundError(2, "No such file or directory")
        return bytes(most)

    with pytest.raises(ContentInvalid, match=r"attachment none cannot be read: No such file"):
        completed(content(attachments=[{"file": "none"}]), read)
    with pytest.raises(ContentInvalid, match=f"more than {MOST_OCTETS:,} octets, with b"):
        completed(content(attachments=[{"file": "b"}]), read)
    most = filled({"a": bytes(MOST_OCTETS)}, attachments=[{"file": "a"}])
    assert len(most.attachments[0].octets) == MOST_OCTETS


def test_one_click_is_offered_where_it_goes_over_https() -> None:
    some = content(unsubscribe="https://u.example.org/{{ v }}")
    message = parsed(some, {"v": "a>, <mailto:x@example.org"})
    assert message["List-Unsubscribe"] == "<https://u.example.org/a%3E%2C%20%3Cmailto:x@example.org>"
    assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    message = parsed(content(unsubscribe="mailto:u@example.org"))
    assert (message["List-Unsubscribe"], message["List-Unsubscribe-Post"]) == ("<mailto:u@example.org>", None)
    message = parsed(content(unsubscribe="{{ v }}"), {"v": ""})
    assert (message["List-Unsubscribe"], message["List-Unsubscribe-Post"]) == (None, None)
    with pytest.raises(ValidationError, match="not both"):
        content(unsubscribe="https://u", headers={"List-Unsubscribe": "<https://u>"})


def test_headers_of_the_installation_give_way_to_those_of_the_delivery() -> None:
    some = content(headers={"x-tag": "own"}, unsubscribe="https://u.example.org")
    defaults = {"X-Tag": "all", "List-Unsubscribe": "<https://v>", "Auto-Submitted": "auto-generated"}
    message = parsed(some.with_headers(defaults))
    assert message["X-Tag"] == "own"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["List-Unsubscribe"] == "<https://u.example.org>"
