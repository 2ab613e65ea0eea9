"""Amazon SNS: the signed envelope in which SES reports, and the confirmation of a subscription.

Anybody with an account at AWS can have SNS sign a message for any address. So a message counts only if its
topic is one of the settings', and the certificate is fetched only from SNS itself.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

import structlog
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.x509 import load_pem_x509_certificate
from pydantic import Field

from worker.web.webhooks.fetching import NotFetched
from worker.web.webhooks.notices import (
    Lenient,
    Moment,
    NotNow,
    NotSigned,
    check_age,
    read_json,
    read_model,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from worker.web.webhooks.fetching import Fetch
    from worker.web.webhooks.notices import Call

log = structlog.get_logger(__name__)

_CERTIFICATE: Final = re.compile(r"/[A-Za-z0-9-]{1,100}\.pem")
"""The path of a certificate, such as `/SimpleNotificationService-0123.pem`."""
_TOPIC: Final = re.compile(r"arn:(aws[a-z-]{0,20}):sns:([a-z0-9-]{1,30}):\d{12}:[A-Za-z0-9_.-]{1,256}")
_FETCHES_AT_ONCE: Final = 4
"""Who knows a topic can have us fetch from SNS, so it must not take all that the process has."""
_CERTIFICATES_KEPT: Final = 20
_HASHES: Final = {"1": SHA1, "2": SHA256}
"""By `SignatureVersion`."""


class Envelope(Lenient):
    """A message of SNS."""

    type: Literal["Notification", "SubscriptionConfirmation", "UnsubscribeConfirmation"] = Field(alias="Type")
    message_id: str = Field(min_length=1, alias="MessageId")
    topic: str = Field(alias="TopicArn")
    subject: str | None = Field(None, alias="Subject")
    message: str = Field(alias="Message")
    timestamp: str = Field(alias="Timestamp")
    version: str = Field(alias="SignatureVersion")
    signature: str = Field(alias="Signature")
    certificate_url: str = Field(alias="SigningCertURL")
    subscribe_url: str | None = Field(None, alias="SubscribeURL")
    token: str | None = Field(None, alias="Token")

    def signed(self) -> bytes:
        """Returns what the signature is over: names and values, a line each."""
        if self.type == "Notification":
            subject = [("Subject", self.subject)] if self.subject is not None else []
            lines: list[tuple[str, str | None]] = [
                ("Message", self.message),
                ("MessageId", self.message_id),
                *subject,
            ]
        else:
            lines = [
                ("Message", self.message),
                ("MessageId", self.message_id),
                ("SubscribeURL", self.subscribe_url),
            ]
        lines.append(("Timestamp", self.timestamp))
        if self.type != "Notification":
            lines.append(("Token", self.token))
        lines += [("TopicArn", self.topic), ("Type", self.type)]
        return "".join(f"{name}\n{value}\n" for name, value in lines).encode("utf-8", "surrogatepass")


class _Signed(Lenient):
    at: Moment


class Sns:
    """Verifies envelopes, and confirms subscriptions."""

    def __init__(self, topics: Sequence[str], most_age: timedelta, fetch: Fetch) -> None:
        """Takes what counts.

        Args:
            topics: The ARNs of the topics.
            most_age: How long ago a message may have been published.
            fetch: Fetches the certificates, and the addresses that confirm a subscription.
        """
        self._hosts = {topic: _host(topic) for topic in topics}
        self._most_age = most_age
        self._fetch_unbounded = fetch
        self._fetches = asyncio.Semaphore(_FETCHES_AT_ONCE)
        self._keys: OrderedDict[str, tuple[RSAPublicKey, datetime]] = OrderedDict()

    async def verify(self, call: Call) -> None:
        """Returns if the message is of one of our topics; confirms a subscription to one.

        Raises:
            NotSigned, TooOld, Unreadable, NotNow: as `Provider.verify`.
        """
        envelope = read_envelope(call)
        host = self._hosts.get(envelope.topic)
        if host is None:
            raise NotSigned("The topic is none of those in the settings.")
        path = _path_at(host, envelope.certificate_url)
        if path is None or not _CERTIFICATE.fullmatch(path):
            raise NotSigned("The certificate is not at the address of SNS in the region of the topic.")
        if envelope.version not in _HASHES:
            raise NotSigned("The version of the signature is not known.")
        key = await self._key(envelope.certificate_url, call.now)
        try:
            signature = base64.b64decode(envelope.signature, validate=True)
            key.verify(signature, envelope.signed(), PKCS1v15(), _HASHES[envelope.version]())
        except (binascii.Error, ValueError, InvalidSignature):
            raise NotSigned("SNS did not sign the message.") from None
        check_age(read_model(_Signed, {"at": envelope.timestamp}, "Timestamp: ").at, call.now, self._most_age)
        if envelope.type == "SubscriptionConfirmation":
            await self._confirm(envelope, host)

    async def _fetch(self, url: str) -> bytes:
        async with self._fetches:
            return await self._fetch_unbounded(url)

    async def _key(self, url: str, now: datetime) -> RSAPublicKey:
        known = self._keys.get(url)
        if known is None:
            try:
                certificate = load_pem_x509_certificate(await self._fetch(url))
            except NotFetched as error:
                raise NotNow(f"The certificate of SNS cannot be fetched: {error}") from error
            except ValueError:
                raise NotSigned("There is no certificate at the address.") from None
            key = certificate.public_key()
            if not isinstance(key, RSAPublicKey):
                raise NotSigned("The certificate is not for RSA.")
            known = self._keys[url] = (key, certificate.not_valid_after_utc)
            if len(self._keys) > _CERTIFICATES_KEPT:
                self._keys.popitem(last=False)
        if known[1] < now:
            raise NotSigned("The certificate has expired.")
        return known[0]

    async def _confirm(self, envelope: Envelope, host: str) -> None:
        url = envelope.subscribe_url or ""
        if _path_at(host, url) is None:
            raise NotSigned("The address that confirms the subscription is not of SNS.")
        try:
            await self._fetch(url)
        except NotFetched as error:
            raise NotNow(f"The subscription cannot be confirmed: {error}") from error
        log.info("a subscription was confirmed", topic=envelope.topic)


def read_envelope(call: Call) -> Envelope:
    """Reads the envelope of a call.

    Raises:
        Unreadable: It is none.
    """
    return read_model(Envelope, read_json(call.body))


def _host(topic: str) -> str:
    """Returns the host of SNS for a topic, `arn:<partition>:sns:<region>:<account>:<name>`.

    Raises:
        ValueError: It is no topic of SNS.
    """
    found = _TOPIC.fullmatch(topic)
    if found is None:
        raise ValueError("a topic is written as its ARN, `arn:aws:sns:<region>:<account>:<name>`")
    return f"sns.{found[2]}.amazonaws.com{'.cn' if found[1] == 'aws-cn' else ''}"


def _path_at(host: str, url: str) -> str | None:
    """Returns the path of an address; None if it is not of the host, over https, at the usual port."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return parts.path if (parts.scheme, parts.netloc) == ("https", host) else None
