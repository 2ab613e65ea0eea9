"""Messages read back with the standard library's own parser."""

from __future__ import annotations

import email
import re
from datetime import UTC, datetime
from email import policy
from email.header import decode_header, make_header
from email.utils import getaddresses
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.channels.email.message import MessageBuilder
from worker.domain.content import EmailContent
from worker.domain.mailbox import MailboxInvalid, mailbox
from worker.domain.templates import Renderer, RenderFailed

if TYPE_CHECKING:
    from email.message import EmailMessage

AT = datetime(2026, 12, 1, 9, 0, tzinfo=UTC)
LINES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=300)
BODIES = st.text(st.characters(exclude_categories=["Cs"]), max_size=3000)


def build(variables: dict[str, Any] | None = None, to: str = "ana@example.net", **parts: object) -> bytes:
    content = EmailContent.model_validate(
        {"from": "News <news@example.org>", "subject": "Hello", "text": "Hi"} | parts,
    )
    rendered = Renderer(content).render(variables or {})
    builder = MessageBuilder(content)
    recipient = mailbox(to, rendered.to_name)
    raw = builder.build(rendered, recipient, message_id=builder.message_id("42-17-1"), at=AT)
    assert_sound(raw, smtputf8=builder.smtputf8(recipient))
    return raw


def assert_sound(raw: bytes, *, smtputf8: bool = False) -> None:
    """Holds of any message: whole lines with CRLF, none too long, ASCII unless agreed otherwise."""
    assert raw.endswith(b"\r\n")
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", raw)
    assert max(map(len, raw.split(b"\r\n"))) <= 998
    assert b"\0" not in raw
    assert raw.isascii() or smtputf8
    for line in raw.partition(b"\r\n\r\n")[0].split(b"\r\n"):
        words = re.findall(rb"=\?utf-8\?[bq]\?[^? ]*\?=", line)
        assert not words or (len(line) <= 76 and max(map(len, words)) <= 75)  # RFC 2047 section 2


def parse(raw: bytes) -> EmailMessage:
    message = email.message_from_bytes(raw, policy=policy.SMTP.clone(raise_on_defect=True))
    for part in message.walk():
        assert not part.defects
        for name, value in part.items():
            assert not value.defects, (name, value.defects)
    return message


def to(raw: bytes) -> tuple[str, str]:
    """Name and address, by the older parser: the newer one leaves spaces between encoded words."""
    header = email.message_from_bytes(raw)["To"]
    ((name, address),) = getaddresses(["".join(header.splitlines())])
    return str(make_header(decode_header(name))), address


def body(message: EmailMessage, subtype: str = "plain") -> str:
    part = message.get_body((subtype,))
    assert part is not None
    content: str = part.get_content()
    return content.replace("\r\n", "\n")


def test_every_header_is_there_once_with_its_value() -> None:
    message = parse(
        build(html="<p>Hi</p>", reply_to="Answers <re@example.org>", to_name="Ana", headers={"X-A": "b"})
    )
    assert message["From"] == "News <news@example.org>"
    assert message["To"] == "Ana <ana@example.net>"
    assert message["Reply-To"] == "Answers <re@example.org>"
    assert message["Subject"] == "Hello"
    assert message["Date"].datetime == AT
    assert message["MIME-Version"] == "1.0"
    assert message["X-A"] == "b"
    assert re.fullmatch(r"<42-17-1\.[0-9a-f]{12}@example\.org>", message["Message-ID"])
    assert message.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]
    assert len(message.keys()) == len({name.lower() for name in message.keys()})  # noqa: SIM118 - a list of all


@pytest.mark.parametrize(
    ("parts", "kind"), [({}, "text/plain"), ({"text": None, "html": "<p>"}, "text/html")]
)
def test_one_body_needs_no_multipart(parts: dict[str, Any], kind: str) -> None:
    assert parse(build(**parts)).get_content_type() == kind


def test_the_message_id_is_the_attempts_own() -> None:
    content = EmailContent.model_validate({"from": "n@bücher.example", "subject": "a", "text": "b"})
    other = content.model_copy(update={"subject": "c"})
    ids = [
        MessageBuilder(some).message_id(attempt)
        for some in (content, other)
        for attempt in ("1-1-1", "1-1-2")
    ]
    assert len(set(ids)) == 4
    assert ids[0] == MessageBuilder(content).message_id("1-1-1")
    assert ids[0].endswith("@xn--bcher-kva.example>")


@pytest.mark.parametrize(
    "words",
    [
        "Привет, мир! Новости за ноябрь",
        "你好 世界",
        "مرحبا بالعالم",
        "नमस्ते दुनिया",
        "Grüße aus Köln — “schön”",
        "👩‍👩‍👧‍👦 🎉 emoji",
        "=?utf-8?q?not_an_encoded_word?=",
        "a  b   c",
        'quo"ted \\ and (brackets), <angles>; @ all',
        "word " * 60 + "end",
        "длинное слово " * 40 + "конец",
        "今日のニュースレター、" * 20,
        "x" * 500,
        "",
    ],
)
def test_words_of_any_script_and_length_come_back_from_every_part(words: str) -> None:
    raw = build(
        {"w": words}, subject="{{ w }}", to_name="{{ w }}", text="{{ w }}", headers={"X-W": "{{ w }}"}
    )
    message = parse(raw)
    assert (message["Subject"] or "") == words
    assert (message["X-W"] or "") == words
    assert to(raw) == (words, "ana@example.net")
    assert body(message) == words + "\n"


@given(line=LINES)
def test_any_line_comes_back_from_the_headers(line: str) -> None:
    raw = build({"v": line}, subject="{{ v }}", to_name="{{ v }}")
    message = parse(raw)
    assert (message["Subject"] or "") == line.strip(" ")
    assert to(raw) == (line.strip(" "), "ana@example.net")


@given(text=BODIES)
def test_any_body_comes_back(text: str) -> None:
    raw = build({"v": text}, text="{{ v }}", html="<p>{{ v|safe }}</p>")
    message = parse(raw)
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    assert body(message) == (lines if lines.endswith("\n") else lines + "\n")
    assert body(message, "html") == f"<p>{lines}</p>\n"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("plain\nlines\n.\n.dot\nFrom here\n", "7bit"),
        ("x" * 998, "7bit"),
        ("x" * 999, "quoted-printable"),
        ("caf\u00e9 " + "plain words " * 10, "quoted-printable"),
        ("bell \x07 and nul \x00", "quoted-printable"),
        ("Привет", "base64"),
    ],
)
def test_the_transfer_encoding_is_the_plainest_that_carries_the_text(text: str, encoding: str) -> None:
    message = parse(build({"v": text}, text="{{ v }}"))
    assert message["Content-Transfer-Encoding"] == encoding
    assert body(message).rstrip("\n") == text.rstrip("\n")


def test_a_value_cannot_end_its_part() -> None:
    foreseen = build({"v": "x"}, text="{{ v }}", html="<p>")
    boundary = parse(foreseen).get_boundary()
    message = parse(
        build({"v": f"\r\n--{boundary}\r\nContent-Type: text/evil\r\n\r\n"}, text="{{ v }}", html="<p>")
    )
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]


def test_a_display_name_cannot_add_an_address() -> None:
    for name in (
        "eve@example.org, x",
        "<eve@example.org>",
        '" <eve@example.org>, "',
        "é <eve@example.org>, é",
    ):
        assert to(build({"v": name}, to_name="{{ v }}")) == (name, "ana@example.net")


def test_an_international_domain_is_ascii_and_an_international_local_part_stays() -> None:
    assert parse(build(to="ana@bücher.example"))["To"] == "ana@xn--bcher-kva.example"
    raw = build(to="δοκιμή@παράδειγμα.gr", to_name="Δοκιμή")
    assert "<δοκιμή@παράδειγμα.gr>".encode() in raw


@pytest.mark.parametrize("address", ["x" * 900 + "@example.org", "ana@" + "long." * 190 + "org"])
def test_an_address_too_long_for_a_command_is_refused(address: str) -> None:
    assert len(address) <= 1_000, "a send message may hold it"
    with pytest.raises(MailboxInvalid, match="too long"):
        build(to=address)


def test_a_header_word_too_long_for_a_line_is_refused() -> None:
    with pytest.raises(RenderFailed, match="List-Unsubscribe"):
        build({"v": "x" * 2000}, headers={"List-Unsubscribe": "<https://example.org/{{ v }}>"})


def test_the_builder_refuses_line_breaks_by_itself() -> None:
    content = EmailContent.model_validate({"from": "n@example.org", "subject": "a", "text": "b"})
    builder, rendered = MessageBuilder(content), Renderer(content).render({})
    with pytest.raises(ValueError, match="line break"):
        builder.build(rendered, mailbox("ana@example.net", "a\nb"), message_id="<1@example.org>", at=AT)
