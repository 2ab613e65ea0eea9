"""DKIM signatures (RFC 6376, RFC 8463): what is signed, and by which key.

Header and body are canonicalised as `relaxed`, so that a relay may fold lines and cut spaces. OpenSSL signs:
a message takes a tenth of the time that dkimpy needs, which the tests verify every signature with.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from worker.domain.mailbox import MailboxInvalid, mailbox
from worker.settings import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_SHORTEST_RSA: Final = 1024
"""Bits. Receivers do not accept less (RFC 8301 section 3.2)."""
_SIGNED: Final = (
    "from", "to", "reply-to", "subject", "date", "message-id", "mime-version", "content-type",
    "content-transfer-encoding", "in-reply-to", "references", "list-id", "list-help", "list-post",
    "list-owner", "list-archive", "list-subscribe", "list-unsubscribe", "list-unsubscribe-post",
    "feedback-id", "auto-submitted",
)  # fmt: skip
"""The fields that are signed where they are there (RFC 6376 section 5.4.1; RFC 8058 section 3 for the last
of List-)."""
_SEALED: Final = frozenset({"from", "to", "reply-to", "subject", "date", "message-id", "content-type"})
"""Fields that are named once more than they are there: a second one, added on the way, breaks the signature
(section 5.4.2)."""
_SELECTOR: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_SPACES: Final = re.compile(rb"[ \t]+")
_ENDS_IN_SPACE: Final = re.compile(rb"[ \t]+\r\n")
_RUN: Final = re.compile(rb"\t|  ")
_LINE: Final = 72
_WAITING: Final = 4
"""Signatures that may wait for each thread. The rest wait in their tasks, which hold one message each."""


class Signer:
    """One key of a domain."""

    def __init__(self, domain: str, selector: str, key: RSAPrivateKey | Ed25519PrivateKey) -> None:
        """Takes the key, and where its public half is published: `<selector>._domainkey.<domain>`."""
        self._key = key
        algorithm = "rsa-sha256" if isinstance(key, RSAPrivateKey) else "ed25519-sha256"
        self.record = f"{selector}._domainkey.{domain}"
        """Where the public half is published."""
        self._tags = f"v=1; a={algorithm}; c=relaxed/relaxed;\r\n d={domain}; s={selector}"

    @property
    def public_key(self) -> str:
        """The public half, as the record's `p=` holds it (RFC 6376 section 3.6.1; RFC 8463 section 4)."""
        public = self._key.public_key()
        if isinstance(public, RSAPublicKey):
            octets = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        else:
            octets = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
        return base64.b64encode(octets).decode("ascii")

    def sign(self, message: bytes, at: int) -> bytes:
        """Signs a message.

        Args:
            message: The whole message, in lines that end with CRLF. No field is there twice.
            at: The time of the signature, in seconds since 1970.

        Returns:
            The message with the header DKIM-Signature before the others.
        """
        head, _, body = message.partition(b"\r\n\r\n")
        fields = _fields(head)
        hashed = base64.b64encode(hashlib.sha256(relaxed_body(body)).digest()).decode()
        names = [name for name in _SIGNED for there in (name in fields, name in _SEALED) if there]
        tags = f"{self._tags}; t={at};\r\n h={_folded(':'.join(names), ':')};\r\n bh={hashed};\r\n b="
        lines = [fields[name] for name in _SIGNED if name in fields]
        signed = b"\r\n".join([*lines, _relaxed("dkim-signature", tags.encode())])
        signature = base64.b64encode(self._signature(signed)).decode()
        cut = "\r\n ".join(signature[i : i + _LINE] for i in range(0, len(signature), _LINE))
        return f"DKIM-Signature: {tags}{cut}\r\n".encode() + message

    def _signature(self, data: bytes) -> bytes:
        if isinstance(self._key, RSAPrivateKey):
            return self._key.sign(data, PKCS1v15(), SHA256())
        return self._key.sign(hashlib.sha256(data).digest())  # RFC 8463 section 3


def _folded(text: str, at: str) -> str:
    lines = [""]
    for item in text.split(at):
        if len(lines[-1]) + len(item) >= _LINE:
            lines.append("")
        lines[-1] += f"{item}{at}"
    return "\r\n ".join(lines)[: -len(at)]


def _fields(head: bytes) -> dict[str, bytes]:
    """Returns the fields in their canonical form, by name in lower case."""
    fields: dict[str, bytes] = {}
    for field in head.replace(b"\r\n ", b" ").replace(b"\r\n\t", b" ").split(b"\r\n"):
        name, _, value = field.partition(b":")
        lower = name.decode("ascii").lower()
        fields[lower] = _relaxed(lower, value)
    return fields


def _relaxed(name: str, value: bytes) -> bytes:
    """Returns a field in the canonical form of RFC 6376 section 3.4.2, without its line end."""
    return name.encode() + b":" + _SPACES.sub(b" ", value.replace(b"\r\n", b"")).strip(b" ")


def relaxed_body(body: bytes) -> bytes:
    """Returns a body in the canonical form of RFC 6376 section 3.4.4."""
    if _RUN.search(body):
        body = _SPACES.sub(b" ", body)
    if b" \r\n" in body:
        body = _ENDS_IN_SPACE.sub(b"\r\n", body)
    body = body.rstrip(b"\r\n")
    return body + b"\r\n" if body else b""


class Signing:
    """The keys of an installation. It signs in threads, so that nothing else waits."""

    def __init__(self, signers: Mapping[str, Signer], threads: int | None = None) -> None:
        """Takes the keys, by domain in lower case, and how many threads sign."""
        self._signers = dict(signers)
        count = threads or min(4, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="dkim")
        self._room = asyncio.Semaphore(count * _WAITING)

    def signer(self, domain: str) -> Signer | None:
        """Returns the key of a From domain; see `signer_of`."""
        return signer_of(self._signers, domain)

    async def sign(self, signer: Signer, message: bytes) -> bytes:
        """Returns the message with its signature; see `Signer.sign`."""
        loop = asyncio.get_running_loop()
        async with self._room:
            return await loop.run_in_executor(self._threads, signer.sign, message, int(time.time()))

    def close(self) -> None:
        """Ends the threads; signatures that wait are not made."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def signer_of(signers: Mapping[str, Signer], domain: str) -> Signer | None:
    """Returns the key of a From domain, or of the nearest domain above it (RFC 7489 section 3.1.1)."""
    labels = domain.lower().split(".")
    names = [".".join(labels[first:]) for first in range(len(labels))]
    return next((signers[name] for name in names if name in signers), None)


def read_signers(path: Path) -> dict[str, Signer]:
    """Reads the file of keys: a table for each domain, with `selector` and `key`, a file beside this one.

    Raises:
        SettingsError: A file cannot be read, or holds no such thing; the message says which.
    """
    where = f"SENDOFF_DKIM_FILE: {path}"
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{where} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise SettingsError(f"{where} is not TOML: {error}.") from None
    signers = {}
    for written, table in tables.items():
        try:
            domain = mailbox(f"postmaster@{written}").domain.lower()
            signers[domain] = _signer(domain, table, path.parent)
        except MailboxInvalid:
            raise SettingsError(f"{where}: “{written}” is not a domain.") from None
        except ValueError as error:
            raise SettingsError(f"{where}: {written}: {error}.") from None
    return signers


def _signer(domain: str, table: Any, folder: Path) -> Signer:  # noqa: ANN401 - what TOML holds
    """Reads one domain's table; raises ValueError."""
    if not isinstance(table, dict) or set(table) != {"selector", "key"}:
        raise ValueError("give a table with `selector` and `key`, and nothing else")
    selector, name = table["selector"], table["key"]
    if not (isinstance(selector, str) and _SELECTOR.fullmatch(selector)):
        raise ValueError(f"{selector!r} is not a selector: letters, digits, dots and hyphens")
    if not isinstance(name, str):
        raise ValueError("`key` is the name of a file")  # noqa: TRY004 - a fault of the file, not of a type
    try:
        key = load_pem_private_key((folder / name).read_bytes(), password=None)
    except OSError as error:
        raise ValueError(f"the key {name} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError(f"{name} holds no private key in PEM without a password") from None
    if not isinstance(key, RSAPrivateKey | Ed25519PrivateKey):
        raise ValueError(f"{name}: DKIM signs with RSA or Ed25519")  # noqa: TRY004 - the same
    if isinstance(key, RSAPrivateKey) and key.key_size < _SHORTEST_RSA:
        raise ValueError(f"{name} has {key.key_size} bits; DKIM needs {_SHORTEST_RSA}, better 2048")
    return Signer(domain, selector, key)
