"""`sendoff check`: every line is there, whatever is broken."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING

import pytest

from contracts import routing
from tests.support import postfix
from tests.support.tracker import tracked, tracking

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.processes import Sendoff
    from tests.support.stack import Stack

NOWHERE = "127.0.0.1:1"


async def check(sendoff: Sendoff, **env: str) -> tuple[int, dict[str, tuple[str, str]]]:
    ran = await asyncio.to_thread(sendoff, "check", "--json", env=env)
    assert ran.stderr == ""
    findings = {f["part"]: (f["standing"], f["message"]) for f in json.loads(ran.stdout)}
    assert list(findings) == [
        "configuration",
        "broker",
        "topology",
        "database",
        "schema",
        "partitions",
        "role",
        "durability",
        "relay",
        "gateway",
        "tracker",
        "returned",
        "webhooks",
    ]
    return ran.returncode, findings


def standings(findings: dict[str, tuple[str, str]]) -> str:
    return " ".join(standing for standing, _ in findings.values())


async def test_a_whole_installation_is_ok(stack: Stack, sendoff: Sendoff) -> None:
    status, findings = await check(sendoff)
    assert (status, standings(findings)) == (0, "ok ok ok ok ok ok ok ok ok ok ok ok ok")
    ran = await asyncio.to_thread(sendoff, "check")
    assert [line.split()[:2] for line in ran.stdout.splitlines()] == [[part, "ok"] for part in findings]
    assert stack.names.prefix


@pytest.mark.parametrize(
    ("env", "expected", "part", "sentence"),
    [
        (
            {"SENDOFF_AMQP_URL": f"amqp://{NOWHERE}/"},
            "ok unreachable skipped ok ok ok ok ok ok ok ok ok ok",
            "broker",
            "The broker is out of reach",
        ),
        (
            {"SENDOFF_DATABASE_URL": f"postgresql://user:secret@{NOWHERE}/x"},
            "ok ok ok unreachable skipped skipped skipped skipped ok ok ok ok ok",
            "database",
            "The database is out of reach",
        ),
        (
            {"SENDOFF_SMTP_URL": f"smtp://{NOWHERE}"},
            "ok ok ok ok ok ok ok ok unreachable ok ok ok ok",
            "relay",
            "cannot be used",
        ),
    ],
)
@pytest.mark.usefixtures("stack")
async def test_what_is_out_of_reach_is_named_beside_the_rest(
    sendoff: Sendoff, env: dict[str, str], expected: str, part: str, sentence: str
) -> None:
    status, findings = await check(sendoff, **env)
    assert (status, standings(findings)) == (3, expected)
    assert sentence in findings[part][1]
    assert "secret" not in str(findings)


async def test_a_missing_queue_is_named(stack: Stack, sendoff: Sendoff) -> None:
    queue = stack.names.queue(routing.STATS_QUEUE)
    await stack.channel.queue_delete(queue)
    status, findings = await check(sendoff)
    assert (status, standings(findings)) == (1, "ok ok wrong ok ok ok ok ok ok ok ok ok ok")
    assert queue in findings["topology"][1]
    assert "sendoff migrate" in findings["topology"][1]


async def test_a_schema_of_another_version_is_named(stack: Stack, sendoff: Sendoff) -> None:
    async with stack.db.session() as session:
        await session.connection.execute(
            "INSERT INTO sendoff.migration (number, name, works_from) VALUES (999, 'x', 999)"
        )
    status, findings = await check(sendoff)
    assert (status, standings(findings)) == (1, "ok ok ok ok wrong skipped skipped skipped ok ok ok ok ok")
    assert "upgrade Sendoff" in findings["schema"][1]


async def test_a_missing_partition_is_named_and_the_room_of_the_newest_set_is_said(
    stack: Stack, sendoff: Sendoff
) -> None:
    await stack.prepare(1)
    assert (await check(sendoff))[1]["partitions"][1] == (
        "Sets: 1; the newest, deliveries 1 to 100000, has room for 99999 more."
    )
    async with stack.db.session() as session:
        await session.connection.execute("ALTER TABLE sendoff.outcome DETACH PARTITION sendoff.outcome_1")
    status, findings = await check(sendoff)
    assert (status, standings(findings)) == (1, "ok ok ok ok ok wrong ok ok ok ok ok ok ok")
    assert "outcome_1" in findings["partitions"][1]


@pytest.mark.usefixtures("stack")
async def test_an_smtp_url_that_cannot_be_is_wrong(sendoff: Sendoff) -> None:
    status, findings = await check(sendoff, SENDOFF_SMTP_URL="smtp://u:secret@relay.example.org")
    assert (status, standings(findings)) == (1, "ok ok ok ok ok ok ok ok wrong ok ok ok ok")
    assert "in the clear" in findings["relay"][1]
    assert "secret" not in str(findings)


@pytest.mark.usefixtures("stack")
async def test_a_relay_that_wants_tls_says_so_before_the_first_message(sendoff: Sendoff) -> None:
    with postfix.running(smtpd_tls_security_level="encrypt") as relay:
        status, findings = await check(sendoff, SENDOFF_SMTP_URL=f"smtp://127.0.0.1:{relay.port}")
    assert status == 3
    standing, sentence = findings["relay"][:2]
    assert standing == "unreachable"
    assert "530 5.7.0 Must issue a STARTTLS command first" in sentence
    assert "begin SENDOFF_SMTP_URL with smtp+starttls:// or smtps://" in sentence


@pytest.mark.usefixtures("stack")
async def test_a_key_for_signatures_that_is_not_there_is_wrong(sendoff: Sendoff, tmp_path: Path) -> None:
    keys = tmp_path / "dkim.toml"
    keys.write_text('["example.org"]\nselector = "s"\nkey = "none.pem"\n')
    status, findings = await check(sendoff, SENDOFF_DKIM_FILE=str(keys))
    assert status == 1
    assert findings["relay"][0] == "wrong"
    assert "example.org: the key none.pem cannot be read: No such file or directory." in findings["relay"][1]


@pytest.mark.usefixtures("stack")
async def test_without_the_channel_email_no_relay_is_needed(sendoff: Sendoff) -> None:
    status, findings = await check(sendoff, SENDOFF_CHANNELS='["null"]', SENDOFF_SMTP_URL=f"smtp://{NOWHERE}")
    assert (status, standings(findings)) == (0, "ok ok ok ok ok ok ok ok ok ok ok ok ok")


@pytest.mark.usefixtures("stack")
async def test_wrong_settings_are_named_and_the_other_lines_are_there(sendoff: Sendoff) -> None:
    status, findings = await check(sendoff, SENDOFF_PAGE_SIZE="many")
    assert (status, standings(findings)) == (
        1,
        "wrong" + 12 * " skipped",
    )
    assert "SENDOFF_PAGE_SIZE" in findings["configuration"][1]


async def test_a_variable_that_is_no_setting_is_wrong(stack: Stack, sendoff: Sendoff) -> None:  # noqa: ARG001
    done = sendoff("check", "--json", env={"SENDOFF_CHANELS": "null"})
    (found,) = [f for f in json.loads(done.stdout) if f["part"] == "configuration"]
    assert (done.returncode, found["standing"]) == (1, "wrong")
    assert "there is no setting SENDOFF_CHANELS; do you mean SENDOFF_CHANNELS?" in found["message"]


KEYS = f"1:{'k' * 32}"


def port_of_another() -> socket.socket:
    """A port that another program has for itself."""
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    return taken


def files(folder: Path) -> dict[str, Path]:
    """What a folder of settings holds: good and bad."""
    (folder / "providers.toml").write_text(f"[postmark]\nsecrets = ['{'s' * 32}']\n")
    (folder / "odd.toml").write_text("[pigeon]\nkeys = []\n")
    (folder / "file").write_text("")
    for name in ("mails/new", "mails/cur", "full"):
        (folder / name).mkdir(parents=True)
    for number in range(1_000):
        (folder / "full" / f"{number}.eml").touch()
    return {name: folder / name for name in ("providers.toml", "odd.toml", "file", "mails", "full", "none")}


async def test_what_takes_what_comes_back_is_looked_at_where_it_is_set_up(
    stack: Stack, sendoff: Sendoff, tmp_path: Path
) -> None:
    assert stack.names.prefix
    there = files(tmp_path)
    status, findings = await check(sendoff)
    assert [findings[part][1].split(":")[0] for part in ("tracker", "returned", "webhooks")] == [
        "None is set up",
        "None is set up",
        "None are set up",
    ]
    env = {
        "SENDOFF_TRACKER_URL": "https://track.example.org",
        "SENDOFF_TRACKER_KEYS": KEYS,
        "SENDOFF_TRACKER_SPOOL": str(there["none"]),
        "SENDOFF_BOUNCE_DOMAIN": "returns.example.org",
        "SENDOFF_BOUNCE_KEYS": KEYS,
        "SENDOFF_RETURNED_MAILDIR": str(there["mails"]),
        "SENDOFF_RETURNED_FOLDER": str(tmp_path / "kept"),
        "SENDOFF_WEBHOOKS_FILE": str(there["providers.toml"]),
        "SENDOFF_RELAY_PROVIDER": "postmark",
    }
    status, findings = await check(sendoff, **env)
    assert (status, findings["returned"]) == (0, ("ok", "Mail to returns.example.org can be taken and read."))
    assert findings["webhooks"] == ("ok", "Calls of postmark can be taken.")
    assert not (tmp_path / "kept").exists()
    assert not there["none"].exists()
    with port_of_another() as taken:
        port = str(taken.getsockname()[1])
        wrong = (
            ("tracker", "SENDOFF_TRACKER_PORT", port, "cannot be listened on: Address already in use"),
            ("tracker", "SENDOFF_TRACKER_SPOOL", str(there["file"]), f"{there['file']} is no folder"),
            ("returned", "SENDOFF_RETURNED_PORT", port, "cannot be listened on: Address already in use"),
            ("returned", "SENDOFF_RETURNED_MAILDIR", str(tmp_path), "is no Maildir: it has no folder “new”"),
            ("returned", "SENDOFF_RETURNED_FOLDER", str(there["full"]), "is full, with 1,000 mails"),
            ("webhooks", "SENDOFF_WEBHOOKS_PORT", port, "cannot be listened on: Address already in use"),
            ("webhooks", "SENDOFF_WEBHOOKS_FILE", str(there["odd.toml"]), "“pigeon” is none of"),
            ("webhooks", "SENDOFF_RELAY_PROVIDER", "ses", "has no table [ses]"),
        )
        answers = await asyncio.gather(*(check(sendoff, **(env | {name: to})) for _, name, to, _ in wrong))
    for (part, name, _, sentence), (status, findings) in zip(wrong, answers, strict=True):
        assert (status, findings[part][0]) == (1, "wrong"), name
        assert sentence in findings[part][1]
        assert KEYS not in str(findings)


async def test_a_port_that_a_tracker_of_ours_has_is_shared_and_loses_nothing_to_the_check(
    stack: Stack, sendoff: Sendoff, tmp_path: Path
) -> None:
    settings = tracked(stack.settings, tmp_path / "spool")
    env = {
        "SENDOFF_TRACKER_URL": settings.tracker_url,
        "SENDOFF_TRACKER_KEYS": KEYS,
        "SENDOFF_TRACKER_SPOOL": str(tmp_path / "spool"),
    }
    async with tracking(settings) as site:
        status, findings = await check(sendoff, **env, SENDOFF_TRACKER_PORT=str(site.port))
        assert (status, findings["tracker"][0]) == (0, "ok")
        assert (await site.ask("/robots.txt")).status == 200
