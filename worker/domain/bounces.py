"""What an SMTP refusal means: whether it is permanent, why it came, and whose fault it is.

There are three questions with independent answers. Can another attempt help (the first digit of `status`)?
Whose fault is it? Is the address permanently at fault (`hard`)? Only `hard` may stop later messages to an
address. So a refusal is hard only if the reply clearly blames the recipient. A refusal of our own reputation
is never the fault of the recipient's address.

The rules are data. They are applied in this order:

1. words that blame the sender's reputation, authentication or set-up: they win over the code;
2. the enhanced status code (RFC 3463 and the registry of RFC 5248), if it is a specific one;
3. words for the rest, since many servers give vague codes with exact words;
4. the enhanced status code, if it is a vague one, and last the basic code (RFC 5321 section 4.2.3).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from contracts.results import BounceKind, BounceReason, Fault

LONGEST_REPLY: Final = 1000
"""Characters of a reply that are kept. Real replies are far shorter, but a server may send any amount."""


@dataclass(frozen=True, slots=True)
class Classified:
    """The meaning of one refusal."""

    kind: BounceKind
    reason: BounceReason
    status: str
    """The server's enhanced code, with the class of the basic code; `4.0.0` or `5.0.0` if it gave none."""
    fault: Fault


@dataclass(frozen=True, slots=True)
class _Rule:
    reason: BounceReason
    fault: Fault
    hard: bool = False
    """Whether a permanent refusal by this rule means that the address does not work."""
    vague: bool = False
    """Whether the words of the reply say more than the code."""


_R, _F = BounceReason, Fault

_ENHANCED: Final[dict[str, _Rule]] = {
    # X.1: addressing (RFC 3463 section 3.2)
    "1.0": _Rule(_R.REFUSED, _F.RECIPIENT, vague=True),
    "1.1": _Rule(_R.USER_UNKNOWN, _F.RECIPIENT, hard=True),
    "1.2": _Rule(_R.INVALID_DOMAIN, _F.RECIPIENT, hard=True),
    "1.3": _Rule(_R.USER_UNKNOWN, _F.RECIPIENT, hard=True),
    "1.4": _Rule(_R.REFUSED, _F.RECIPIENT),
    "1.6": _Rule(_R.MOVED, _F.RECIPIENT, hard=True),
    "1.7": _Rule(_R.REFUSED, _F.SENDER),
    "1.8": _Rule(_R.REFUSED, _F.SENDER),
    "1.9": _Rule(_R.PROTOCOL, _F.INFRASTRUCTURE),
    "1.10": _Rule(_R.INVALID_DOMAIN, _F.RECIPIENT, hard=True),  # null MX, RFC 7505
    # X.2: the mailbox (3.3)
    "2.0": _Rule(_R.REFUSED, _F.RECIPIENT, vague=True),
    "2.1": _Rule(_R.ACCOUNT_DISABLED, _F.RECIPIENT, hard=True, vague=True),
    "2.2": _Rule(_R.MAILBOX_FULL, _F.RECIPIENT),  # "a persistent transient failure": not permanently
    "2.3": _Rule(_R.TOO_LARGE, _F.CONTENT),
    "2.4": _Rule(_R.REFUSED, _F.RECIPIENT),
    # X.3: the mail system (3.4)
    "3.0": _Rule(_R.SYSTEM, _F.INFRASTRUCTURE, vague=True),
    "3.1": _Rule(_R.SYSTEM, _F.INFRASTRUCTURE),
    "3.2": _Rule(_R.SYSTEM, _F.INFRASTRUCTURE, vague=True),
    "3.3": _Rule(_R.PROTOCOL, _F.INFRASTRUCTURE),
    "3.4": _Rule(_R.TOO_LARGE, _F.CONTENT),
    "3.5": _Rule(_R.SYSTEM, _F.INFRASTRUCTURE),
    # X.4: network and routing (3.5)
    "4.0": _Rule(_R.UNREACHABLE, _F.INFRASTRUCTURE, vague=True),
    "4.1": _Rule(
        _R.UNREACHABLE, _F.INFRASTRUCTURE, vague=True
    ),  # also a directory's answer that nobody is there
    "4.2": _Rule(_R.UNREACHABLE, _F.INFRASTRUCTURE, vague=True),
    "4.3": _Rule(_R.SYSTEM, _F.INFRASTRUCTURE),
    "4.4": _Rule(_R.UNREACHABLE, _F.INFRASTRUCTURE, vague=True),  # also a domain that does not exist
    "4.5": _Rule(_R.RATE_LIMITED, _F.INFRASTRUCTURE),
    "4.6": _Rule(_R.SYSTEM, _F.INFRASTRUCTURE),
    "4.7": _Rule(_R.EXPIRED, _F.INFRASTRUCTURE),
    # X.5: the protocol (3.6)
    "5.0": _Rule(_R.PROTOCOL, _F.INFRASTRUCTURE, vague=True),
    "5.1": _Rule(_R.PROTOCOL, _F.INFRASTRUCTURE, vague=True),
    "5.2": _Rule(_R.PROTOCOL, _F.INFRASTRUCTURE, vague=True),
    "5.3": _Rule(_R.RATE_LIMITED, _F.SENDER),  # too many recipients
    "5.4": _Rule(_R.PROTOCOL, _F.INFRASTRUCTURE, vague=True),
    "5.5": _Rule(_R.PROTOCOL, _F.INFRASTRUCTURE),
    # X.6: content and media (3.7); X.6.7 and on: addresses that are not ASCII (RFC 6531, RFC 6532)
    "6.0": _Rule(_R.CONTENT, _F.CONTENT, vague=True),
    "6.1": _Rule(_R.CONTENT, _F.CONTENT),
    "6.2": _Rule(_R.CONTENT, _F.CONTENT),
    "6.3": _Rule(_R.CONTENT, _F.CONTENT),
    "6.5": _Rule(_R.CONTENT, _F.CONTENT),
    "6.6": _Rule(_R.CONTENT, _F.CONTENT, vague=True),
    "6.7": _Rule(_R.PROTOCOL, _F.INFRASTRUCTURE),
    "6.8": _Rule(_R.PROTOCOL, _F.INFRASTRUCTURE),
    "6.9": _Rule(_R.PROTOCOL, _F.INFRASTRUCTURE),
    "6.10": _Rule(_R.PROTOCOL, _F.INFRASTRUCTURE),
    # X.7: security and policy (3.8); RFC 7293: a changed owner; RFC 7372: authentication
    "7.0": _Rule(_R.POLICY, _F.SENDER, vague=True),
    "7.1": _Rule(_R.POLICY, _F.SENDER, vague=True),
    "7.2": _Rule(_R.POLICY, _F.SENDER),  # not allowed to post to the list
    "7.8": _Rule(_R.AUTHENTICATION, _F.INFRASTRUCTURE),
    "7.9": _Rule(_R.AUTHENTICATION, _F.INFRASTRUCTURE, vague=True),  # also said for plain policy
    "7.13": _Rule(_R.ACCOUNT_DISABLED, _F.RECIPIENT),  # RFC 5248; may be enabled again
    "7.17": _Rule(_R.USER_UNKNOWN, _F.RECIPIENT, hard=True),  # the mailbox has a new owner
    "7.18": _Rule(_R.INVALID_DOMAIN, _F.RECIPIENT, hard=True),  # the domain has a new owner
    "7.20": _Rule(_R.AUTHENTICATION, _F.SENDER),
    "7.21": _Rule(_R.AUTHENTICATION, _F.SENDER),
    "7.22": _Rule(_R.AUTHENTICATION, _F.SENDER),
    "7.23": _Rule(_R.AUTHENTICATION, _F.SENDER),
    "7.24": _Rule(_R.AUTHENTICATION, _F.SENDER),
    "7.25": _Rule(_R.AUTHENTICATION, _F.SENDER),  # reverse DNS
    "7.26": _Rule(_R.AUTHENTICATION, _F.SENDER),
    "7.27": _Rule(_R.REFUSED, _F.SENDER),  # the sender's domain has a null MX
    "7.28": _Rule(_R.RATE_LIMITED, _F.SENDER),  # a flood
}
"""By subject and detail of the enhanced code; a pair that is not here counts as `<subject>.0`."""

_BASIC: Final[dict[int, _Rule]] = {
    421: _Rule(_R.UNREACHABLE, _F.INFRASTRUCTURE),
    450: _Rule(_R.REFUSED, _F.RECIPIENT),
    451: _Rule(_R.SYSTEM, _F.INFRASTRUCTURE),
    452: _Rule(_R.SYSTEM, _F.INFRASTRUCTURE),
    454: _Rule(_R.AUTHENTICATION, _F.INFRASTRUCTURE),
    455: _Rule(_R.PROTOCOL, _F.INFRASTRUCTURE),
    500: _Rule(_R.PROTOCOL, _F.INFRASTRUCTURE),
    501: _Rule(_R.PROTOCOL, _F.INFRASTRUCTURE),
    502: _Rule(_R.PROTOCOL, _F.INFRASTRUCTURE),
    503: _Rule(_R.PROTOCOL, _F.INFRASTRUCTURE),
    504: _Rule(_R.PROTOCOL, _F.INFRASTRUCTURE),
    521: _Rule(_R.INVALID_DOMAIN, _F.RECIPIENT, hard=True),  # the host takes no mail at all, RFC 7504
    530: _Rule(_R.AUTHENTICATION, _F.INFRASTRUCTURE),  # RFC 4954, as the three below
    534: _Rule(_R.AUTHENTICATION, _F.INFRASTRUCTURE),
    535: _Rule(_R.AUTHENTICATION, _F.INFRASTRUCTURE),
    538: _Rule(_R.AUTHENTICATION, _F.INFRASTRUCTURE),
    550: _Rule(
        _R.REFUSED, _F.RECIPIENT
    ),  # "not found, no access, or policy": too wide to condemn the address
    551: _Rule(_R.MOVED, _F.RECIPIENT, hard=True),
    552: _Rule(_R.MAILBOX_FULL, _F.RECIPIENT),
    553: _Rule(_R.REFUSED, _F.RECIPIENT),
    554: _Rule(_R.REFUSED, _F.RECIPIENT),
    555: _Rule(_R.PROTOCOL, _F.INFRASTRUCTURE),
    556: _Rule(_R.INVALID_DOMAIN, _F.RECIPIENT, hard=True),  # RFC 7504
}
_UNKNOWN: Final = _Rule(_R.NOT_DEFINED, _F.INFRASTRUCTURE)

_Words = tuple[re.Pattern[str], _Rule]


def _words(rule: _Rule, *patterns: str) -> _Words:
    return re.compile("|".join(patterns), re.IGNORECASE), rule


_SENDER_WORDS: Final[tuple[_Words, ...]] = (
    _words(
        _Rule(_R.POLICY, _F.INFRASTRUCTURE),
        r"relay(ing)? (access )?(is )?(denied|not permitted|not allowed|prohibited)",
        r"(unable|not allowed|not permitted) to relay|we do not relay|allowed rcpthosts",
        r"(client host|helo command) rejected|cannot find your (reverse )?hostname",
    ),
    _words(
        _Rule(_R.AUTHENTICATION, _F.SENDER),
        r"\b(spf|dkim|dmarc)\b|unauthenticated (e?mail|sender)",
        r"reverse dns|\bptr\b|\brdns\b|reverse hostname",
    ),
    _words(
        _Rule(_R.REFUSED, _F.SENDER),
        r"sender (address |domain )?\W*(rejected|refused|denied|verify failed|blocked)",
        r"sender .{0,40}not exist|(invalid|bad|unknown) sender|sender callout",
    ),
    _words(
        _Rule(_R.SPAM, _F.SENDER),
        r"block[ -]?list|black[ -]?list|deny ?list|\bd?nsbl\b|\brbl\b|(?<!not )\blisted (at|by|in|on)\b",
        r"spamhaus|spamcop|barracuda|sorbs|surbl|\buribl\b|proofpoint|cloudmark|senderscore|reputation",
        r"\bblocked (using|by|due to)\b|\bip\b.{0,40}\b(blocked|banned)\b|\[[\d.]+\].{0,40}\bblocked\b",
        r"banned sending ip|part of their network is on",
    ),
    _words(
        _Rule(_R.RATE_LIMITED, _F.SENDER),
        r"too many (messages|connections|emails|mails|recipients)|rate[ -]?limit|throttl|unusual rate",
        r"receiving (mail|messages) (at a rate|too (quickly|fast))|(sending|message) rate|\[ts(s|0)\d+\]",
    ),
    _words(
        _Rule(_R.SPAM, _F.CONTENT),
        r"\b(spam|unsolicited|junk mail|bulk mail|phish\w*|virus|malware|malicious)\b",
    ),
)
"""The first rules: a reply with these words is never the fault of the recipient's address."""

_OTHER_WORDS: Final[tuple[_Words, ...]] = (
    _words(_Rule(_R.GREYLISTED, _F.INFRASTRUCTURE), r"gr[ea]y[ -]?list"),
    _words(
        _Rule(_R.MAILBOX_FULL, _F.RECIPIENT),
        r"(mailbox|inbox|account|user|storage|disk)\b.{0,30}\b(full|quota|exceeded)",
        r"over ?quota|quota (is )?exceeded|out of storage|insufficient (system )?storage",
    ),
    _words(
        _Rule(_R.TOO_LARGE, _F.CONTENT), r"(message|mail|size).{0,30}(too (big|large)|exceeds)|size limit"
    ),
    _words(
        _Rule(_R.INVALID_DOMAIN, _F.RECIPIENT, hard=True),
        r"(domain|host)( name)?.{0,30}(not found|does ?n[o']t exist|unknown)|no such domain|nxdomain",
    ),
    _words(
        _Rule(_R.ACCOUNT_DISABLED, _F.RECIPIENT, hard=True),
        r"(account|mailbox|user|recipient)\b.{0,40}"
        r"\b(disabled|suspended|(in|de)activ(e|ated)|closed|discontinued)",
        r"(disabled|inactive|deactivated|suspended) (account|mailbox|user|recipient)",
    ),
    _words(
        _Rule(_R.USER_UNKNOWN, _F.RECIPIENT, hard=True),
        r"(user|mailbox|recipient|account|address|alias|addressee)\b.{0,60}"
        r"\b(unknown|not found|no longer|invalid|does ?n[o']t (exist|have)|is ?n[o']t (known|valid|a valid)"
        r"|not (exist|known|listed|valid))",
        r"(unknown|invalid|no such|bad|non-?existent) (local )?"
        r"(user|mailbox|recipient|account|address|person)",
        r"mailbox unavailable|no mailbox|not our customer|undeliverable address",
        # Exchange Online writes this for an unknown recipient. With 5.7.1 it is a policy of Postfix.
        r"\b4\.1 recipient address rejected: access denied",
    ),
    _words(
        _Rule(_R.UNREACHABLE, _F.INFRASTRUCTURE),
        r"tim(ed?|e) ?out|connection (refused|reset|lost)|no route|unreachable|could not connect",
    ),
    _words(
        _Rule(_R.POLICY, _F.SENDER), r"policy|policies|not permitted|not allowed|administrative prohibition"
    ),
)
"""The rules for replies without an enhanced code, or with a vague one."""

_ADDRESS: Final = re.compile(r"\S+@\S+")
"""Removed before the search for words: a mailbox named spam@ says nothing about the refusal."""

_STATUS: Final = re.compile(r"(?:^\s*|#)([245])\.(\d{1,3})\.(\d{1,3})(?![\d.])")
"""At the beginning of the text (RFC 2034 section 4), or as `#5.1.1`, which some servers write at its end."""


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
        text: The words beside it.
        status: The enhanced code; read from the text if not given.
        recipient_named: Whether the server knew the recipient. A refusal of MAIL comes before RCPT, so it
            never blames the recipient.

    Returns:
        The meaning. `hard` comes only with a permanent code and the recipient's fault.
    """
    permanent = code // 100 == 5  # noqa: PLR2004 - 5yz, a permanent negative completion reply
    given = status if status is not None else enhanced_status(text)
    # The class must be that of the basic code (RFC 2034 section 4); if it is not, the basic code is believed.
    detail = given.partition(".")[2] if given else "0.0"
    rule = _rule(code, detail, " ".join(_ADDRESS.sub(" ", text[:LONGEST_REPLY]).split()))
    if not recipient_named and rule.fault is Fault.RECIPIENT:
        rule = _Rule(BounceReason.REFUSED, Fault.SENDER)
    return Classified(
        kind=BounceKind.HARD if permanent and rule.hard else BounceKind.SOFT,
        reason=rule.reason,
        status=f"{5 if permanent else 4}.{detail}",
        fault=rule.fault,
    )


def _rule(code: int, detail: str, words: str) -> _Rule:
    enhanced = _ENHANCED.get(detail)
    if enhanced is None and detail != "0.0":
        enhanced = _ENHANCED.get(f"{detail.partition('.')[0]}.0")
    by_sender = _said(_SENDER_WORDS, words)
    if by_sender is not None:
        return by_sender
    if enhanced is not None and not enhanced.vague:
        return enhanced
    return _said(_OTHER_WORDS, words) or enhanced or _BASIC.get(code, _UNKNOWN)


def _said(table: tuple[_Words, ...], words: str) -> _Rule | None:
    return next((rule for pattern, rule in table if pattern.search(words)), None)
