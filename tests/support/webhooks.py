"""Calls of mail providers: their documented forms with values of our own, signed as each signs."""

from __future__ import annotations

import base64
import hmac
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from worker.domain.keys import Key
from worker.domain.return_path import Reference, ReturnPath
from worker.web.webhooks.sns import Envelope

DATA = Path(__file__).parents[1] / "data" / "webhooks"
NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
DAY = timedelta(days=1)
RETURNS = ReturnPath([Key(1, b"k" * 32)])
OURS = Reference(42, 17, 2)
SECRET = "a secret of 32 characters, or so"  # noqa: S105 - made up
TOPIC = "arn:aws:sns:eu-west-1:000000000000:news"
CERTIFICATE_URL = "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-0123.pem"
SUBSCRIBE_URL = "https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&Token=t"
SENDGRID_KEY = generate_private_key(SECP256R1())
SENDGRID_PUBLIC = base64.b64encode(
    SENDGRID_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
).decode()


@dataclass
class Request:
    """What a provider sends."""

    body: bytes
    headers: dict[str, str]


def recorded(name: str, reference: Reference = OURS, returns: ReturnPath = RETURNS) -> str:
    """A documented body, about a message of ours."""
    attempt = "-".join(map(str, reference))
    message_id = f"{attempt}.0123456789ab.{returns.tag(reference)}@example.org"
    text = (DATA / f"{name}.json").read_text("utf-8")
    return text.replace("REFERENCE", returns.token(reference)).replace("MESSAGE_ID", message_id)


def seconds(at: datetime) -> str:
    return str(int(at.timestamp()))


def sendgrid(body: str | bytes, at: datetime = NOW) -> Request:
    body = body.encode() if isinstance(body, str) else body
    signature = SENDGRID_KEY.sign(seconds(at).encode() + body, ECDSA(SHA256()))
    headers = {
        "x-twilio-email-event-webhook-signature": base64.b64encode(signature).decode(),
        "x-twilio-email-event-webhook-timestamp": seconds(at),
    }
    return Request(body, headers)


def mailgun(body: str, at: datetime = NOW, key: str = SECRET) -> Request:
    filled: Any = json.loads(body)
    signed = filled["signature"]
    signed["timestamp"] = seconds(at)
    digest = hmac.digest(key.encode(), (signed["timestamp"] + signed["token"]).encode(), "sha256")
    signed["signature"] = digest.hex()
    return Request(json.dumps(filled).encode(), {})


def postmark(body: str, at: datetime = NOW, secret: str = SECRET) -> Request:  # noqa: ARG001 - it signs no time
    password = base64.b64encode(f"sendoff:{secret}".encode()).decode()
    return Request(body.encode(), {"authorization": f"Basic {password}"})


def generic(body: str | bytes, at: datetime = NOW, secret: str = SECRET) -> Request:
    body = body.encode() if isinstance(body, str) else body
    signed = b"msg-1." + seconds(at).encode() + b"." + body
    signature = base64.b64encode(hmac.digest(secret.encode(), signed, "sha256")).decode()
    headers = {
        "webhook-id": "msg-1",
        "webhook-timestamp": seconds(at),
        "webhook-signature": f"v1,{signature}",
    }
    return Request(body, headers)


@cache
def sns_key() -> RSAPrivateKey:
    return generate_rsa(65537, 2048)


@cache
def certificate(until: datetime = NOW + 1_000 * DAY) -> bytes:
    """A certificate as SNS would have it."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sns.amazonaws.com")])
    builder = x509.CertificateBuilder(name, name, sns_key().public_key(), x509.random_serial_number())
    dated = builder.not_valid_before(NOW - 1_000 * DAY).not_valid_after(until)
    return dated.sign(sns_key(), SHA256()).public_bytes(Encoding.PEM)


def sns(message: str, at: datetime = NOW, **changes: Any) -> Request:
    """A message of SNS, signed after the changes; `Signature` among them replaces the right one."""
    fields: dict[str, Any] = {
        "Type": "Notification",
        "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": TOPIC,
        "Subject": "Amazon SES Email Event Notification",
        "Message": message,
        "Timestamp": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "SignatureVersion": "2",
        "Signature": "",
        "SigningCertURL": CERTIFICATE_URL,
        "UnsubscribeURL": "https://sns.eu-west-1.amazonaws.com/?Action=Unsubscribe",
        **changes,
    }
    signed = Envelope.model_validate(fields).signed()
    algorithm = SHA1() if fields["SignatureVersion"] == "1" else SHA256()  # noqa: S303 - SNS has it
    signature = base64.b64encode(sns_key().sign(signed, PKCS1v15(), algorithm)).decode()
    fields["Signature"] = changes.get("Signature", signature)
    headers = {"content-type": "text/plain; charset=UTF-8", "x-amz-sns-message-type": fields["Type"]}
    return Request(json.dumps(fields).encode(), headers)


def subscription(**changes: Any) -> Request:
    """The message that asks us to confirm a subscription."""
    asked = {"Type": "SubscriptionConfirmation", "Token": "t", "SubscribeURL": SUBSCRIBE_URL, "Subject": None}
    return sns("You have chosen to subscribe to the topic.", **(asked | changes))


SIGN = {"sendgrid": sendgrid, "mailgun": mailgun, "postmark": postmark, "generic": generic, "ses": sns}


def call_of(name: str, at: datetime = NOW) -> Request:
    """A documented call of the provider that the name begins with."""
    return SIGN[name.partition("-")[0]](recorded(name), at)
