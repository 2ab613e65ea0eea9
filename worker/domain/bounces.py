"""What an SMTP refusal means: why it came, whose fault it is, and what follows from it.

There are four questions with independent answers. Why did it come? Whose fault is it? Is the address
permanently at fault (`hard`)? May the same message be tried again? Only `hard` stops later messages to an
address, so a refusal is hard only if the reply clearly blames the recipient. Whether to try again follows
from the class of the reply (RFC 5321 section 4.2.1) and from the reason, not from hard or soft.

The rules are data: `reply_rules.toml`, by `worker.domain.reply_rules`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from contracts.results import BounceKind, BounceReason, Fault
from worker.domain.reply_rules import Reply, own_rules

LONGEST_REPLY: Final = 1000
"""Characters of a reply that are kept. Real replies are far shorter, but a server may send any amount."""

_STATUS: Final = re.compile(r"(?:^\s*|#)([245])\.(\d{1,3})\.(\d{1,3})(?![\d.])")
"""At the beginning of the text (RFC 2034 section 4), or as `#5.1.1`, which some servers write at its end."""

_rules = lru_cache(maxsize=1)(own_rules)


@dataclass(frozen=True, slots=True)
class Classified:
    """The meaning of one refusal."""

    kind: BounceKind
    """How it weighs on the address. `hard` comes only with a 5yz code and the recipient's fault."""
    reason: BounceReason
    status: str
    """The server's enhanced code, with the class of the basic code; `4.0.0` or `5.0.0` if it gave none."""
    fault: Fault | None
    """Whose fault it is; None if the reply does not say."""
    again: bool
    """Whether the same message may be tried again."""
    rule: str
    """The name of the rule that gave the reading."""


def enhanced_status(text: str) -> str | None:
    """Finds the enhanced status code in a reply's text. An IP address is not one."""
    found = _STATUS.search(text)
    return f"{found[1]}.{int(found[2])}.{int(found[3])}" if found else None


def reply_line(code: int, text: str) -> str:
    """Puts a reply into one printable line of at most `LONGEST_REPLY` characters.

    Args:
        code: The basic code.
        text: The text, of several lines perhaps; bytes that are not UTF-8 as surrogates.
    """
    sound = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if not sound.isprintable():
        sound = "".join(character if character.isprintable() else " " for character in sound)
    words = sound.split()
    return f"{code} {' '.join(words)}".strip()[:LONGEST_REPLY]


def classify(code: int, text: str, *, status: str | None = None, recipient_named: bool = True) -> Classified:
    """Returns what a refusal means.

    Args:
        code: The basic code, 400 to 599; its first digit alone says whether it is permanent (RFC 5321 section
            4.2.1).
        text: The words beside it, of several lines perhaps; bytes that are not UTF-8 as surrogates.
        status: The enhanced code; read from the text if not given.
        recipient_named: Whether the server knew the recipient. A refusal of MAIL comes before RCPT, so it
            never blames the recipient.

    Returns:
        The meaning.
    """
    permanent = code // 100 == 5  # noqa: PLR2004 - 5yz, a permanent negative completion reply
    given = status if status is not None else enhanced_status(text)
    # The class must be that of the basic code (RFC 2034 section 4); if it is not, the basic code is believed.
    detail = given.partition(".")[2] if given else "0.0"
    rule = _rules().judge(Reply.read(code, detail, text[:LONGEST_REPLY]))
    reason, fault = rule.reason, rule.fault
    if not recipient_named:
        if fault is Fault.RECIPIENT:
            reason = BounceReason.REFUSED
        if fault in (Fault.RECIPIENT, None):
            fault = Fault.SENDER
    kind = BounceKind.HARD if permanent and rule.hard and fault is Fault.RECIPIENT else BounceKind.SOFT
    shown = f"{5 if permanent else 4}.{detail}"
    return Classified(kind, reason, shown, fault, may_be_repeated(kind, reason, shown), rule.name)


def may_be_repeated(kind: BounceKind, reason: BounceReason, status: str | None) -> bool:
    """Returns whether a message that was refused may be tried again.

    A 4yz reply says "try later", a 5yz reply says "do not" (RFC 5321 section 4.2.1). The rules name the
    reasons for which a 5yz reply is repeated too.

    Args:
        kind: How it weighs on the address. After a hard one nothing is repeated, and an ignored one is no
            refusal.
        reason: Why it came.
        status: The enhanced code, of which the class counts; None if it is not known. Then it may be.
    """
    if kind is not BounceKind.SOFT:
        return False
    return status is None or not status.startswith("5") or reason in _rules().again
