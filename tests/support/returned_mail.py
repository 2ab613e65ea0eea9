"""Returned mails, invented: each in the form that a kind of server writes."""

from __future__ import annotations

MESSAGE_ID = "42-17-1.0123456789ab@example.org"
ADDRESS = "zoe@shop.example"
RETURNED = f"""Return-Path: <news@example.org>
Received: from mx.example.org by relay.example
Message-ID: <{MESSAGE_ID}>
From: News <news@example.org>
To: {ADDRESS}
Subject: Hello

Hello, Zoe. Call 550 5.1.1 if you like: other@shop.example
"""


def mail(header: str, body: str) -> bytes:
    """A mail as octets, with the line ends of the network."""
    return f"{header.strip()}\n\n{body}".replace("\n", "\r\n").encode()


def report(fields: str, words: str = "The mail could not be delivered.", returned: str = RETURNED) -> bytes:
    """A report by RFC 3464: words, the fields, and the returned mail."""
    return multipart(
        "delivery-status",
        ("text/plain; charset=utf-8", words),
        ("message/delivery-status", f"Reporting-MTA: dns; relay.example\n\n{fields}"),
        ("message/rfc822", returned),
    )


def complaint(fields: str, returned: str = RETURNED) -> bytes:
    """A report by RFC 5965."""
    return multipart(
        "feedback-report",
        ("text/plain", "This is an abuse report."),
        ("message/feedback-report", fields),
        ("message/rfc822", returned),
        sender="fbl@provider.example",
    )


def multipart(
    report_type: str,
    *parts: tuple[str, str],
    sender: str = "Mail Delivery System <MAILER-DAEMON@relay.example>",
) -> bytes:
    """A multipart/report (RFC 6522)."""
    body = "".join(f"--edge\nContent-Type: {kind}\n\n{text}\n" for kind, text in parts)
    header = f"""From: {sender}
Subject: Undelivered Mail Returned to Sender
MIME-Version: 1.0
Content-Type: multipart/report; report-type={report_type}; boundary=edge"""
    return mail(header, f"{body}--edge--\n")


def failure_notice(words: str, sender: str = "MAILER-DAEMON@relay.example", **header: str) -> bytes:
    """A mail in words only."""
    more = "".join(f"{name.replace('_', '-')}: {value}\n" for name, value in header.items())
    return mail(f"From: {sender}\nSubject: failure notice\n{more}", words)
