"""What comes back in the demo: a mail that a server returns later, and a complaint that a provider passes on.

Both go to the listener over LMTP, as Postfix brings them. Whose they are, it finds out as it does everywhere:
by the signed envelope sender, and by the signed Message-ID.
"""

from __future__ import annotations

import email
import smtplib
import time
from email.policy import SMTP
from typing import TYPE_CHECKING

from demo_commands import RETURNS

if TYPE_CHECKING:
    from email.message import EmailMessage

SECONDS = 10
EDGE = "demo-edge"

BOUNCE = """\
From: Mail Delivery System <MAILER-DAEMON@mx.example.org>
To: <{sender}>
Subject: Undelivered Mail Returned to Sender
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary={edge}

--{edge}
Content-Type: text/plain; charset=utf-8

Your message was taken, and the mailbox was found to be closed then.

--{edge}
Content-Type: message/{kind}delivery-status

Reporting-MTA: dns; mx.example.org

Final-Recipient: {type}; {recipient}
Action: failed
Status: 5.1.1
Diagnostic-Code: smtp; 550 5.1.1 <{recipient}>: this mailbox is closed

--{edge}
Content-Type: message/{kind}{headers}

{returned}
--{edge}--
"""
COMPLAINT = """\
From: Feedback loop <fbl@provider.example.org>
To: <complaints@{domain}>
Subject: A message was marked as spam
MIME-Version: 1.0
Content-Type: multipart/report; report-type=feedback-report; boundary={edge}

--{edge}
Content-Type: text/plain; charset=utf-8

A recipient has marked the message below as spam.

--{edge}
Content-Type: message/feedback-report

Feedback-Type: abuse
User-Agent: demo/1
Version: 1

--{edge}
Content-Type: message/{kind}

{returned}
--{edge}--
"""


class ListenerError(Exception):
    """The listener did not take what it was brought; the message says why."""


class Listener:
    """Brings mail to `sendoff run returned`."""

    def __init__(self, port: int) -> None:
        """Takes the port that it listens on."""
        self._port = port

    def bounce(self, recipient: str, raw: bytes) -> None:
        """Returns a message to its envelope sender, as the recipient's server does (RFC 3464, RFC 6533).

        Raises:
            ListenerError: The listener does not take it.
        """
        message = _read(raw)
        sender = str(message["X-MailFrom"])
        plain = recipient.isascii()
        text = BOUNCE.format(
            sender=sender,
            recipient=recipient,
            edge=EDGE,
            type="rfc822" if plain else "utf-8",
            kind="" if plain else "global-",
            headers="rfc822-headers" if plain else "headers",
            returned=_header(message),
        )
        self._bring(text, sender)

    def complain(self, raw: bytes) -> None:
        """Passes a recipient's complaint on, as a provider's feedback loop does (RFC 5965).

        Raises:
            ListenerError: The listener does not take it.
        """
        message = _read(raw)
        kind = "rfc822" if raw.isascii() else "global"
        returned = f"{_header(message)}\nThe message itself is left out.\n"
        text = COMPLAINT.format(domain=RETURNS, edge=EDGE, kind=kind, returned=returned)
        self._bring(text, f"complaints@{RETURNS}")

    def _bring(self, text: str, to: str) -> None:
        data = text.replace("\n", "\r\n").encode()
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                with smtplib.LMTP("127.0.0.1", self._port, timeout=SECONDS) as client:
                    client.sendmail("", [to], data)
            except ConnectionRefusedError as error:  # it has not started yet
                if time.monotonic() > deadline:
                    raise ListenerError(f"Nothing listens for returned mail: {error}.") from error
                time.sleep(0.1)
            except (OSError, smtplib.SMTPException) as error:
                raise ListenerError(
                    f"The listener for returned mail did not take a mail: {error}."
                ) from error
            else:
                return


def _read(raw: bytes) -> EmailMessage:
    return email.message_from_bytes(raw, policy=SMTP)


def _header(message: EmailMessage) -> str:
    """Returns the header as it was received, without the lines that the sink wrote above it."""
    lines = (f"{name}: {value}" for name, value in message.raw_items() if not name.startswith("X-R"))
    return "\n".join(line.replace("\r", "") for line in lines if not line.startswith("X-MailFrom")) + "\n"
