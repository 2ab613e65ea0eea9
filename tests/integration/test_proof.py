"""`sendoff proof`: what a recipient would get, at a tester, and nothing else changes."""

from __future__ import annotations

import asyncio
import email
import json
from email import policy
from typing import TYPE_CHECKING

import pytest

from tests.support.processes import sink

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.processes import Sendoff
    from tests.support.stack import Stack

TABLES = (
    *("delivery_record", "delivery_transition", "delivery_page", "delivery_counter", "outcome"),
    *("claim_lease", "command", "event", "recipient"),
)


async def everything(stack: Stack) -> list[list[dict[str, object]]]:
    return [await stack.rows(f"SELECT * FROM sendoff.{name} t ORDER BY t::text") for name in TABLES]  # noqa: S608


@pytest.fixture
async def delivery(stack: Stack) -> int:
    await stack.operator("ana", "prepare_deliveries")
    rows = ["ana@example.org,Ana", "zoe@example.org,Zoë"]
    return await stack.prepare(rows, channel="email", columns="address,name")


async def test_a_tester_gets_what_a_recipient_would_get_marked(
    stack: Stack, sendoff: Sendoff, delivery: int, tmp_path: Path
) -> None:
    before = await everything(stack)
    with sink(tmp_path / "sink") as (url, index):
        keys = {"SENDOFF_BOUNCE_KEYS": f"1:{'k' * 32}", "SENDOFF_BOUNCE_DOMAIN": "returns.example.org"}
        env = {"SENDOFF_SMTP_URL": url} | keys
        call = ("proof", delivery, "--to", "tester@example.net", "--as", 2)
        ran = await asyncio.to_thread(sendoff, *call, env=env)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout.startswith("Sent to tester@example.net what recipient 2 would get: 250 ")
        ran = await asyncio.to_thread(sendoff, *call, "--json", env=env)
        answer = json.loads(ran.stdout)
        assert answer["reply"].startswith("250")
        assert answer == {"delivery_id": delivery, "recipient": 2, "to": "tester@example.net"} | {
            "reply": answer["reply"]
        }
        kept = [json.loads(line) for line in index.read_text().splitlines()]
    assert [(one["recipient"], one["sender"]) for one in kept] == [
        ("tester@example.net", "news@example.org")
    ] * 2
    assert kept[0]["message_id"] != kept[1]["message_id"]
    raw = (tmp_path / "sink" / kept[0]["file"]).read_bytes()
    message = email.message_from_bytes(raw, policy=policy.SMTP)
    assert message["Subject"] == "[Proof] Hello zoe@example.org"
    assert message["To"] == "tester@example.net"
    assert message["X-Sendoff-Proof"] == f"{delivery}-2"
    assert await everything(stack) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--as", "3"), "has no recipient 3: they are numbered from 1 to 2"),
        (("--to", "unknown-tester@example.net"), "It was refused: 550 5.1.1 No such user here"),
        (("--to", "not an address"), "'not an address' is not a mail address"),
    ],
)
async def test_what_cannot_be_sent_is_a_sentence(
    sendoff: Sendoff, delivery: int, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    with sink(tmp_path / "sink") as (url, _):
        call = ("proof", delivery, "--to", "tester@example.net", *arguments)
        ran = await asyncio.to_thread(sendoff, *call, env={"SENDOFF_SMTP_URL": url})
    assert ran.returncode == 1
    assert words in ran.stderr


async def test_there_must_be_a_content_and_a_channel_that_shows_it(stack: Stack, sendoff: Sendoff) -> None:
    ran = await asyncio.to_thread(sendoff, "proof", 42, "--to", "tester@example.net")
    assert ran.returncode == 1
    assert "The delivery 42 has no content: it is not there, or not prepared." in ran.stderr
    await stack.operator("ana", "prepare_deliveries")
    rehearsal = await stack.prepare(1)
    ran = await asyncio.to_thread(sendoff, "proof", rehearsal, "--to", "tester@example.net")
    assert ran.returncode == 1
    assert "The channel “null” sends no proofs." in ran.stderr
