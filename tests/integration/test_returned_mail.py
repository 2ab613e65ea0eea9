"""Returned mail, from a real SMTP client or a Maildir to the KPIs, over a real broker and database."""

from __future__ import annotations

import asyncio
import signal
import smtplib
from contextlib import asynccontextmanager
from email import message_from_bytes
from pathlib import Path
from typing import TYPE_CHECKING

import aiosmtplib
import pytest
from aiosmtpd.smtp import SMTP
from pydantic import SecretStr

from contracts import routing
from tests.support.deliveries import counts, sent
from tests.support.intake import FAILED, KEYS, free_port, intake, listening, maildir, name_of
from tests.support.processes import worker as process
from tests.support.returned_mail import complaint, failure_notice, mail, report
from tests.support.stack import until
from worker.domain.keys import read_keys
from worker.domain.return_path import Reference, ReturnPath

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiosmtpd.smtp import Envelope

    from tests.support.processes import Sendoff
    from tests.support.stack import Stack

DOC = Path(__file__).parents[2] / "docs/returned-mail.md"


class Relay:
    """Takes mail, and returns it to its envelope sender, as a server does that found nobody."""

    def __init__(self) -> None:
        self.taken: list[Envelope] = []

    async def handle_DATA(self, _server: SMTP, _session: object, envelope: Envelope) -> str:  # noqa: N802
        self.taken.append(envelope)
        return "250 OK"

    def returned(self) -> list[tuple[str, bytes]]:
        found = []
        for envelope in self.taken:
            address = envelope.rcpt_tos[0]
            header = str(message_from_bytes(envelope.content).as_string()).replace("\r\n", "\n")
            found.append((envelope.mail_from, report(FAILED.format(address=address), returned=header)))
        return found


@asynccontextmanager
async def relay() -> AsyncIterator[tuple[Relay, str]]:
    handler = Relay()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(handler, loop=loop), "127.0.0.1", 0)
    try:
        yield handler, f"smtp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_what_we_send_comes_back_as_a_bounce_of_its_recipient(stack: Stack) -> None:
    names = {"bounce_keys": SecretStr(KEYS), "bounce_domain": "returns.example.org"}
    async with relay() as (handler, url):
        number = await stack.prepare(["ana@example.org", "bob@example.org"], channel="email")
        async with stack.running(smtp_url=url, **names):
            await stack.confirm(number)
            assert (await stack.finished(number))["sent"] == 2
    async with intake(stack, "results") as here:
        for envelope_sender, data in handler.returned():
            assert await here.bring(data, envelope_sender) == "2.0.0 Taken"
        row = await counts(stack, number, bounced_hard=2)
        # The same again, by its Message-ID alone: a provider that sends reports elsewhere.
        for _, data in handler.returned():
            await here.bring(data, "reports@example.org")
        await until(lambda: drained(stack))
    assert (row["sent"], row["state"]) == (0, "finished")
    assert (await stack.deployment(number))["bounced_hard"] == 2
    log = await stack.rows("SELECT * FROM sendoff.sending_log ORDER BY recipient")
    assert [(r["address"], r["reason"], r["code"]) for r in log] == [
        ("ana@example.org", "user_unknown", "5.1.1"),
        ("bob@example.org", "user_unknown", "5.1.1"),
    ]
    assert log[0]["reply"] == "550 5.1.1 <ana@example.org>: no such user"
    assert log[0]["sent_at"] is not None
    assert here.counted("bounce") == 4


async def drained(stack: Stack) -> bool:
    return not (await stack.depth(routing.BOUNCE_QUEUE) + await stack.depth(routing.TRACKING_QUEUE))


async def test_a_complaint_is_counted_once_and_denylists_the_profile(stack: Stack) -> None:
    number = await sent(stack, ["ana@example.org,p1"], columns="address,profile_id")
    data = complaint(f"Feedback-Type: abuse\nOriginal-Mail-From: <{name_of(number, 1, 1)}>\n")
    async with intake(stack, "tracking") as here:
        for _ in range(2):
            await here.bring(data, "fbl@example.org")
        row = await counts(stack, number, complained=1)
        await until(lambda: drained(stack))
        assert here.counted("complaint") == 2
    assert (row["sent"], row["complaint_pct"], row["opened"]) == (1, 100, 0)
    assert await stack.rows("SELECT profile_id, cause FROM sendoff.denylist") == [
        {"profile_id": "p1", "cause": "complaint"}
    ]
    assert (await stack.deployment(number))["complained"] == 1


async def test_what_is_forged_unknown_or_about_nothing_changes_nothing(stack: Stack) -> None:
    number = await sent(stack, ["ana@example.org"])
    ours = name_of(number, 1, 1)
    other = ReturnPath(read_keys(f"1:{'x' * 32}"), "returns.example.org").sender(Reference(number, 1, 1))
    failed = report(FAILED.format(address="ana@example.org"))
    async with intake(stack, "results", "tracking") as here:
        for forged in (other, f"bounces+{'a' * 28}@returns.example.org", "bounces+@returns.example.org"):
            with pytest.raises(aiosmtplib.SMTPRecipientsRefused):
                await here.bring(failed, str(forged))
        await here.bring(failed, "someone@example.org")  # its Message-ID is not signed
        await here.bring(
            report("Final-Recipient: rfc822; a@b.example\nAction: delayed\nStatus: 4.4.1\n"), ours
        )
        await here.bring(
            report("Final-Recipient: rfc822; a@b.example\nAction: relayed\nStatus: 2.0.0\n"), ours
        )
        await here.bring(
            mail("From: Ana <ana@example.org>\nSubject: Out of office: Hello", "550 5.1.1 x\n"), ours
        )
        await here.bring(
            mail("From: MAILER-DAEMON\n" + "Received: x\n" * 101, "<a@b.example>: 550 no\n"), ours
        )
        await here.bring(
            mail("From: Ana <ana@example.org>\nSubject: hello", "hello\n"), "someone@example.org"
        )
        outcomes = ("forged", "unknown", "delayed", "no_failure", "automatic", "looping", "other")
        assert [here.counted(outcome) for outcome in outcomes] == [3, 1, 1, 1, 1, 1, 1]
        assert here.counted("bounce") == 0
        assert here.kept() == []
    assert (await stack.deployment(number))["sent"] == 1
    assert await stack.depth(routing.BOUNCE_QUEUE) == 0


async def test_what_cannot_be_read_is_kept_for_a_person_and_blocks_nobody(stack: Stack) -> None:
    number = await sent(stack, ["ana@example.org"])
    async with intake(stack, "results") as here:
        odd = failure_notice(f"Something went wrong.\n.\n..dots\n{'long' * 40_000}\n")
        assert await here.bring(odd, name_of(number, 1, 1)) == "2.0.0 Taken"
        strange = mail("From: Ana <ana@example.org>\nSubject: hello", "Who are you?\n")
        assert await here.bring(strange, name_of(number, 1, 1)) == "2.0.0 Taken"
        await here.bring(report(FAILED.format(address="ana@example.org")), name_of(number, 1, 1))
        await counts(stack, number, bounced_hard=1)
        kept = here.kept()
        assert here.counted("kept") == len(kept) == 2
    assert all(data.startswith(b"X-Sendoff-Kept: It ") for data in kept)
    assert {odd in data for data in kept} == {True, False}


async def test_a_mail_that_is_too_large_is_refused_and_counted(stack: Stack) -> None:
    async with intake(stack, returned_size=100_000) as here:
        large = mail("Subject: x", "\n..\n" * 20_000)
        with pytest.raises(aiosmtplib.SMTPSenderRefused, match="552"):
            await here.bring(large, "fbl@example.org")
        async with aiosmtplib.SMTP(hostname="127.0.0.1", port=here.port, start_tls=False) as client:
            await client.ehlo()
            for _ in range(2):  # without the size, and on the same connection
                await client.mail("")
                await client.rcpt("fbl@example.org")
                with pytest.raises(aiosmtplib.SMTPDataError, match=r"552.*too large"):
                    await client.data(large)
        assert here.counted("too_large") == 2
        assert await here.bring(mail("Subject: x", "a" * 50_000 + "\n"), "fbl@example.org") == "2.0.0 Taken"


async def test_lmtp_answers_once_for_each_recipient(stack: Stack) -> None:
    number = await sent(stack, ["ana@example.org"])

    def talk(port: int) -> tuple[int, list[bytes]]:
        with smtplib.LMTP("127.0.0.1", port, timeout=20) as client:
            client.ehlo()
            client.mail("")
            client.rcpt("fbl@example.org")
            client.rcpt(name_of(number, 1, 1))
            client.putcmd("data")
            assert client.getreply()[0] == 354
            client.send(report(FAILED.format(address="ana@example.org")) + b".\r\n")
            replies = [client.getreply() for _ in range(2)]
            return client.noop()[0], [text for code, text in replies if code == 250]

    async with intake(stack, "results") as here:
        assert await asyncio.to_thread(talk, here.port) == (250, [b"2.0.0 Taken", b"2.0.0 Taken"])
        await counts(stack, number, bounced_hard=1)


async def test_a_client_too_many_is_sent_away_for_now(stack: Stack) -> None:
    async with intake(stack) as here:
        open_ones = [await asyncio.open_connection("127.0.0.1", here.port) for _ in range(20)]
        for reader, _ in open_ones:
            assert (await reader.readline()).startswith(b"220")
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        assert (await reader.readline()).startswith(b"421 4.3.2")
        for one in (writer, *(w for _, w in open_ones)):
            one.close()


async def test_a_maildir_is_read_and_its_mails_are_seen(stack: Stack) -> None:
    number = await sent(stack, [f"user{n}@example.org" for n in range(1, 31)])
    folder = maildir(stack.folder / "mails")

    def put(name: str, recipient: int, data: bytes) -> None:
        address = name_of(number, recipient, 1)
        (folder / "new" / name).write_bytes(b"Delivered-To: " + address.encode() + b"\r\n" + data)

    for n in range(1, 31):
        put(f"{n}.host", n, report(FAILED.format(address=f"user{n}@example.org")))
    put("40.host", 1, failure_notice("Something went wrong.\n"))
    (folder / "new" / "50.host").write_bytes(b"\xff" * 3_000_000)
    async with intake(stack, "results", returned_port=0, returned_maildir=folder) as here:
        await counts(stack, number, bounced_hard=30)

        async def all_seen() -> bool:
            return not list((folder / "new").iterdir())

        await until(all_seen)
        put("60.host", 2, report(FAILED.format(address="user2@example.org")))  # a late one, doubled
        await until(all_seen)
        assert here.counted("bounce") == 31
        assert here.counted("kept") == 1
    assert len(list((folder / "cur").iterdir())) == 33
    assert all(file.name.endswith(":2,S") for file in (folder / "cur").iterdir())


async def test_the_command_takes_a_mail_and_stops_at_a_signal(stack: Stack) -> None:
    number = await sent(stack, ["ana@example.org"])
    port = free_port()
    env = {
        "BOUNCE_KEYS": KEYS,
        "RETURNED_PORT": port,
        "RETURNED_FOLDER": stack.folder / "kept",
        "DATABASE_URL": "postgresql://127.0.0.1:1/none",
    }
    with process(stack.settings, "returned", **env) as running:
        await until(lambda: listening(port))
        # It has no use for a database, and so no need of a user there.
        client = aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False, timeout=20)
        async with client:
            data = report(FAILED.format(address="ana@example.org"))
            await client.sendmail("", [name_of(number, 1, 1)], data)
            idle = await asyncio.open_connection("127.0.0.1", port)
            running.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(running.wait, 20) == 0
            idle[1].close()
    async with stack.running("results"):
        await counts(stack, number, bounced_hard=1)


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({}, "there is no key: set SENDOFF_BOUNCE_KEYS"),
        ({"SENDOFF_BOUNCE_KEYS": "1:short"}, "the secret of key 1 is too short: it needs 32 bytes"),
        ({"SENDOFF_BOUNCE_KEYS_FILE": "/nowhere"}, "/nowhere cannot be read: No such file or directory"),
        ({"SENDOFF_BOUNCE_KEYS": KEYS, "SENDOFF_RETURNED_PORT": "0"}, "Returned mail has no source"),
        ({"SENDOFF_BOUNCE_DOMAIN": "returns.example.org"}, "SENDOFF_BOUNCE_DOMAIN needs keys"),
        ({"SENDOFF_BOUNCE_DOMAIN": "a b", "SENDOFF_BOUNCE_KEYS": KEYS}, "SENDOFF_BOUNCE_DOMAIN: "),
    ],
)
async def test_what_is_missing_is_a_sentence_at_the_start(
    stack: Stack, sendoff: Sendoff, env: dict[str, str], sentence: str
) -> None:
    assert stack.settings.queue_prefix
    done = await asyncio.to_thread(sendoff, "run", "returned", env=env)
    assert done.returncode == 2
    assert sentence in done.stderr
