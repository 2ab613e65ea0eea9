"""Messages with tracked links: each recipient has links of their own, and without a tracker none goes out."""

from __future__ import annotations

import email
from email.policy import default
from typing import Any

import pytest

from contracts.sends import Send
from worker.channels.email.channel import EmailChannel
from worker.channels.protocol import Granted
from worker.domain.content import EmailContent
from worker.domain.keys import read_keys
from worker.domain.links import Keys, Links, Named, Purpose
from worker.domain.tracked_content import Tracking, track
from worker.domain.verdicts import Accepted, Failed

KEYS = Keys(read_keys(f"1:{'k' * 32}"))
LINKS = Links("https://t.example.org", KEYS)
CONTENT = {
    "from": "news@example.org",
    "subject": "Hello",
    "text": "See https://example.org/{{ name }} or {{ unsubscribe_url }}",
    "html": "<body><a href='https://example.org/{{ name }}'>é</a> <a href='{{ mirror_url }}'>m</a></body>",
    "headers": {"List-Unsubscribe": "<{{ unsubscribe_url }}>"},
}


class Pool:
    """Takes every message, and keeps it."""

    size = 1

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    async def send(self, _sender: str, _recipient: str, message: bytes, **_: Any) -> Accepted:
        self.messages.append(message)
        return Accepted("taken")


def send(recipient: int, **variables: str) -> Send:
    return Send(
        delivery_id=42,
        recipient=recipient,
        attempt=1,
        channel="email",
        address="ana@example.org",
        variables=variables,
    )


def tracked() -> dict[str, Any]:
    content = EmailContent.model_validate(CONTENT)
    return track(content, Tracking(opens=True, clicks=True)).content.model_dump(by_alias=True)


async def test_every_recipient_has_links_of_their_own() -> None:
    pool = Pool()
    channel = EmailChannel(pool, links=LINKS)  # type: ignore[arg-type]
    compiled = channel.prepare(tracked())
    for recipient in (1, 2):
        assert isinstance(await channel.send(compiled, send(recipient, name="x"), Granted()), Accepted)
    for recipient, raw in enumerate(pool.messages, 1):
        message = email.message_from_bytes(raw, policy=default)
        text, html = (message.get_body((kind,)).get_content() for kind in ("plain", "html"))  # type: ignore[union-attr]
        optout = LINKS.optout(42, recipient)
        assert f"or {optout}" in text
        assert message["List-Unsubscribe"] == f"<{optout}>"
        assert KEYS.read(Purpose.OPTOUT, optout.rpartition("/")[2]) == Named(42, recipient, 0)
        assert f"<a href='{LINKS.mirror(42, recipient)}'>" in html
        assert f'<img src="{LINKS.pixel(42, recipient)}" alt=""' in html
        in_html, in_text = LINKS.clicks(42, recipient, [1, 2])
        assert f"<a href='{in_html}'>" in html
        assert f"See {in_text} or" in text
        assert "example.org/x" not in text + html


@pytest.mark.parametrize("content", [tracked(), CONTENT])
async def test_a_sender_without_the_tracker_waits_for_one_that_has_it(content: dict[str, Any]) -> None:
    pool = Pool()
    channel = EmailChannel(pool)  # type: ignore[arg-type]
    verdict = await channel.send(channel.prepare(content), send(1, name="x"), Granted())
    assert isinstance(verdict, Failed)
    assert (verdict.reason, verdict.retryable) == ("configuration", True)
    assert "SENDOFF_TRACKER_URL" in verdict.detail
    assert pool.messages == []


async def test_a_column_may_have_the_name_of_a_link_where_there_is_no_tracker() -> None:
    pool = Pool()
    channel = EmailChannel(pool)  # type: ignore[arg-type]
    compiled = channel.prepare(CONTENT)
    own = {"unsubscribe_url": "https://example.org/off", "mirror_url": "https://example.org/web"}
    assert isinstance(await channel.send(compiled, send(1, name="x", **own), Granted()), Accepted)
    assert b"List-Unsubscribe: <https://example.org/off>" in pool.messages[0]
