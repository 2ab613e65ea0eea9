"""TLS and login against Postfix and Exim as Debian builds them, and what arrives behind Postfix."""

from __future__ import annotations

import asyncio
import base64
import email
import subprocess
from email import policy
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import dkim
import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from contracts.sends import Send
from tests.support import relays, scripted_smtp
from tests.support.relays import PASSWORD, TOKEN, USER
from worker.channels.email.channel import EmailChannel
from worker.channels.email.dkim import Signer, Signing
from worker.channels.email.dsn import Dsn
from worker.channels.email.smtp import SmtpPool
from worker.channels.email.timeouts import Timeouts
from worker.channels.protocol import ChannelUnreachable, Granted
from worker.domain.verdicts import Accepted, Bounced

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from worker.domain.verdicts import Verdict

LOGIN = f"{USER}:{quote(PASSWORD, safe='')}"
CONTENT = {
    "from": "Nachrichten <news@example.org>",
    "subject": "今日のニュースレター、{{ name }}",
    "text": "Dear {{ name }},\n.\n..dots\nFrom here on\n" + "x" * 1200,
    "html": '<p>Dear {{ name }}</p><img src="cid:logo">',
    "to_name": "{{ name }}",
    "unsubscribe": "https://u.example.org/{{ name }}",
    "attachments": [
        {"name": "logo.png", "type": "image/png", "cid": "logo", "data": "iVBORw=="},
        {
            "name": "Übersicht.pdf",
            "type": "application/pdf",
            "data": base64.b64encode(b"%PDF" * 999).decode(),
        },
    ],
}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost that signs itself, with its key in the same file."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        path,
        "-out",
        f"{path}.crt",
    ]
    subprocess.run([*make.split(), *names], check=True, capture_output=True, timeout=30)
    with path.open("a") as both:
        both.write(path.with_name("both.pem.crt").read_text())
    return path


@pytest.fixture(scope="module")
def exim(certificate: Path) -> Iterator[relays.Relay]:
    with relays.exim(certificate) as relay:
        yield relay


def to(recipient: int, name: str) -> Send:
    return Send(
        delivery_id=42, recipient=recipient, attempt=1, channel="email", address="ana@example.net",
        variables={"name": name},
    )  # fmt: skip


async def send(url: str, **options: Any) -> Verdict:
    """Sends one message; raises ChannelUnreachable if the server cannot be used."""
    channel = EmailChannel(SmtpPool(url, size=1, timeouts=Timeouts.all(20)), **options)
    try:
        await channel.ready()
        return await channel.send(channel.prepare(CONTENT), to(17, "Zoë"), Granted())
    finally:
        await channel.close()


@pytest.mark.parametrize("auth", ["", "&auth=plain", "&auth=login"])
async def test_exim_lets_us_in_by_either_mechanism_and_kind_of_tls(
    exim: relays.Relay, certificate: Path, auth: str
) -> None:
    for scheme, port in (("smtp+starttls", exim.starttls), ("smtps", exim.tls)):
        url = f"{scheme}://{LOGIN}@localhost:{port}?ca={certificate}{auth}"
        verdict = await send(url, dsn=Dsn(("failure", "delay"), "headers"))
        assert isinstance(verdict, Accepted)
        (line,) = [line for line in exim.log().splitlines() if f" {verdict.provider_id} <= " in line]
        assert "P=esmtpsa X=TLS" in line
        assert f"A={auth.partition('=')[2] or 'plain'}:{USER}" in line
        assert "CV=no" in line


async def test_exim_knows_us_by_a_client_certificate(exim: relays.Relay, certificate: Path) -> None:
    url = f"smtps://{LOGIN}@localhost:{exim.tls}?ca={certificate}&cert={certificate}"
    verdict = await send(url)
    assert isinstance(verdict, Accepted)
    (line,) = [line for line in exim.log().splitlines() if f" {verdict.provider_id} <= " in line]
    assert "CV=yes" in line


async def test_a_certificate_is_checked_unless_that_is_switched_off(
    exim: relays.Relay, certificate: Path
) -> None:
    for scheme, port in (("smtp+starttls", exim.starttls), ("smtps", exim.tls)):
        with pytest.raises(ChannelUnreachable, match="self-signed certificate"):
            await send(f"{scheme}://{LOGIN}@localhost:{port}")
        with pytest.raises(ChannelUnreachable, match="mismatch"):
            await send(f"{scheme}://{LOGIN}@127.0.0.1:{port}?ca={certificate}")
        assert isinstance(await send(f"{scheme}://{LOGIN}@localhost:{port}?verify=no"), Accepted)


async def test_starttls_is_used_where_it_is_offered(exim: relays.Relay) -> None:
    verdict = await send(f"smtp://localhost:{exim.starttls}?starttls=offered")
    assert isinstance(verdict, Bounced)
    assert verdict.reply == "550 log in first"
    rejected = [line for line in exim.log().splitlines() if "rejected RCPT <ana@example.net>: log in" in line]
    assert "X=TLS" in rejected[-1]
    verdict = await send(f"smtp://localhost:{exim.starttls}")
    rejected = [line for line in exim.log().splitlines() if "rejected RCPT <ana@example.net>: log in" in line]
    assert isinstance(verdict, Bounced)
    assert "X=TLS" not in rejected[-1]
    assert isinstance(await send(f"smtp://{LOGIN}@localhost:{exim.starttls}?starttls=offered"), Accepted)


async def test_what_exim_does_not_offer_is_told(exim: relays.Relay, certificate: Path) -> None:
    with pytest.raises(
        ChannelUnreachable, match="it does not offer XOAUTH2, but PLAIN, LOGIN; check"
    ) as told:
        await send(f"smtps://{LOGIN}@localhost:{exim.tls}?ca={certificate}&auth=xoauth2")
    assert PASSWORD not in str(told.value)
    with pytest.raises(
        ChannelUnreachable, match="refused the login: 535 Incorrect authentication data"
    ) as told:
        await send(f"smtps://{USER}:other-secret@localhost:{exim.tls}?ca={certificate}")
    assert "other-secret" not in str(told.value)


class Sink:
    """Keeps what Postfix relays."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[bytes] = asyncio.Queue()

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        assert isinstance(envelope.content, bytes)
        await self.messages.put(envelope.content)
        return "250 OK"


async def test_postfix_relays_messages_that_stay_whole_and_signed(
    certificate: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = Ed25519PrivateKey.generate()
    public = base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
    secret = tmp_path / "token"
    secret.write_text("expired\n")
    sink = Sink()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(sink, loop=loop), "127.0.0.1", 0)
    async with server, relays.logins() as sasl:
        port = server.sockets[0].getsockname()[1]
        running = relays.postfix(certificate, sasl=sasl, sink=port)
        relay = await asyncio.to_thread(running.__enter__)
        try:
            ca = f"ca={certificate}"
            url = f"smtp+starttls://{USER}@localhost:{relay.starttls}?{ca}&auth=xoauth2&secret={secret}"
            signing = Signing({"example.org": Signer("example.org", "s", key)})
            pool = SmtpPool(url, size=2, timeouts=Timeouts.all(20))
            channel = EmailChannel(pool, signing=signing, dsn=Dsn(("never",), "headers"))
            with pytest.raises(ChannelUnreachable, match=r"refused the login: 535 5\.7\.8"):
                await channel.ready()
            secret.write_text(f"{TOKEN}\n")
            await channel.ready()
            compiled = channel.prepare(CONTENT)
            names = {f"Zoë-{n}" for n in range(1, 6)}
            sends = [channel.send(compiled, to(n, name), Granted()) for n, name in enumerate(names, 1)]
            assert {type(verdict) for verdict in await asyncio.gather(*sends)} == {Accepted}
            await channel.close()
            for auth in ("plain", "login"):
                url = f"smtps://{LOGIN}@localhost:{relay.tls}?{ca}&cert={certificate}&auth={auth}"
                assert isinstance(await send(url), Accepted)
            relayed = [await asyncio.wait_for(sink.messages.get(), 20) for _ in range(len(names) + 2)]
        finally:
            log = relay.log()
            await asyncio.to_thread(running.__exit__, None, None, None)
    for mechanism, count in (("XOAUTH2", 5), ("PLAIN", 1), ("LOGIN", 1)):
        assert log.count(f"sasl_method={mechanism}, sasl_username={USER}") == count
    assert "Trusted TLS connection established from localhost" in log
    found = set()
    for raw in relayed:
        message = email.message_from_bytes(raw, policy=policy.SMTP.clone(raise_on_defect=True))
        assert isinstance(message, EmailMessage)
        assert [part.get_filename() for part in message.iter_attachments()] == ["Übersicht.pdf"]
        if message["DKIM-Signature"]:
            assert dkim.verify(raw, dnsfunc=lambda *_, **__: b"v=DKIM1; k=ed25519; p=" + public)
            found.add(message["Subject"].removeprefix("今日のニュースレター、"))
    assert found == names
    assert TOKEN not in caplog.text
    assert PASSWORD not in caplog.text


@pytest.mark.parametrize(("text", "words"), [(None, "cannot be read: No such file"), ("\n", "is empty")])
async def test_a_secret_that_cannot_be_read_is_told(tmp_path: Path, text: str | None, words: str) -> None:
    server = scripted_smtp.Server(EHLO=["250-here\r\n250 AUTH PLAIN"])
    if text is not None:
        (tmp_path / "token").write_text(text)
    url = f"smtp://ana@127.0.0.1:{{port}}?auth=plain&secret={tmp_path / 'token'}"
    async with scripted_smtp.running(server, url=url) as pool:
        with pytest.raises(ChannelUnreachable, match=f"the file .*token with its secret {words}"):
            await pool.ready()
    assert not any(command.startswith("AUTH") for command in server.commands)
