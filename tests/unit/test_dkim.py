"""Signatures verified by dkimpy, and what of a message they hold together."""

from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from dkim.canonicalization import Relaxed
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.channels.email.dkim import Signer, Signing, read_signers, relaxed_body
from worker.channels.email.message import MessageBuilder
from worker.domain.content import EmailContent
from worker.domain.mailbox import mailbox
from worker.domain.templates import Renderer
from worker.settings import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

RSA = generate_private_key(65537, 2048)
EDWARDS = Ed25519PrivateKey.generate()
KEYS = {"rsa": RSA, "ed25519": EDWARDS}
SIGNERS = {name: Signer("example.org", name, key) for name, key in KEYS.items()}
AT = 1_700_000_000
BODIES = st.text(st.characters(exclude_categories=["Cs"]), max_size=400)
LINES = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=120)


def published(name: bytes, timeout: int = 5) -> bytes:  # noqa: ARG001 - dkimpy gives it
    """Answers as the DNS of example.org would."""
    selector, _, rest = name.partition(b".")
    assert rest == b"_domainkey.example.org."
    if selector == b"rsa":
        octets = RSA.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    else:
        octets = EDWARDS.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return b"v=DKIM1; k=" + selector + b"; p=" + base64.b64encode(octets)


def verified(message: bytes) -> bool:
    return bool(dkim.verify(message, dnsfunc=published))


def built(subject: str = "a", text: str = "b", to_name: str = "", **more: Any) -> bytes:
    table = {
        "from": "News <news@example.org>",
        "subject": "{{ s }}",
        "text": "{{ t }}",
        "html": "<p>{{ t }}</p>",
    }
    content = EmailContent.model_validate(table | more)
    at = datetime(2026, 12, 1, tzinfo=UTC)
    rendered = Renderer(content).render({"s": subject, "t": text})
    to = mailbox("ana@example.net", to_name)
    return MessageBuilder(content).build(rendered, to, message_id="<1@example.org>", at=at)


@pytest.mark.parametrize("kind", KEYS)
@settings(max_examples=30, deadline=None)
@given(subject=LINES, text=BODIES, to_name=LINES)
def test_any_message_is_signed_so_that_others_can_verify_it(
    kind: str, subject: str, text: str, to_name: str
) -> None:
    signed = SIGNERS[kind].sign(built(subject, text, to_name, unsubscribe="https://u.example.org/1"), AT)
    assert verified(signed)
    head = signed.partition(b"\r\nFrom:")[0].split(b"\r\n")
    assert max(map(len, head)) <= 78
    assert b"list-unsubscribe-post" in signed


@given(st.lists(st.sampled_from([b"a", b" ", b"\t", b"\r\n", b"\xc3\xa9", b".", b"b c"])).map(b"".join))
def test_the_canonical_body_is_dkimpys(body: bytes) -> None:
    # dkimpy keeps a CRLF of an empty body; RFC 6376 section 3.4.4 has none.
    expected = Relaxed.canonicalize_body(body).removesuffix(b"\r\n").rstrip(b"\r\n")
    assert relaxed_body(body).rstrip(b"\r\n") == expected


def test_an_empty_body_stays_empty() -> None:
    assert relaxed_body(b"\r\n \r\n") == b""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Subject: a", b"Subject: b"),
        (b"\r\nb\r\n", b"\r\nc\r\n"),
        (b"From: News", b"From: Eve <eve@example.com>\r\nFrom: News"),
        (b"Subject: a", b"Subject: b\r\nSubject: a"),
        (b"Subject: a", b"Reply-To: eve@example.com\r\nSubject: a"),
        (b"One-Click", b"One-Clack"),
    ],
)
def test_what_was_changed_or_added_is_found(old: bytes, new: bytes) -> None:
    signed = SIGNERS["rsa"].sign(built(unsubscribe="https://u.example.org/1"), AT)
    assert verified(signed)
    assert old in signed
    assert not verified(signed.replace(old, new, 1))


def test_a_relay_may_fold_lines_and_cut_spaces() -> None:
    signed = SIGNERS["rsa"].sign(built("word " * 30, "a  b \nc"), AT)
    assert verified(signed.replace(b"Subject: ", b"Subject:\r\n  ").replace(b"a  b ", b"a b"))
    assert verified(b"Received: from a by b\r\n" + signed)


async def test_the_key_is_that_of_the_domain_or_the_nearest_above() -> None:
    other = Signer("mail.example.org", "s", EDWARDS)
    signing = Signing({"example.org": SIGNERS["rsa"], "mail.example.org": other}, threads=2)
    try:
        assert signing.signer("example.org") is SIGNERS["rsa"]
        assert signing.signer("News.Example.org") is SIGNERS["rsa"]
        assert signing.signer("a.mail.example.org") is other
        assert (
            signing.signer("example.com") is signing.signer("org") is signing.signer("xexample.org") is None
        )
        many = await asyncio.gather(*(signing.sign(SIGNERS["rsa"], built(str(n))) for n in range(50)))
        assert all(map(verified, many))
        assert len(set(many)) == 50
    finally:
        signing.close()


def pem(key: Any, password: Any = None) -> bytes:
    octets: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, password or NoEncryption())
    return octets


def test_keys_are_read_from_files_beside_their_list(tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_bytes(pem(RSA))
    (tmp_path / "b.pem").write_bytes(pem(EDWARDS))
    file = tmp_path / "dkim.toml"
    file.write_text(
        '["example.org"]\nselector = "rsa"\nkey = "a.pem"\n["Bücher.example"]\nselector = "e"\nkey="b.pem"'
    )
    signers = read_signers(file)
    assert signers.keys() == {"example.org", "xn--bcher-kva.example"}
    assert verified(signers["example.org"].sign(built(), AT))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read: No such file"),
        ("= 1", "is not TOML"),
        ('["a b"]\nselector = "s"\nkey = "a"', "“a b” is not a domain"),
        ('["example.org"]\nselector = "s"', "example.org: give a table with `selector` and `key`"),
        ('"example.org" = 1', "give a table with"),
        ('["example.org"]\nselector = "s;"\nkey = "a"', "not a selector"),
        ('["example.org"]\nselector = "s"\nkey = 1', "name of a file"),
        ('["example.org"]\nselector = "s"\nkey = "none"', "the key none cannot be read: No such file"),
        ('["example.org"]\nselector = "s"\nkey = "dkim.toml"', "holds no private key in PEM"),
        ('["example.org"]\nselector = "s"\nkey = "ec.pem"', "signs with RSA or Ed25519"),
    ],
)
def test_a_list_of_keys_that_cannot_be_used_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    (tmp_path / "ec.pem").write_bytes(pem(generate_ec(SECP256R1())))
    file = tmp_path / "dkim.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingsError, match=r"^SENDOFF_DKIM_FILE: .*dkim\.toml") as refused:
        read_signers(file)
    assert words in str(refused.value)
    assert "PRIVATE KEY" not in str(refused.value)
