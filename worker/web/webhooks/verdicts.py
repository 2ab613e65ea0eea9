"""What a provider's words about a bounce mean: the server's reply first, the provider's own class else."""

from __future__ import annotations

import re
from typing import Final

from contracts.results import BounceKind, BounceReason, Fault
from worker.domain.bounces import Classified, classify, reply_line
from worker.returned.replies import read_reply

_STATUS: Final = re.compile(r"[45]\.\d{1,3}\.\d{1,3}")
_PERMANENT: Final = 550
_TEMPORARY: Final = 450


def own_verdict(kind: BounceKind, reason: BounceReason, fault: Fault | None) -> Classified:
    """Returns what a provider's class of bounces means."""
    status = "5.0.0" if kind is BounceKind.HARD else "4.0.0"
    return Classified(kind, reason, status, fault, again=False, rule="provider")


HARD: Final = own_verdict(BounceKind.HARD, BounceReason.REFUSED, Fault.RECIPIENT)
"""The provider gives the address up, and does not say why."""
SOFT: Final = own_verdict(BounceKind.SOFT, BounceReason.NOT_DEFINED, None)
"""The provider gave up, and says nothing of the address."""
SUPPRESSED: Final = HARD
"""The provider did not send: the address had bounced before."""
UNWANTED: Final = own_verdict(BounceKind.SOFT, BounceReason.POLICY, Fault.RECIPIENT)
"""The provider did not send: the recipient had complained or opted out there."""
FULL: Final = own_verdict(BounceKind.SOFT, BounceReason.MAILBOX_FULL, Fault.RECIPIENT)
"""The mailbox is full."""
TOO_LARGE: Final = own_verdict(BounceKind.SOFT, BounceReason.TOO_LARGE, Fault.CONTENT)
"""The message is too large."""
CONTENT: Final = own_verdict(BounceKind.SOFT, BounceReason.CONTENT, Fault.CONTENT)
"""The content was refused."""
SPAM: Final = own_verdict(BounceKind.SOFT, BounceReason.SPAM, Fault.SENDER)
"""Taken for spam by a server."""
UNREACHABLE: Final = own_verdict(BounceKind.SOFT, BounceReason.UNREACHABLE, Fault.INFRASTRUCTURE)
"""The recipient's server could not be found or reached."""
EXPIRED: Final = own_verdict(BounceKind.SOFT, BounceReason.EXPIRED, Fault.INFRASTRUCTURE)
"""The provider tried for its whole time."""
AUTHENTICATION: Final = own_verdict(BounceKind.SOFT, BounceReason.AUTHENTICATION, Fault.SENDER)
"""DMARC and the like."""


def judge(words: str, status: str | None, otherwise: Classified, code: int | None = None) -> Classified:
    """Returns what a bounce means.

    The server's own words decide. The provider's class counts only where the words say nothing: it calls
    hard what a server refused for the sender's fault too.

    Args:
        words: The server's reply as the provider quotes it, or nothing.
        status: The enhanced code, if the provider names one.
        otherwise: What the provider's class means.
        code: The basic code, if the provider names it apart.
    """
    status = status if status and _STATUS.fullmatch(status) else None
    reply = read_reply(words)
    if reply is None and not words and (status is None or status.endswith(".0.0")):
        return otherwise
    if code is None or not 400 <= code < 600:  # noqa: PLR2004 - the codes of refusals (RFC 5321 section 4.2.1)
        permanent = (status or otherwise.status).startswith("5")
        code = reply.code if reply else _PERMANENT if permanent else _TEMPORARY
    text = reply.text if reply else words
    verdict = classify(code, text)
    if verdict.status.endswith(".0.0") and status is not None and not status.endswith(".0.0"):
        verdict = classify(code, text, status=status)
    return otherwise if verdict.reason is BounceReason.NOT_DEFINED else verdict


def quoted(words: str) -> str:
    """Puts the words of a provider into one line."""
    reply = read_reply(words)
    if reply is not None:
        return reply_line(reply.code, reply.text)
    return reply_line(0, words).removeprefix("0").strip()
