"""Any octets are read: nothing is raised, and nothing grows with what somebody sends."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from contracts.results import BounceKind
from tests.support.returned_mail import ADDRESS, complaint, failure_notice, report
from worker.domain.bounces import LONGEST_REPLY
from worker.returned import mime
from worker.returned.mime import open_mail
from worker.returned.reading import (
    AutomaticAnswer,
    Bounce,
    Complaint,
    Loop,
    NoFailure,
    NothingOfOurs,
    Reading,
    read_mail,
)

FIELDS = f"""Final-Recipient: rfc822; {ADDRESS}
Action: failed
Status: 5.1.1
Diagnostic-Code: smtp; 550 5.1.1 no such user
"""
WHOLE = [
    report(FIELDS),
    complaint(f"Feedback-Type: abuse\nOriginal-Rcpt-To: {ADDRESS}\n"),
    failure_notice(
        f"<{ADDRESS}>:\nRemote host said: 550 5.1.1 no such user\n\n"
        "--- Original message ---\n\nFrom: a\nTo: b\n"
    ),
]
PIECES = st.sampled_from(
    [
        b"From: MAILER-DAEMON\r\n",
        b"From: " + b"(" * 2_000,
        b"Subject: failure notice\r\n",
        b"Subject: =?x?q?" + b"=00" * 9 + b"?=\r\n",
        b"Subject: =?utf-8?b?@?=\r\n",
        b"Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n",
        b'Content-Type: multipart/mixed; boundary=""\r\n',
        b"Content-Type: message/rfc822\r\n",
        b"Content-Type: message/delivery-status\r\n",
        b"Content-Type: text/html; charset=idna\r\n",
        b"Content-Type: text/plain; charset*0=u; charset*1*=''%ff\r\n",
        b"Content-Transfer-Encoding: base64\r\n",
        b"Content-Transfer-Encoding: x-uuencode\r\n",
        b"X-Failed-Recipients: a@b.example, @, <>\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b"--b\r\n",
        b"--b--\r\n",
        b"--\r\n",
        b"Final-Recipient: rfc822; ",
        b"Diagnostic-Code: ",
        b"550-",
        b"550 5.1.1 ",
        b"<<< 550 a\r\n",
        b">>> MAIL From:<a@b.example>\r\n",
        b"<a@b.example>:",
        b"a@b.example\r\n",
        b"original message\r\n",
        b"Message-ID: <a@b.example>\r\n",
        b"\xff\xfe\x00",
        b"\x1b$B",
        b"<" * 300,
    ]
)
MADE = st.lists(PIECES | st.binary(max_size=20), max_size=40).map(b"".join)


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """A real report with octets cut out, put in or doubled."""
    data = draw(st.sampled_from(WHOLE))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 200)))
        data = data[:start] + draw(MADE | st.binary(max_size=10) | st.just(data[start:end] * 3)) + data[end:]
    return data


def check(reading: Reading) -> None:
    assert isinstance(reading, Bounce | Complaint | AutomaticAnswer | Loop | NoFailure | NothingOfOurs)
    references = getattr(reading, "references", ())
    assert len(references) <= 20
    assert all(len(reference) <= 502 for reference in references)
    if isinstance(reading, Bounce):
        assert len(reading.returned) <= 100
        for one in reading.returned:
            assert len(one.reply) <= LONGEST_REPLY
            assert one.reply.isprintable()
            assert one.address is None or "@" in one.address
            assert one.verdict.kind is not BounceKind.HARD or one.verdict.status.startswith("5")


@given(MADE | spoilt() | st.binary(max_size=300))
@example(b"Content-Type: text/plain; charset=idna\r\n\r\n\x80")
@example(b"Content-Type: multipart/mixed; boundary*" + b"1" * 5_000 + b"=a\r\n\r\n")
@example(b"From: " + b"(" * 9_000 + b"\r\n\r\n")
@example(b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n" * 3_000)
def test_any_octets_are_read(data: bytes) -> None:
    check(read_mail(data))


def test_ten_megabytes_in_a_thousand_parts_are_cut() -> None:
    part = b"--edge\r\nContent-Type: text/plain\r\n\r\n" + b"550 5.1.1 no such user\r\n" * 450
    header = b"From: MAILER-DAEMON@x\r\nContent-Type: multipart/mixed; boundary=edge\r\n\r\n"
    opened = open_mail(header + part * 1_000)
    assert sum(map(len, opened.texts)) <= mime.LONGEST_TEXT
    check(read_mail(header + part * 1_000))


def test_a_report_before_ten_megabytes_is_read() -> None:
    data = report(FIELDS, returned="Subject: Hello\n\n" + "a line of the returned mail\n" * 400_000)
    reading = read_mail(data)
    assert isinstance(reading, Bounce)
    assert [one.address for one in reading.returned] == [ADDRESS]
