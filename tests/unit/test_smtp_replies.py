"""SMTP replies, however the network cuts them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from worker.channels.email.replies import SmtpReply, SmtpReplyReader

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=80).map(
    lambda text: text.strip(" \t\r")
)
REPLIES = st.lists(
    st.tuples(st.integers(200, 599), st.lists(TEXTS, min_size=1, max_size=4)), min_size=1, max_size=5
)


@given(
    replies=REPLIES,
    cuts=st.lists(st.integers(0, 2000), max_size=20),
    line_end=st.sampled_from(["\r\n", "\n"]),
)
def test_replies_come_back_from_any_pieces(
    replies: list[tuple[int, list[str]]], cuts: list[int], line_end: str
) -> None:
    data = "".join(
        f"{code}{'-' if number < len(lines) else ' '}{line}{line_end}"
        for code, lines in replies
        for number, line in enumerate(lines, 1)
    ).encode()
    reader, found = SmtpReplyReader(), []
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in pairwise(edges):
        found += reader.feed(data[start:end])
    assert found == [SmtpReply(code, "\n".join(lines)) for code, lines in replies]
    assert reader.between_replies


def test_a_code_without_text_and_octets_that_are_not_utf8_are_a_reply() -> None:
    assert list(SmtpReplyReader().feed(b"250\r\n550 caf\xe9\r\n")) == [
        SmtpReply(250, ""),
        SmtpReply(550, "caf\udce9"),
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n",
        b"\r\n",
        b"25\r\n",
        b"+25 Ok\r\n",
        "２５０ Ok\r\n".encode(),
        b"250-" + b"x" * (1 << 20),
        b"250-x\r\n" * 160_000,
    ],
)
def test_bytes_that_are_no_reply_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="the server's reply"):
        list(SmtpReplyReader().feed(data))


def test_a_reply_before_bytes_that_are_none_still_counts() -> None:
    replies = SmtpReplyReader().feed(b"250 Ok\r\nhello\r\n")
    assert next(replies) == SmtpReply(250, "Ok")
    with pytest.raises(ValueError, match="hello"):
        next(replies)


@given(
    code=st.integers(200, 599),
    lines=st.lists(st.integers(0, 30_000), min_size=1, max_size=100),
    cuts=st.lists(st.integers(0, 500_000), max_size=5),
)
@example(code=250, lines=[9_000], cuts=[])
def test_a_long_reply_is_read_by_its_code_and_its_text_is_cut(
    code: int, lines: list[int], cuts: list[int]
) -> None:
    texts = ["x" * length for length in lines]
    data = "".join(
        f"{code}{'-' if number < len(texts) else ' '}{text}\r\n" for number, text in enumerate(texts, 1)
    ).encode()
    assume(len(data) < 1 << 20)
    reader, found = SmtpReplyReader(), []
    for start, end in pairwise([0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]):
        found += reader.feed(data[start:end])
    (reply,) = found
    assert reply.code == code
    assert len(reply.text) <= 65 * 8_192
    assert "\n".join(texts).startswith(reply.text.split("\n")[0])
    assert reader.between_replies
