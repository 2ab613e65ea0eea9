"""Webhooks, from a message's header over a provider's call to the KPIs, over a real broker and database."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from email import message_from_bytes
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from aiosmtpd.smtp import SMTP
from pydantic import SecretStr

from contracts import routing
from tests.support import webhooks as given_by
from tests.support.deliveries import counts, sent
from tests.support.intake import taking
from tests.support.processes import worker as process
from tests.support.proxy import CutProxy
from tests.support.stack import until
from tests.support.webhooks import SECRET, SENDGRID_PUBLIC, TOPIC, Request
from worker.domain.keys import read_keys
from worker.domain.return_path import Reference, ReturnPath
from worker.web.webhooks import service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from aiosmtpd.smtp import Envelope

    from tests.support.processes import Sendoff
    from tests.support.stack import Stack
    from worker.bootstrap_intake import Intake

KEYS = f"1:{'k' * 32}"
RETURNS = ReturnPath(read_keys(KEYS))
PROVIDERS = f"""
[ses]
topics = ["{TOPIC}"]
[sendgrid]
public_keys = ["{SENDGRID_PUBLIC}"]
[mailgun]
signing_keys = ["{SECRET}"]
[postmark]
secrets = ["{SECRET}"]
[generic]
secrets = ["{SECRET}"]
"""


class Hooks:
    """A running service, and providers that call it."""

    def __init__(self, client: httpx2.AsyncClient, port: int, parts: Intake) -> None:
        self.client = client
        self.port = port
        self.parts = parts

    async def post(self, provider: str, request: Request) -> httpx2.Response:
        return await self.client.post(f"/{provider}", content=request.body, headers=request.headers)

    async def told(self, *events: dict[str, Any]) -> httpx2.Response:
        return await self.post("generic", given_by.generic(json.dumps(events), now()))

    def counted(self, provider: str, outcome: str) -> float:
        labels = {"provider": provider, "outcome": outcome}
        return self.parts.registry.get_sample_value("sendoff_webhook_calls_total", labels) or 0


def now() -> datetime:
    return datetime.now(UTC)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def file_of(stack: Stack) -> Path:
    path = stack.folder / "webhooks.toml"
    path.write_text(PROVIDERS)
    return path


@asynccontextmanager
async def hooks(stack: Stack, *services: str, **changes: Any) -> AsyncIterator[Hooks]:
    port = free_port()
    settings = {
        "bounce_keys": SecretStr(KEYS),
        "webhooks_file": file_of(stack),
        "webhooks_port": port,
        "tick": 0.05,
    }
    async with AsyncExitStack() as opened:
        parts = await opened.enter_async_context(taking(stack.settings, "webhooks", **(settings | changes)))
        if services:
            await opened.enter_async_context(stack.running(*services, tick=0.05))
        port = (settings | changes)["webhooks_port"]
        client = httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30)
        await opened.enter_async_context(client)
        await until(lambda: listening(client))
        yield Hooks(client, port, parts)


async def listening(client: httpx2.AsyncClient) -> bool:
    try:
        return (await client.get("/")).status_code == 404
    except httpx2.ConnectError:
        return False


async def drained(stack: Stack) -> bool:
    return not (await stack.depth(routing.BOUNCE_QUEUE) + await stack.depth(routing.TRACKING_QUEUE))


def opened(number: int, recipients: Iterable[int]) -> list[dict[str, Any]]:
    return [
        {
            "event": "open",
            "event_id": f"o-{recipient}",
            "reference": RETURNS.token(Reference(number, recipient, 1)),
            "at": now().isoformat(),
        }
        for recipient in recipients
    ]


class Relay:
    """Takes mail as a provider does."""

    def __init__(self) -> None:
        self.taken: list[Envelope] = []

    async def handle_DATA(self, _server: SMTP, _session: object, envelope: Envelope) -> str:  # noqa: N802
        self.taken.append(envelope)
        return "250 OK"


@asynccontextmanager
async def relay() -> AsyncIterator[tuple[Relay, str]]:
    handler = Relay()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(handler, loop=loop), "127.0.0.1", 0)
    try:
        yield handler, f"smtp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def reference_of(provider: str, header: Any) -> str:
    """What the provider reads from our header, and passes on."""
    if provider == "sendgrid":
        return str(json.loads(header["X-SMTPAPI"])["unique_args"]["sendoff"])
    if provider == "mailgun":
        return str(json.loads(header["X-Mailgun-Variables"])["sendoff"])
    if provider == "ses":
        return str(header["X-SES-MESSAGE-TAGS"]).removeprefix("sendoff=")
    return str(header["X-PM-Metadata-sendoff" if provider == "postmark" else "X-Sendoff-Reference"])


@pytest.mark.parametrize("provider", ["ses", "sendgrid", "mailgun", "postmark", "generic"])
async def test_what_a_message_carries_comes_back_as_the_bounce_of_its_recipient(
    stack: Stack, provider: str
) -> None:
    sender = {"bounce_keys": SecretStr(KEYS), "relay_provider": provider}
    async with relay() as (handler, url):
        number = await stack.prepare(["ana@example.org"], channel="email")
        async with stack.running(smtp_url=url, **sender):
            await stack.confirm(number)
            assert (await stack.finished(number))["sent"] == 1
    (envelope,) = handler.taken
    assert envelope.content is not None
    content = envelope.content.encode() if isinstance(envelope.content, str) else envelope.content
    reference = reference_of(provider, message_from_bytes(content))
    assert RETURNS.read(reference) == Reference(number, 1, 1)
    async with hooks(stack, "results") as here:
        answer = await here.told({**opened(number, [1])[0], "event": "bounce", "reference": reference,
                                  "reply": "550 5.1.1 no such user"})  # fmt: skip
        assert answer.status_code == 200
        row = await counts(stack, number, bounced_hard=1)
    assert row["sent"] == 0


RECORDED = {
    "sendgrid": ("sendgrid",),
    "mailgun": tuple(
        f"mailgun-{kind}" for kind in ("failed", "opened", "clicked", "complained", "unsubscribed")
    ),
    "postmark": tuple(f"postmark-{kind}" for kind in ("bounce", "open", "click", "complaint", "optout")),
    "generic": ("generic",),
    "ses": tuple(f"ses-{kind}" for kind in ("bounce", "open", "click", "complaint")),
}


def signed(provider: str, place: int, body: str) -> Request:
    """A call as the provider signs it; SNS numbers its messages."""
    if provider == "ses":
        return given_by.sns(body, now(), MessageId=f"m-{place}")
    return given_by.SIGN[provider](body, now())


async def certificate(url: str) -> bytes:
    assert url == given_by.CERTIFICATE_URL
    return given_by.certificate()


@pytest.mark.parametrize("provider", RECORDED)
async def test_replayed_and_reordered_calls_change_nothing_twice(
    stack: Stack, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "read_providers", partial(service.read_providers, fetch=certificate))
    number = await sent(stack, 2)
    names = RECORDED[provider]
    bodies = [given_by.recorded(name, Reference(number, 2, 1), RETURNS) for name in names]
    expected = {"bounced_hard": 1, "opened": 1, "clicked": 1, "optout": 1, "complained": 1, "sent": 1}
    expected["optout"] = int(provider != "ses")  # it has none
    async with hooks(stack, "results", "tracking") as here:
        calls = list(enumerate(bodies))
        for turn in (calls, calls[::-1], calls):
            requests = [signed(provider, place, body) for place, body in turn]
            answers = [await here.post(provider, request) for request in requests]
            assert {answer.status_code for answer in answers} == {200}
        await counts(stack, number, **expected)
        await until(lambda: drained(stack))
    row = await counts(stack, number, **expected)
    assert row["bounced"] == 1
    events = await stack.rows("SELECT kind FROM sendoff.tracking_log")
    # SendGrid tells of an opt-out from all and of one from a group.
    assert len(events) == {"sendgrid": 5, "ses": 3}.get(provider, 4)


async def test_a_wrong_signature_a_huge_body_and_a_wrong_type_change_nothing(stack: Stack) -> None:
    number = await sent(stack, 1)
    async with hooks(stack, "results", "tracking") as here:
        forged = given_by.generic(json.dumps(opened(number, [1])), now(), secret="some other secret")  # noqa: S106
        assert (await here.post("generic", forged)).status_code == 401
        assert here.counted("generic", "forged") == 1
        length = b"content-length: 50000000\r\n\r\n"
        assert b" 413 " in await asyncio.to_thread(pour, here.port, length, b"x" * 1_000_000)
        chunked = b"transfer-encoding: chunked\r\n\r\n"
        part = b"f4240\r\n" + b"x" * 1_000_000 + b"\r\n"
        assert b" 413 " in await asyncio.to_thread(pour, here.port, chunked, part)
        odd = await here.told({**opened(number, [1])[0], "at": 17})
        assert odd.status_code == 400
        assert odd.text.startswith("Event 1 of 1: at: ")
        assert (await here.client.get("/generic")).status_code == 405
        assert (await here.told(*opened(number, [1]))).status_code == 200
        await counts(stack, number, opened=1)


def pour(port: int, header: bytes, part: bytes) -> bytes:
    """Sends 50 parts, or as many as the server takes; returns the first of its answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"POST /sendgrid HTTP/1.1\r\nhost: a\r\n" + header)
            for _ in range(50):
                connection.sendall(part)
        return connection.recv(1_000)


async def test_a_client_that_goes_in_the_midst_of_its_body_leaves_no_trace(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    number = await sent(stack, 1)
    async with hooks(stack, "tracking") as here:
        _, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(b"POST /sendgrid HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nxxx")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert (await here.told(*opened(number, [1]))).status_code == 200
        await counts(stack, number, opened=1)
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_burst_is_answered_and_nothing_of_it_is_lost(stack: Stack) -> None:
    number = await sent(stack, 600)
    async with hooks(stack, "tracking") as here:
        calls = [here.told(*opened(number, [recipient])) for recipient in range(1, 601)]
        answers = await asyncio.gather(*calls)
        assert {answer.status_code for answer in answers} == {200}
        await counts(stack, number, opened=600)


async def test_while_the_broker_is_away_the_provider_is_to_try_again(stack: Stack) -> None:
    number = await sent(stack, 1)
    async with (
        CutProxy(stack.settings.amqp_url).running() as proxy,
        hooks(stack, amqp_url=proxy.url) as here,
        stack.running("tracking"),
    ):
        proxy.cut()
        await until(lambda: away(here))
        answer = await here.told(*opened(number, [1]))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert (await stack.deployment(number))["opened"] == 0
        proxy.mend()

        async def taken() -> bool:
            return (await here.told(*opened(number, [1]))).status_code == 200

        await until(taken)
        await counts(stack, number, opened=1)


async def test_it_starts_while_the_broker_is_away_and_takes_calls_when_it_is_there(stack: Stack) -> None:
    number = await sent(stack, 1)
    async with CutProxy(stack.settings.amqp_url).running() as proxy:
        proxy.cut()
        async with hooks(stack, amqp_url=proxy.url, connect_timeout=2) as here, stack.running("tracking"):
            assert (await here.told(*opened(number, [1]))).status_code == 503
            assert await here.parts.probes(asyncio.Event())["broker"]() != ""
            proxy.mend()

            async def taken() -> bool:
                return (await here.told(*opened(number, [1]))).status_code == 200

            await until(taken)
            assert await here.parts.probes(asyncio.Event())["broker"]() == ""
            await counts(stack, number, opened=1)


async def test_two_processes_share_a_port(stack: Stack) -> None:
    async with hooks(stack) as one, hooks(stack, webhooks_port=one.port) as other:

        async def both() -> bool:
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{one.port}") as client:
                await client.post("/generic", content=b"[]")  # not signed
            return min(one.counted("generic", "forged"), other.counted("generic", "forged")) > 0

        await until(both)


async def away(here: Hooks) -> bool:
    return not here.parts.publisher.takes


async def test_the_command_takes_calls_and_stops_at_a_signal(stack: Stack) -> None:
    number = await sent(stack, 1)
    port = free_port()
    # It has no use for a database, and so no need of a user there.
    nowhere = {"DATABASE_URL": "postgresql://127.0.0.1:1/none"}
    env = {"BOUNCE_KEYS": KEYS, "WEBHOOKS_FILE": file_of(stack), "WEBHOOKS_PORT": port, **nowhere}
    with process(stack.settings, "webhooks", **env) as running:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            await until(lambda: listening(client))
            request = given_by.generic(json.dumps(opened(number, [1])), now())
            answer = await client.post("/generic", content=request.body, headers=request.headers)
            assert answer.status_code == 200
            running.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(running.wait, 20) == 0
    async with stack.running("tracking"):
        await counts(stack, number, opened=1)


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({}, "there is no key: set SENDOFF_BOUNCE_KEYS"),
        ({"SENDOFF_BOUNCE_KEYS": KEYS}, "set SENDOFF_WEBHOOKS_FILE"),
        ({"SENDOFF_BOUNCE_KEYS": KEYS, "SENDOFF_WEBHOOKS_FILE": "/nowhere"}, "/nowhere cannot be read"),
        ({"SENDOFF_RELAY_PROVIDER": "mailgun"}, "SENDOFF_RELAY_PROVIDER needs keys"),
    ],
)
async def test_what_is_missing_is_a_sentence_at_the_start(
    stack: Stack, sendoff: Sendoff, env: dict[str, str], sentence: str
) -> None:
    assert stack.settings.queue_prefix
    done = await asyncio.to_thread(sendoff, "run", "webhooks", env=env)
    assert done.returncode == 2
    assert sentence in done.stderr
