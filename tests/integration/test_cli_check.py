"""`sendoff check`: every line is there, whatever is broken."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from contracts import routing
from tests.support import postfix
from tests.support.database import change
from tests.support.stack import until
from tests.support.tracker import tracked, tracking
from worker.amqp.policies import DELIVERY_LIMIT
from worker.db import server
from worker.operations import check_database

if TYPE_CHECKING:
    from datetime import tzinfo
    from pathlib import Path

    from tests.support.processes import Sendoff
    from tests.support.stack import Stack

NOWHERE = "127.0.0.1:1"


PARTS = [
    *("configuration", "tls", "disk"),
    *("broker", "topology", "policies", "arguments", "permissions"),
    *("database", "schema", "partitions", "role", "durability", "connections", "clock"),
    *("relay", "gateway", "tracker", "returned", "webhooks"),
]
WIDE = {"permissions": "warning", "role": "warning"}
"""The users of the tests' servers may do everything."""


async def check(sendoff: Sendoff, *services: str, **env: str) -> tuple[int, dict[str, str], dict[str, str]]:
    """Returns the status, what is not ok by part, and the sentences by part."""
    ran = await asyncio.to_thread(sendoff, "check", *services, "--json", env=env)
    assert ran.stderr == ""
    findings = json.loads(ran.stdout)
    assert [f["part"] for f in findings] == PARTS
    trouble = {f["part"]: f["standing"] for f in findings if f["standing"] != "ok"}
    # Without SENDOFF_MANAGEMENT_URL; tests/integration/test_policies.py has it.
    assert trouble.pop("policies") == "skipped"
    return ran.returncode, trouble, {f["part"]: f["message"] for f in findings}


async def test_a_whole_installation_is_ok(stack: Stack, sendoff: Sendoff) -> None:
    status, trouble, said = await check(sendoff)
    assert (status, trouble) == (0, WIDE)
    assert "is a superuser" in said["role"]
    assert "It is RabbitMQ " in said["broker"]
    assert "rabbitmqctl set_policy " in said["policies"]
    assert said["arguments"].startswith("Every queue has the arguments")
    assert "No process of Sendoff runs now." in said["connections"]
    assert said["relay"].endswith("it takes 20 connections at once.")
    ran = await asyncio.to_thread(sendoff, "check")
    assert [line.split()[0] for line in ran.stdout.splitlines()] == PARTS
    assert stack.names.prefix


@pytest.mark.parametrize(
    ("env", "expected", "part", "sentence"),
    [
        (
            {"SENDOFF_AMQP_URL": f"amqp://user:secret@{NOWHERE}/"},
            {"broker": "unreachable", "role": "warning"}
            | dict.fromkeys(("topology", "arguments", "permissions"), "skipped"),
            "broker",
            f"The broker is out of reach: {NOWHERE}: ",
        ),
        (
            {"SENDOFF_DATABASE_URL": f"postgresql://user:secret@{NOWHERE}/x"},
            {"database": "unreachable", "permissions": "warning"}
            | dict.fromkeys(
                ("schema", "partitions", "role", "durability", "connections", "clock"), "skipped"
            ),
            "database",
            f"The database is out of reach: {NOWHERE}: ",
        ),
        (
            {"SENDOFF_DATABASE_URL": "postgresql://user:secret@nowhere.invalid/x"},
            None,
            "database",
            "The database is out of reach: nowhere.invalid:5432: ",
        ),
        (
            {"SENDOFF_AMQP_URL": "amqp://user:secret@nowhere.invalid/"},
            None,
            "broker",
            "The broker is out of reach: nowhere.invalid:5672: ",
        ),
        (
            {"SENDOFF_SMTP_URL": f"smtp://{NOWHERE}"},
            WIDE | {"relay": "unreachable"},
            "relay",
            "cannot be used",
        ),
    ],
)
@pytest.mark.usefixtures("stack")
async def test_what_is_out_of_reach_is_named_beside_the_rest(
    sendoff: Sendoff, env: dict[str, str], expected: dict[str, str] | None, part: str, sentence: str
) -> None:
    status, trouble, said = await check(sendoff, **env)
    assert status == 3
    assert trouble[part] == "unreachable"
    assert expected is None or trouble == {"tls": "warning"} | expected or trouble == expected
    assert sentence in said[part]
    assert "secret" not in str(said)


async def test_a_queue_with_other_arguments_is_named(stack: Stack, sendoff: Sendoff) -> None:
    queue = stack.names.queue(routing.STATS_QUEUE)
    await stack.channel.queue_delete(queue)
    arguments: dict[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": 3}
    await stack.channel.declare_queue(queue, durable=True, arguments=arguments)
    status, trouble, said = await check(sendoff)
    assert (status, trouble) == (1, WIDE | {"arguments": "wrong"})
    assert queue in said["arguments"]


async def test_a_queue_of_an_earlier_version_is_fine(stack: Stack, sendoff: Sendoff) -> None:
    queue = stack.names.queue(routing.STATS_QUEUE)
    await stack.channel.queue_delete(queue)
    arguments: dict[str, Any] = {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-dead-letter-exchange": stack.names.exchange(routing.DEAD),
    }
    await stack.channel.declare_queue(queue, durable=True, arguments=arguments)
    assert (await check(sendoff))[:2] == (0, WIDE)


async def test_a_shard_that_is_missing_is_named(stack: Stack, sendoff: Sendoff) -> None:
    status, trouble, said = await check(sendoff, SENDOFF_SEND_SHARDS="2")
    assert (status, trouble["topology"]) == (1, "wrong")
    assert stack.names.queue("sendoff.send.null.1") in said["topology"]


async def test_the_broker_s_user_is_asked_about_and_nothing_is_taken_or_changed(
    stack: Stack, sendoff: Sendoff
) -> None:
    number = await stack.prepare(5)
    async with stack.running("confirm", "fanout", tick=0.05):
        await stack.confirm(number)
        await until(lambda: depth_is(stack, routing.send_queue("null"), 5))
    for _ in range(3):
        assert (await check(sendoff, "send", "results"))[:2] == (0, WIDE)
    messages = [await taken(stack, routing.send_queue("null")) for _ in range(5)]
    assert [headers.get("x-delivery-count", 0) for headers in messages] == [0] * 5


async def depth_is(stack: Stack, queue: str, depth: int) -> bool:
    return await stack.depth(queue) == depth


async def taken(stack: Stack, name: str) -> dict[str, Any]:
    queue = await stack.channel.get_queue(stack.names.queue(name), ensure=False)
    message = await queue.get(no_ack=True)
    assert message is not None
    return dict(message.headers)


@pytest.mark.usefixtures("stack")
async def test_a_service_that_is_none_is_a_sentence(sendoff: Sendoff) -> None:
    ran = await asyncio.to_thread(sendoff, "check", "sent")
    assert ran.returncode == 2
    assert "There is no service sent." in " ".join(ran.stderr.split())


async def test_more_connections_than_the_server_takes_are_wrong(stack: Stack, sendoff: Sendoff) -> None:
    async with stack.running("stats"):
        status, trouble, said = await check(sendoff)
        assert (status, trouble) == (0, WIDE)
        assert said["connections"].startswith("1 processes of Sendoff run, which may open 9 connections")
        name = urlsplit(stack.settings.database_url).path[1:]
        await change(stack, f"ALTER DATABASE {name} CONNECTION LIMIT 40")
        assert (await check(sendoff))[1] == WIDE
        assert (await check(sendoff, SENDOFF_DATABASE_POOL="40"))[1] == WIDE | {"connections": "wrong"}


@pytest.mark.usefixtures("stack")
async def test_a_relay_that_takes_fewer_connections_than_are_set_is_a_warning(sendoff: Sendoff) -> None:
    with postfix.running(smtpd_client_connection_count_limit="3") as relay:
        status, trouble, said = await check(sendoff, SENDOFF_SMTP_URL=f"smtp://127.0.0.1:{relay.port}")
    assert (status, trouble) == (0, WIDE | {"relay": "warning"})
    assert "Of the 20 connections of SENDOFF_SMTP_CONNECTIONS" in said["relay"]
    assert "it takes 3 from here: " in said["relay"]


@pytest.mark.usefixtures("stack")
async def test_a_way_that_is_not_protected_and_a_full_disk_are_warnings(sendoff: Sendoff) -> None:
    url = os.environ["SENDOFF_DATABASE_URL"] + "?sslmode=disable&host=127.0.0.1,192.0.2.1"
    env = {"SENDOFF_TRACKER_URL": "https://t.example.org", "SENDOFF_TRACKER_KEYS": f"1:{'k' * 32}"}
    size = {"SENDOFF_TRACKER_SPOOL_SIZE": str(10**18)}
    _, trouble, said = await check(sendoff, SENDOFF_DATABASE_URL=url, **env, **size)
    assert (trouble["tls"], trouble["disk"]) == ("warning", "warning")
    assert "sslmode=disable (no TLS)" in said["tls"]
    assert "SENDOFF_TRACKER_SPOOL (tracker-spool) has " in said["disk"]


async def test_a_clock_that_differs_is_wrong(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) - timedelta(seconds=61)

    monkeypatch.setattr(server, "datetime", Late)
    found = {f.part: f for f in await check_database.look(stack.settings)}
    assert found["clock"].standing == "wrong"
    assert "This machine's clock is 61.0 s behind the database's" in found["clock"].message


async def test_two_clocks_of_one_machine_agree(stack: Stack) -> None:
    assert abs(await server.ahead(stack.db)) < 0.5


async def test_a_missing_queue_is_named(stack: Stack, sendoff: Sendoff) -> None:
    queue = stack.names.queue(routing.STATS_QUEUE)
    await stack.channel.queue_delete(queue)
    status, trouble, said = await check(sendoff)
    skipped = {"arguments": "skipped", "permissions": "skipped"}
    assert (status, trouble) == (1, WIDE | skipped | {"topology": "wrong"})
    assert queue in said["topology"]
    assert "sendoff migrate" in said["topology"]


async def test_a_schema_of_another_version_is_named(stack: Stack, sendoff: Sendoff) -> None:
    async with stack.db.session() as session:
        await session.connection.execute(
            "INSERT INTO sendoff.migration (number, name, works_from) VALUES (999, 'x', 999)"
        )
    status, trouble, said = await check(sendoff)
    assert (status, trouble["schema"], trouble["clock"]) == (1, "wrong", "skipped")
    assert "upgrade Sendoff" in said["schema"]


async def test_a_missing_partition_is_named_and_the_room_of_the_newest_set_is_said(
    stack: Stack, sendoff: Sendoff
) -> None:
    await stack.prepare(1)
    assert (await check(sendoff))[2]["partitions"] == (
        "Sets: 1; the newest, deliveries 1 to 100000, has room for 99999 more."
    )
    async with stack.db.session() as session:
        await session.connection.execute("ALTER TABLE sendoff.outcome DETACH PARTITION sendoff.outcome_1")
    status, trouble, said = await check(sendoff)
    assert (status, trouble) == (1, WIDE | {"partitions": "wrong"})
    assert "outcome_1" in said["partitions"]


@pytest.mark.usefixtures("stack")
async def test_an_smtp_url_that_cannot_be_is_wrong(sendoff: Sendoff) -> None:
    status, trouble, said = await check(sendoff, SENDOFF_SMTP_URL="smtp://u:secret@relay.example.org")
    assert (status, trouble) == (1, WIDE | {"relay": "wrong"})
    assert "in the clear" in said["relay"]
    assert "secret" not in str(said)


@pytest.mark.usefixtures("stack")
async def test_a_relay_that_wants_tls_says_so_before_the_first_message(sendoff: Sendoff) -> None:
    with postfix.running(smtpd_tls_security_level="encrypt") as relay:
        status, trouble, said = await check(sendoff, SENDOFF_SMTP_URL=f"smtp://127.0.0.1:{relay.port}")
    assert status == 3
    sentence = said["relay"]
    assert trouble["relay"] == "unreachable"
    assert "530 5.7.0 Must issue a STARTTLS command first" in sentence
    assert "begin SENDOFF_SMTP_URL with smtp+starttls:// or smtps://" in sentence


@pytest.mark.usefixtures("stack")
async def test_a_key_for_signatures_that_is_not_there_is_wrong(sendoff: Sendoff, tmp_path: Path) -> None:
    keys = tmp_path / "dkim.toml"
    keys.write_text('["example.org"]\nselector = "s"\nkey = "none.pem"\n')
    status, trouble, said = await check(sendoff, SENDOFF_DKIM_FILE=str(keys))
    assert status == 1
    assert trouble["relay"] == "wrong"
    assert "example.org: the key none.pem cannot be read: No such file or directory." in said["relay"]


@pytest.mark.usefixtures("stack")
async def test_without_the_channel_email_no_relay_is_needed(sendoff: Sendoff) -> None:
    status, trouble, said = await check(
        sendoff, SENDOFF_CHANNELS='["null"]', SENDOFF_SMTP_URL=f"smtp://{NOWHERE}"
    )
    assert (status, trouble) == (0, WIDE)
    assert said["relay"] == "None is needed: there is no channel “email”."


@pytest.mark.usefixtures("stack")
async def test_wrong_settings_are_named_and_the_other_lines_are_there(sendoff: Sendoff) -> None:
    status, trouble, said = await check(sendoff, SENDOFF_PAGE_SIZE="many")
    others = dict.fromkeys(set(PARTS) - {"policies"}, "skipped")
    assert (status, trouble) == (1, others | {"configuration": "wrong"})
    assert "SENDOFF_PAGE_SIZE" in said["configuration"]


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
    status, trouble, said = await check(sendoff)
    assert [said[part].split(":")[0] for part in ("tracker", "returned", "webhooks")] == [
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
    status, trouble, said = await check(sendoff, **env)
    assert (status, trouble) == (0, WIDE)
    assert said["returned"] == "Mail to returns.example.org can be taken and read."
    assert said["webhooks"] == "Calls of postmark can be taken."
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
    for (part, name, _, sentence), (status, trouble, said) in zip(wrong, answers, strict=True):
        assert (status, trouble[part]) == (1, "wrong"), name
        assert sentence in said[part]
        assert KEYS not in str(said)


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
        status, trouble, said = await check(sendoff, **env, SENDOFF_TRACKER_PORT=str(site.port))
        assert (status, trouble) == (0, WIDE)
        assert "can be used" in said["tracker"]
        assert (await site.ask("/robots.txt")).status == 200
