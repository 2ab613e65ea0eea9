"""One process that sends mail, in one of two ways: as Sendoff does, or as the two libraries' documents teach.

Called by `tests.bench.smtp`. Both ways fill in the same templates, over as many connections that stay open,
on uvloop; what is sent is made before the clock starts, and every connection has carried messages by then.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Any

import aiosmtplib
import jinja2
import uvloop
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from contracts.sends import Send
from tests.bench.tracker_links import LINKS
from worker.channels.email.channel import EmailChannel
from worker.channels.email.dkim import Signer, Signing
from worker.channels.email.smtp import SmtpPool
from worker.channels.email.timeouts import Timeouts
from worker.channels.protocol import Granted
from worker.domain.content import EmailContent
from worker.domain.tracked_content import Tracking, track
from worker.domain.verdicts import Accepted

SHORT = {
    "from": "News <news@example.org>",
    "subject": "Hello {{ first_name }}",
    "text": "Dear {{ first_name }} of {{ city }}, this is what is new.",
    "html": "<p>Dear {{ first_name }} of {{ city }},</p><p>this is what is new.</p>",
}
_PARAGRAPH = """
<p style="font-family: sans-serif; font-size: 15px; color: #333; line-height: 1.5">
  Paragraph {number} of the newsletter — with a café, some words about it that nobody needs to read, and
  <a href="https://news.example.org/article/{number}?to={{{{ recipient }}}}&amp;of=27">more</a>.
</p>"""
NEWSLETTER = SHORT | {
    "text": "Dear {{ first_name }} of {{ city }},\n\n"
    + "A line of the newsletter's text — with a café, and with words that come after it.\n" * 20
    + "\nRead on: https://news.example.org/{{ delivery_id }}/{{ recipient }}\n",
    "html": "<!DOCTYPE html>\n<html><body>\n<h1>Dear {{ first_name }} of {{ city }}</h1>"
    + "".join(_PARAGRAPH.format(number=number) for number in range(20))
    + "\n</body></html>\n",
    "headers": {"List-Unsubscribe": "<https://news.example.org/off/{{ delivery_id }}/{{ recipient }}>"},
}
CONTENTS: dict[str, dict[str, Any]] = {"short": SHORT, "newsletter": NEWSLETTER}
WARM_UP_EACH = 10
"""Messages per connection before the clock starts."""

Sender = Callable[[int, Send], Awaitable[None]]
"""Sends one message; told which of the connections' turns it is."""


def to(recipient: int) -> Send:
    """Returns what the send service would be asked."""
    return Send(
        delivery_id=42,
        recipient=recipient,
        attempt=1,
        channel="email",
        address=f"user{recipient:07d}@mail.example.org",
        variables={"first_name": f"Zoë-{recipient}", "city": "Nizhny Novgorod"},
    )


async def by_sendoff(content: dict[str, Any], port: int, connections: int) -> Sender:
    """Sendoff's channel, as its send service calls it."""
    return _over(EmailChannel(_pool(port, connections)), content)


async def by_sendoff_tracked(content: dict[str, Any], port: int, connections: int) -> Sender:
    """The same, with tracked links and a pixel, as a preparation puts them in."""
    tracked = track(EmailContent.model_validate(content), Tracking(opens=True, clicks=True)).content
    channel = EmailChannel(_pool(port, connections), links=LINKS)
    return _over(channel, tracked.model_dump(by_alias=True, exclude_none=True))


async def by_sendoff_signed(content: dict[str, Any], port: int, connections: int) -> Sender:
    """The same, with a DKIM signature under an RSA key of 2048 bits."""
    signing = Signing({"example.org": Signer("example.org", "bench", generate_private_key(65537, 2048))})
    return _over(EmailChannel(_pool(port, connections), signing=signing), content)


def _pool(port: int, connections: int) -> SmtpPool:
    return SmtpPool(f"smtp://127.0.0.1:{port}", size=connections, timeouts=Timeouts.all(60))


def _over(channel: EmailChannel, content: dict[str, Any]) -> Sender:
    compiled = channel.prepare(content)

    async def send(_turn: int, asked: Send) -> None:
        verdict = await channel.send(compiled, asked, Granted())
        if not isinstance(verdict, Accepted):
            raise SystemExit(f"not accepted: {verdict}")

    return send


async def by_the_libraries(content: dict[str, Any], port: int, connections: int) -> Sender:
    """aiosmtplib and `email.message`, a message object per recipient, templates compiled once."""
    plain, html = jinja2.Environment(), jinja2.Environment(autoescape=True)  # noqa: S701 - text is not HTML
    subject, text = plain.from_string(content["subject"]), plain.from_string(content["text"])
    body = html.from_string(content["html"])
    headers = {name: plain.from_string(value) for name, value in content.get("headers", {}).items()}
    clients = [
        aiosmtplib.SMTP(hostname="127.0.0.1", port=port, use_tls=False, start_tls=False)
        for _ in range(connections)
    ]
    for client in clients:
        await client.connect()
        await client.ehlo()

    async def send(turn: int, asked: Send) -> None:
        values = {**asked.variables, "recipient": asked.recipient, "delivery_id": asked.delivery_id}
        message = EmailMessage()
        message["From"] = content["from"]
        message["To"] = asked.address
        message["Subject"] = subject.render(values)
        message["Date"] = format_datetime(datetime.now(UTC))
        message["Message-ID"] = f"<{asked.delivery_id}-{asked.recipient}-1@example.org>"
        for name, template in headers.items():
            message[name] = template.render(values)
        message.set_content(text.render(values))
        message.add_alternative(body.render(values), subtype="html")
        errors, _ = await clients[turn % connections].send_message(message)
        if errors:
            raise SystemExit(f"not accepted: {errors}")

    return send


WAYS = {
    "sendoff": by_sendoff,
    "sendoff, tracked": by_sendoff_tracked,
    "sendoff, DKIM": by_sendoff_signed,
    "aiosmtplib": by_the_libraries,
}


async def run(way: str, content: str, port: int, connections: int, messages: int) -> None:
    """Sends once a line comes in; prints the CPU seconds from then to the last message."""
    send = await WAYS[way](CONTENTS[content], port, connections)

    async def work(turn: int, asked: list[Send]) -> None:
        for one in asked[turn::turns]:
            await send(turn, one)

    async def all_of(asked: list[Send]) -> None:
        await asyncio.gather(*(work(turn, asked) for turn in range(turns)))

    # Sendoff's send service keeps twice as many messages under way as there are connections.
    turns = 2 * connections if way != "aiosmtplib" else connections
    await all_of([to(number) for number in range(1, WARM_UP_EACH * connections + 1)])
    asked = [to(number) for number in range(1, messages + 1)]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.readline)
    cpu = time.process_time()
    await all_of(asked)
    sys.stdout.write(f"{time.process_time() - cpu}\n")


if __name__ == "__main__":
    uvloop.run(run(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])))
