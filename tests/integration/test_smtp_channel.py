"""The email channel against a real SMTP server, aiosmtpd: what arrives, how often, and over what."""

from __future__ import annotations

import asyncio
import base64
import email
import ssl
import subprocess
from collections import Counter
from contextlib import asynccontextmanager
from email import policy
from typing import TYPE_CHECKING, Any

import dkim
import pytest
import uvloop
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from contracts.results import BounceKind, BounceReason, Fault
from contracts.sends import Send
from tests.support import scripted_smtp
from worker.channels.email.channel import EmailChannel
from worker.channels.email.dkim import Signer, Signing
from worker.channels.email.dsn import Dsn
from worker.channels.email.smtp import SmtpPool
from worker.channels.email.timeouts import Timeouts
from worker.channels.protocol import ChannelUnreachable, Granted
from worker.domain.content import ContentInvalid
from worker.domain.keys import read_keys
from worker.domain.return_path import ReturnPath
from worker.domain.verdicts import Accepted, Bounced, Failed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

    from worker.domain.verdicts import Verdict

CONTENT = {
    "from": "News <news@example.org>",
    "subject": "Hello {{ first_name }}",
    "text": "Dear {{ first_name }}, you are number {{ recipient }} of {{ delivery_id }}.\n",
    "html": "<p>Dear {{ first_name }}</p>",
    "to_name": "{{ first_name }}",
    "headers": {"List-Unsubscribe": "<https://example.org/u/{{ delivery_id }}/{{ recipient }}>"},
}


class Sink:
    """Takes everything, but from or to mailboxes that are named for their refusal."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []
        self.peers: list[object] = []
        """Whence each message came."""
        self.users: list[bytes] = []
        self.encrypted: list[bool] = []

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address.startswith("unknown"):
            return "550 5.1.1 User unknown"
        if address.startswith("full"):
            return "452 4.2.2 Mailbox full"
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 OK"

    async def handle_DATA(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        if envelope.rcpt_tos[0].startswith("spam"):
            return "554 5.7.1 This looks like spam"
        self.envelopes.append(envelope)
        self.peers.append(session.peer)
        self.encrypted.append(session.ssl is not None)
        return f"250 2.0.0 Ok: queued as {len(self.envelopes)}"

    def authenticate(
        self, _server: SMTP, _session: Session, _envelope: Envelope, _way: str, data: object
    ) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.users.append(data.login)
        return AuthResult(success=data.password == b"p@ss/word", handled=False)


@asynccontextmanager
async def serving(sink: Sink, *, tls: ssl.SSLContext | None = None, **options: object) -> AsyncIterator[str]:
    """Runs a server; gives its `host:port`."""
    options.setdefault("enable_SMTPUTF8", True)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(sink, hostname="mx.example.org", loop=loop, **options), "localhost", 0, ssl=tls
    )
    try:
        yield f"localhost:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def channel_to(url: str, *, size: int = 2, **options: object) -> AsyncIterator[EmailChannel]:
    channel = EmailChannel(SmtpPool(url, size=size, timeouts=Timeouts.all(60), **options))
    try:
        yield channel
    finally:
        await channel.close()


def to(address: str, recipient: int = 17, **variables: str) -> Send:
    return Send(
        delivery_id=42,
        recipient=recipient,
        attempt=1,
        channel="email",
        address=address,
        variables={"first_name": "Zoë"} | variables,
    )


async def test_a_message_arrives() -> None:
    sink = Sink()
    async with serving(sink) as where, channel_to(f"smtp://{where}") as channel:
        await channel.ready()
        verdict = await channel.send(channel.prepare(CONTENT), to("ana@example.net"), Granted())
    assert verdict == Accepted("250 2.0.0 Ok: queued as 1", "1")
    (envelope,) = sink.envelopes
    assert (envelope.mail_from, envelope.rcpt_tos) == ("news@example.org", ["ana@example.net"])
    message = email.message_from_bytes(envelope.content, policy=policy.SMTP)
    assert message["Subject"] == "Hello Zoë"
    assert message["To"] == "Zoë <ana@example.net>"
    assert message["List-Unsubscribe"] == "<https://example.org/u/42/17>"
    text = message.get_body(("plain",))
    assert text is not None
    assert text.get_content() == "Dear Zoë, you are number 17 of 42.\r\n"


async def test_envelope_sender_and_message_id_tell_which_attempt_comes_back() -> None:
    sink = Sink()
    returns = ReturnPath(read_keys(f"1:{'k' * 32}"), "returns.example.org")
    async with serving(sink) as where:
        channel = EmailChannel(
            SmtpPool(f"smtp://{where}", size=1, timeouts=Timeouts.all(60)), returns=returns
        )
        await channel.send(channel.prepare(CONTENT), to("ana@example.net"), Granted())
        await channel.close()
    (envelope,) = sink.envelopes
    message = email.message_from_bytes(envelope.content, policy=policy.SMTP)
    assert returns.read(envelope.mail_from) == returns.read(message["Message-ID"]) == (42, 17, 1)
    assert envelope.mail_from.endswith("@returns.example.org")
    assert message["From"] == "News <news@example.org>"


async def test_many_at_once_over_few_connections_arrive_once_each() -> None:
    sink = Sink()
    async with serving(sink) as where, channel_to(f"smtp://{where}", size=4) as channel:
        compiled = channel.prepare(CONTENT)
        names = {n: ("unknown" if n % 7 == 0 else "ana") + f"-{n}@example.net" for n in range(1, 501)}
        verdicts = await asyncio.gather(
            *(channel.send(compiled, to(name, n), Granted()) for n, name in names.items())
        )
    assert Counter(type(verdict) for verdict in verdicts) == {Accepted: 429, Bounced: 71}
    arrived = Counter(envelope.rcpt_tos[0] for envelope in sink.envelopes)
    assert arrived == dict.fromkeys((name for name in names.values() if name.startswith("ana")), 1)
    assert len(set(sink.peers)) <= 4
    ids = {email.message_from_bytes(envelope.content)["Message-ID"] for envelope in sink.envelopes}
    assert len(ids) == 429


async def test_a_connection_is_replaced_after_its_share() -> None:
    sink = Sink()
    url_options = {"size": 1, "messages_per_connection": 3}
    async with serving(sink) as where, channel_to(f"smtp://{where}", **url_options) as channel:
        compiled = channel.prepare(CONTENT)
        for n in range(1, 8):
            assert isinstance(await channel.send(compiled, to("ana@example.net", n), Granted()), Accepted)
    assert sorted(Counter(sink.peers).values()) == [1, 3, 3]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("unknown@example.net", (BounceKind.HARD, BounceReason.USER_UNKNOWN, "5.1.1", Fault.RECIPIENT)),
        ("full@example.net", (BounceKind.SOFT, BounceReason.MAILBOX_FULL, "4.2.2", Fault.RECIPIENT)),
        ("spam@example.net", (BounceKind.SOFT, BounceReason.SPAM, "5.7.1", Fault.CONTENT)),
    ],
)
async def test_a_refused_recipient_is_a_bounce_with_its_kind_reason_status_and_fault(
    address: str, expected: tuple[object, ...]
) -> None:
    sink = Sink()
    async with serving(sink) as where, channel_to(f"smtp://{where}", size=1) as channel:
        compiled = channel.prepare(CONTENT)
        verdict = await channel.send(compiled, to(address), Granted())
        assert isinstance(await channel.send(compiled, to("ana@example.net"), Granted()), Accepted)
    assert isinstance(verdict, Bounced)
    assert (verdict.kind, verdict.reason, verdict.status, verdict.fault) == expected


async def test_international_addresses_go_as_utf8_and_international_domains_as_ascii() -> None:
    sink = Sink()
    async with serving(sink) as where, channel_to(f"smtp://{where}") as channel:
        compiled = channel.prepare(CONTENT)
        for address in ("δοκιμή@παράδειγμα.gr", "ana@bücher.example"):
            assert isinstance(await channel.send(compiled, to(address), Granted()), Accepted)
    international, by_domain = sink.envelopes
    assert international.rcpt_tos == ["δοκιμή@παράδειγμα.gr"]
    assert international.smtp_utf8
    assert "<δοκιμή@παράδειγμα.gr>".encode() in international.content
    assert by_domain.rcpt_tos == ["ana@xn--bcher-kva.example"]
    assert not by_domain.smtp_utf8


async def test_an_international_address_fails_for_good_on_a_server_without_smtputf8() -> None:
    sink = Sink()
    async with (
        serving(sink, enable_SMTPUTF8=False) as where,
        channel_to(f"smtp://{where}", size=1) as channel,
    ):
        compiled = channel.prepare(CONTENT)
        verdict = await channel.send(compiled, to("δοκιμή@παράδειγμα.gr"), Granted())
        assert isinstance(verdict, Failed)
        assert (verdict.reason, verdict.retryable) == ("smtputf8_unsupported", False)
        assert isinstance(await channel.send(compiled, to("ana@bücher.example"), Granted()), Accepted)


async def test_a_message_larger_than_the_server_takes_is_a_soft_bounce_of_its_content() -> None:
    async with serving(Sink(), data_size_limit=500) as where, channel_to(f"smtp://{where}") as channel:
        verdict = await channel.send(
            channel.prepare(CONTENT), to("ana@example.net", first_name="x" * 600), Granted()
        )
    assert isinstance(verdict, Bounced)
    assert (verdict.kind, verdict.reason, verdict.fault) == (
        BounceKind.SOFT,
        BounceReason.TOO_LARGE,
        Fault.CONTENT,
    )


async def test_line_breaks_in_a_header_or_an_address_never_reach_the_server() -> None:
    sink = Sink()
    async with serving(sink) as where, channel_to(f"smtp://{where}") as channel:
        compiled = channel.prepare(CONTENT)
        injected = await channel.send(
            compiled, to("ana@example.net", first_name="x\r\nBcc: eve@example.org"), Granted()
        )
        malformed = await channel.send(
            compiled, to("ana@example.net>\r\nRCPT TO:<eve@example.org"), Granted()
        )
    assert isinstance(injected, Failed)
    assert (injected.reason, injected.retryable) == ("template", False)
    assert isinstance(malformed, Failed)
    assert (malformed.reason, malformed.retryable) == ("invalid_address", False)
    assert sink.envelopes == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"subject": "{{"}, "subject, line 1"),
        ({"from": "nobody"}, "from: "),
        ({"text": None, "html": None}, "empty"),
    ],
)
async def test_a_content_that_suits_no_recipient_is_refused_with_its_place(
    change: dict[str, Any], words: str
) -> None:
    async with channel_to("smtp://localhost:1") as channel:
        assert channel.concurrency == 2
        with pytest.raises(ContentInvalid, match=words):
            channel.prepare(CONTENT | change)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost that signs itself, with its key in the same file."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-keyout",
        path,
        "-out",
        f"{path}.crt",
    ]
    subprocess.run([*make.split(), *names], check=True, capture_output=True, timeout=30)
    with path.open("a") as both:
        both.write(path.with_name("both.pem.crt").read_text())
    return path


def context(certificate: Path) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(certificate)
    return made


async def test_smtps_encrypts_from_the_first_byte_and_checks_the_certificate(certificate: Path) -> None:
    sink = Sink()
    async with serving(sink, tls=context(certificate)) as where:
        async with channel_to(f"smtps://{where}?ca={certificate}") as channel:
            compiled = channel.prepare(CONTENT | {"text": "{{ long }}"})
            assert isinstance(
                await channel.send(compiled, to("ana@example.net", long="x " * 150_000), Granted()), Accepted
            )
        async with channel_to(f"smtps://{where}") as channel:
            with pytest.raises(ChannelUnreachable, match=r"self.signed certificate"):
                await channel.ready()
    assert len(sink.envelopes) == 1


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_large_body_lost_on_its_way_over_tls_was_not_sent(
    certificate: Path, run: Callable[[Coroutine[Any, Any, Verdict]], Verdict]
) -> None:
    server = scripted_smtp.Server(BODY=[scripted_smtp.DROP, ""])
    url = f"smtps://127.0.0.1:{{port}}?ca={certificate}"

    async def exchange() -> Verdict:
        async with scripted_smtp.running(server, seconds=20, tls=context(certificate), url=url) as pool:
            return await scripted_smtp.send(pool, scripted_smtp.LARGE)

    assert isinstance(run(exchange()), Accepted)
    assert server.bodies == [scripted_smtp.LARGE + b".\r\n"]
    assert server.seen["CONNECT"] == 2


async def test_a_login_goes_over_starttls_and_a_refused_one_is_told_without_the_password(
    certificate: Path,
) -> None:
    sink = Sink()
    options = {
        "tls_context": context(certificate),
        "require_starttls": True,
        "authenticator": sink.authenticate,
        "auth_required": True,
    }
    async with serving(sink, **options) as where:
        async with channel_to(
            f"smtp+starttls://ana:p%40ss%2Fword@{where}?ca={certificate}&helo=me.example"
        ) as channel:
            assert isinstance(
                await channel.send(channel.prepare(CONTENT), to("ana@example.net"), Granted()), Accepted
            )
        async with channel_to(f"smtp+starttls://ana:wrong@{where}?ca={certificate}") as channel:
            with pytest.raises(ChannelUnreachable, match="refused the login: 535") as refused:
                await channel.ready()
            assert "wrong" not in str(refused.value)
        async with channel_to(f"smtp+starttls://{where}?ca={certificate}") as channel:
            verdict = await channel.send(channel.prepare(CONTENT), to("ana@example.net"), Granted())
            assert isinstance(verdict, Failed)
            assert (verdict.reason, verdict.retryable) == ("authentication", True)
    assert set(sink.users) == {b"ana"}
    assert sink.encrypted == [True]


async def test_a_server_without_starttls_is_refused_where_the_url_asks_for_it() -> None:
    sink = Sink()
    async with serving(sink) as where, channel_to(f"smtp+starttls://{where}") as channel:
        with pytest.raises(ChannelUnreachable, match="STARTTLS"):
            await channel.ready()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://localhost", "begins with smtp://"),
        ("smtp://", "scheme://"),
        ("smtp://localhost/path", "without a path"),
        ("smtp://localhost:port", "port"),
        (
            "smtp://localhost?tls=1",
            "unknown option 'tls'; there are auth, ca, cert, helo, key, secret, starttls",
        ),
        ("smtp://localhost?starttls=1", "option starttls of the SMTP URL is offered, not '1'"),
        ("smtps://localhost?starttls=offered", "starttls is for smtp://"),
        ("smtps://localhost?auth=cram-md5", "auth of the SMTP URL is plain or login or xoauth2"),
        ("smtps://localhost?auth=plain", "and no user"),
        ("smtps://ana:hidden@localhost?secret=x", "a password and a file of one"),
        ("smtp://localhost?ca=x", "ca of the SMTP URL is for a checked TLS"),
        ("smtps://localhost?key=x", "key of the SMTP URL needs cert"),
        ("smtps://localhost?cert=missing.pem", "client certificate 'missing.pem' of the SMTP URL"),
        ("smtp://ana:hidden@mx.example.org", "in the clear"),
        ("smtps://localhost?ca=missing.pem", "missing.pem"),
    ],
)
def test_a_wrong_smtp_url_is_refused_with_its_fault_and_without_the_password(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as wrong:
        SmtpPool(url, size=1, timeouts=Timeouts.all(1))
    assert "hidden" not in str(wrong.value)


async def test_a_signed_message_with_a_file_arrives_as_it_was_signed() -> None:
    sink = Sink()
    key = Ed25519PrivateKey.generate()
    public = base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
    data = base64.b64encode(b"octets\r\n" * 20_000).decode()
    content = CONTENT | {"attachments": [{"name": "é.bin", "type": "application/octet-stream", "data": data}]}
    async with serving(sink) as where:
        signing = Signing({"example.org": Signer("example.org", "s", key)})
        pool = SmtpPool(f"smtp://{where}", size=2, timeouts=Timeouts.all(60))
        channel = EmailChannel(pool, headers={"X-Number": "{{ recipient }}"}, signing=signing)
        compiled = channel.prepare(content)
        sends = [channel.send(compiled, to("ana@example.net", n), Granted()) for n in range(1, 9)]
        verdicts = await asyncio.gather(*sends)
        await channel.close()
    assert {type(verdict) for verdict in verdicts} == {Accepted}
    numbers = set()
    for envelope in sink.envelopes:
        assert dkim.verify(envelope.content, dnsfunc=lambda *_, **__: b"v=DKIM1; k=ed25519; p=" + public)
        message = email.message_from_bytes(envelope.content, policy=policy.SMTP)
        (file,) = message.iter_attachments()
        assert (file.get_filename(), file.get_content()) == ("é.bin", b"octets\r\n" * 20_000)
        numbers.add(message["X-Number"])
    assert numbers == {str(n) for n in range(1, 9)}


@pytest.mark.parametrize("offered", [True, False])
async def test_reports_are_asked_for_where_the_server_offers_them(*, offered: bool) -> None:
    server = scripted_smtp.Server(EHLO=["250-here\r\n250 DSN" if offered else "250 here"])
    async with scripted_smtp.running(server) as pool:
        channel = EmailChannel(pool, dsn=Dsn(("failure", "delay"), "headers"))
        compiled = channel.prepare(CONTENT)
        for address in ("a+b@example.net", "ana@bücher.example"):
            assert isinstance(await channel.send(compiled, to(address), Granted()), Accepted)
    asked = [command for command in server.commands if command.startswith(("MAIL", "RCPT"))]
    mail, rcpt = (" RET=HDRS ENVID=42-17-1", " NOTIFY=FAILURE,DELAY ORCPT=rfc822;") if offered else ("", "")
    assert asked == [
        f"MAIL FROM:<news@example.org>{mail}",
        f"RCPT TO:<a+b@example.net>{rcpt + 'a+2Bb@example.net' if offered else ''}",
        f"MAIL FROM:<news@example.org>{mail}",
        f"RCPT TO:<ana@xn--bcher-kva.example>{rcpt + 'ana@xn--bcher-kva.example' if offered else ''}",
    ]
