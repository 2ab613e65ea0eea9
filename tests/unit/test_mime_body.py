"""Messages built from what is ready against messages built whole: the same octets."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime, timedelta, timezone
from email.header import Header
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.channels.email import body, headers
from worker.channels.email.body import BodyEncoder
from worker.channels.email.message import MessageBuilder
from worker.domain.content import EmailContent
from worker.domain.mailbox import mailbox
from worker.domain.templates import Renderer, RenderFailed

AT = datetime(2026, 12, 1, 9, 0, tzinfo=UTC)
CHARACTERS = st.one_of(
    st.sampled_from([*"\n\n\n\n  \t.=é—я", "\r", "\r\n", "\x00", "\u2028", "😀", "\n.\n", "From ", "=20\n"]),
    st.characters(exclude_categories=["Cs"]),
)
TEXTS = st.lists(
    st.one_of(
        CHARACTERS, st.integers(60, 1100).map(lambda n: "x" * n), st.just("plain words and a line end\n" * 9)
    ),
    max_size=25,
).map("".join)
STATIC = TEXTS.map(
    lambda text: text.replace("{", "").replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
)
"""What a template may hold beside its expressions; Jinja knows one line end, and a NUL is refused."""
TEMPLATES = st.lists(
    st.one_of(
        STATIC,
        st.sampled_from(
            [
                "{{ a }}",
                "{{ b }}",
                "{{ a|upper }}",
                "{% if b %}{{ b }}{% else %}\nno b\nat all\n{% endif %}",
                "{% for c in a %}\none {{ c }}\ntwo\n{% endfor %}",
                "{% set a = b %}",
                "{{ 'folded' }}",
                "{{ b|safe }}",
                "{# nothing #}",
            ]
        ),
    ),
    min_size=1,
    max_size=8,
).map("".join)
LINES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=120)


@given(pieces=st.lists(TEXTS, max_size=8), fixed=st.data())
def test_a_body_in_pieces_is_encoded_as_it_is_whole(pieces: list[str], fixed: st.DataObject) -> None:
    known = fixed.draw(st.lists(st.sampled_from(pieces), max_size=4)) if pieces else []
    encoder = BodyEncoder("plain", known)
    assert encoder.encode(pieces) == encoder.encode_whole("".join(pieces))


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [""],
        ["\n\n"],
        ["a\n\n"],
        ["a\nb\nc"],
        ["end \n", "x\n.\ny", "\n"],
        ["caf\u00e9 \nx\n", "ya\n\nb ", ""],
        ["a\nb\n", "я" * 50, "\nc\nd\n"],
        ["x", "\n" + "я" * 50 + "\nd\n", "end"],
        ["x" * 999, "\nb\nc", "x" * 997],
        ["a\r", "\nb\nc\n"],
    ],
)
def test_pieces_that_meet_at_a_line_end_are_encoded_as_one_text(pieces: list[str]) -> None:
    encoder = BodyEncoder("html", pieces)
    assert encoder.encode(pieces) == encoder.encode_whole("".join(pieces))


@given(text=st.text("я\n", min_size=1, max_size=300))
def test_base64_is_the_standard_librarys(text: str) -> None:
    raw = text.rstrip("\n") + "\n"
    encoded = BodyEncoder("plain").encode_whole(raw).partition(b"\r\n\r\n")[2]
    if 2 * raw.count("я") > len(raw.encode()) / 6:
        expected = base64.encodebytes(raw.replace("\n", "\r\n").encode()).replace(b"\n", b"\r\n")
        assert encoded == expected


def built(*contents: dict[str, Any], variables: dict[str, Any], to: str) -> bytes | str:
    """Builds a message from what is ready and one without, the same but for their boundaries; or why not."""
    content = EmailContent.model_validate(contents[0])
    renderer = Renderer(content)
    outcomes: list[bytes | str] = []
    for builder in (MessageBuilder(content, renderer.fixed), MessageBuilder(content)):
        for _ in range(2):  # what is kept of the first message must not change the second
            try:
                rendered = renderer.render(variables)
                raw = builder.build(
                    rendered, mailbox(to, rendered.to_name), message_id="<1@example.org>", at=AT
                )
            except RenderFailed as error:
                outcomes.append(str(error))
            else:
                outcomes.append(re.sub(rb"=_[amr][0-9a-f]{24}", b"=_", raw))
    assert len(set(outcomes)) == 1
    return outcomes[0]


@given(
    text=st.none() | TEMPLATES,
    html=TEMPLATES,
    a=TEXTS,
    b=TEXTS | st.integers() | st.none() | st.booleans(),
    line=LINES,
)
@example(text="a {{ a }}\nb\nc\n", html="x", a="x\r\nBcc: eve@example.org", b=None, line="=?utf-8?q?x?=")
def test_a_message_from_ready_parts_is_the_message_built_whole(
    text: str | None, html: str, a: str, b: object, line: str
) -> None:
    content = {
        "from": "News <news@example.org>",
        "subject": "{{ line }}",
        "to_name": "{{ line }}",
        "text": text if text is None or text.strip() else "text",
        "html": html if html.strip() else "html",
        "headers": {"X-Line": "{{ line }} {{ line }}"},
    }
    built(content, variables={"a": a, "b": b, "line": line}, to="ana@example.net")


@given(value=LINES, name=st.sampled_from(["Subject", "To", "List-Unsubscribe", "X-" + "long" * 17]))
@example(value="é" * 20, name="Subject")
@example(value="éabcdefghij", name="Subject")  # as long in either encoding
@example(value="a\u00a0b é", name="To")
def test_an_encoded_word_is_the_standard_librarys(value: str, name: str) -> None:
    header = Header(value, "utf-8", maxlinelen=76, header_name=name).encode(linesep="\r\n")
    assert headers._encoded_words(name, value) == f"{name}: {header}"  # noqa: SLF001


def test_each_message_carries_its_own_date() -> None:
    content = EmailContent.model_validate({"from": "n@example.org", "subject": "a", "text": "b"})
    builder, rendered = MessageBuilder(content), Renderer(content).render({})
    for hours in (0, 2, 0):
        for seconds in (0, 1):
            at = AT.astimezone(timezone(timedelta(hours=hours))) + timedelta(seconds=seconds, microseconds=5)
            raw = builder.build(rendered, mailbox("ana@example.net"), message_id="<1@example.org>", at=at)
            assert f"\r\nDate: {format_datetime(at)}\r\n".encode() in raw


def test_what_stands_in_a_loop_or_around_values_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    quoted: list[bytes] = []
    real = body._quoted  # noqa: SLF001
    source = "first café\n" * 50 + "{{ a }}" + "\nlast café" * 50
    encoder = BodyEncoder("plain", ["first café\n" * 50, "\nlast café" * 50])
    monkeypatch.setattr(body, "_quoted", lambda raw: quoted.append(raw) or real(raw))
    encoder.encode(["first café\n" * 50, "a value", "\nlast café" * 50])
    assert sum(map(len, quoted)) < len(source) / 10
