"""What a mail that came back says: a bounce, a complaint, an automatic answer, or nothing of ours.

Reading is pure: octets in, a reading out. What a refusal means is decided by `worker.domain.bounces`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from email.header import decode_header, make_header
from typing import TYPE_CHECKING, Final

from worker.domain.bounces import Classified, classify, reply_line
from worker.returned import notices
from worker.returned.fields import groups, has_fields
from worker.returned.mime import Opened, field, open_mail
from worker.returned.prose import Told, read_prose, split_returned, told_status
from worker.returned.replies import Reply, read_reply

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from email.message import Message

_MOST_REFERENCES: Final = 20
_MOST_KNOWN: Final = 100
_PERMANENT: Final = 550
_TEMPORARY: Final = 450
_MOST_HOPS: Final = 100
"""Received fields of a mail that is looping (RFC 5321 section 6.3)."""

_DAEMON: Final = re.compile(
    r"(?:mailer-?daemon|po+stmaster|mail-?(?:delivery|system)\b|mdaemon|bounces?\b)", re.IGNORECASE
)
_SUBJECT: Final = re.compile(
    r"undeliver|non remis|returned (?:mail|to sender)|failure notice|not (?:be )?delivered"
    r"|(?:mail|message)\b.{0,20}\b(?:delivery|system).{0,20}(?:fail|error)|mail (?:could not|error|failure)"
    r"|delivery.{0,20}(?:fail|status|error|report|problem|notif|delay|subsystem)|message.{0,40}delayed"
    r"|unzustellbar|nicht zugestellt|non consegna",
    re.IGNORECASE,
)
_DELAYED: Final = re.compile(
    r"(?:has|have) not yet been delivered|has been delayed|will (?:be re|re)tri(?:ed|y)|warning message only"
    r"|delivery attempts will continue|still trying|delivery.{0,20}\bdelayed\b|no action is required",
    re.IGNORECASE,
)
_GIVEN_UP: Final = re.compile(
    r"given up|gave up|permanent(?:ly)? (?:error|fail)|fatal error|failed permanently", re.IGNORECASE
)
_AUTOMATIC: Final = re.compile(
    r"out of (?:the )?office|auto(?:matic|mated)?[- ]?(?:reply|response|antwort)|auto: |away from|vacation"
    r"|on holiday|abwesenheit|absence|r[ée]ponse automatique|respuesta autom|risposta automatica"
    r"|不在|自動(?:返信|応答|回复)|自动回复",
    re.IGNORECASE,
)
_MESSAGE_ID: Final = re.compile(
    r"^(?:x-)?(?:original-|resent-)?message-id:\s{0,20}<([^<>\s@]{1,250}@[^<>\s]{1,250})>",
    re.IGNORECASE | re.MULTILINE,
)
_RETURN_PATH: Final = re.compile(
    r"^(?:return-path|x-envelope-from|original-mail-from|x-postfix-sender):\s{0,20}(?:rfc822;\s{0,5})?<?([^<>\s@]{1,250}@[^<>\s]{1,250})>?",
    re.IGNORECASE | re.MULTILINE,
)
_BRACKETED: Final = re.compile(r"<([^<>]{0,320})>")
_ADDRESS: Final = re.compile(r"[^\s@][^\s]{0,250}@[^\s@]{1,250}")
_NO_COMPLAINT: Final = frozenset({"not-spam", "auth-failure", "dmarc", "virus"})
"""Types of feedback that are no complaint of the recipient (RFC 5965 section 7.3, RFC 6591, RFC 6692)."""


@dataclass(frozen=True, slots=True)
class Returned:
    """What a mail says of one recipient."""

    address: str | None
    """The recipient's address, if it is named."""
    final: bool
    """False if the server goes on trying: then nothing is known yet."""
    verdict: Classified
    """What the refusal means."""
    reply: str
    """The reply or the words, in one line."""


@dataclass(frozen=True, slots=True)
class Bounce:
    """A server returned a message, or warns that it may have to."""

    returned: tuple[Returned, ...]
    """By recipient, in the order of the mail; empty if it can be seen only that something was returned."""
    references: tuple[str, ...]
    """Message-IDs and envelope senders that the mail names as those of the returned message, unchecked."""


@dataclass(frozen=True, slots=True)
class Complaint:
    """A recipient's provider passes on that the recipient took the message for spam (RFC 5965)."""

    feedback_type: str
    """`abuse`, `fraud`, `other` and so on."""
    address: str | None
    """The recipient's address, if it is named; many providers leave it out."""
    references: tuple[str, ...]
    """As in `Bounce`."""


@dataclass(frozen=True, slots=True)
class AutomaticAnswer:
    """An absence note, a receipt or the like (RFC 3834, RFC 8098): it says nothing about the address."""

    references: tuple[str, ...]
    """As in `Bounce`."""


@dataclass(frozen=True, slots=True)
class Loop:
    """A mail that went through too many servers."""


@dataclass(frozen=True, slots=True)
class NoFailure:
    """A report that a message arrived, or feedback that is no complaint."""


@dataclass(frozen=True, slots=True)
class NothingOfOurs:
    """A mail of somebody to somebody, as far as its form tells."""


Reading = Bounce | Complaint | AutomaticAnswer | Loop | NoFailure | NothingOfOurs
"""What a mail says."""


def read_mail(data: bytes) -> Reading:
    """Reads a mail that came to the address for returned mail.

    Args:
        data: The whole mail, of any size; the first quarter of a million octets are read.

    Returns:
        What it says. Nothing is raised for any octets.
    """
    mail = open_mail(data)
    header = mail.header
    if len(header.get_all("Received") or ()) > _MOST_HOPS:
        return Loop()
    reports = dict(mail.reports)
    feedback = reports.get("message/feedback-report")
    if feedback is not None or mail.report_type == "feedback-report":
        return _complaint(mail, feedback or "")
    if mail.report_type == "disposition-notification":
        return AutomaticAnswer(_references(mail, ()))
    notice = _notice(mail)
    if notice is not None:
        return notice
    is_report = mail.report_type == "delivery-status" or bool(mail.reports)
    subject = field(header, "Subject")
    by_daemon = _is_daemon(header)
    likely = (
        is_report
        or by_daemon
        or bool(header.get("X-Failed-Recipients"))
        or bool(_SUBJECT.search(_decoded(subject)))
    )
    automatic = _is_automatic(header, subject)
    if not likely or (automatic and not is_report and not by_daemon):
        return AutomaticAnswer(_references(mail, ())) if automatic else NothingOfOurs()
    return _bounce(mail)


def _notice(mail: Opened) -> Reading | None:
    """Reads a notice in JSON; None if the mail is none."""
    for text in mail.texts:
        complaint, bounces = notices.complained(text), notices.bounced(text)
        if complaint is None and not bounces:
            continue
        sender = notices.source(text)
        references = tuple(
            dict.fromkeys((sender, *_references(mail, ())) if sender else _references(mail, ()))
        )
        if complaint is not None:
            return Complaint(complaint[0][:40].lower(), _address(complaint[1]), references)
        found, _ = _from_groups(bounces, ())
        return Bounce(tuple(found), references)
    return None


def _bounce(mail: Opened) -> Reading:
    texts, rests = [], []
    for text in mail.texts:
        before, rest = split_returned(text)
        texts.append(before)
        rests.append(rest)
    prose = "\n\n".join(texts)
    failed = field(mail.header, "X-Failed-Recipients").replace(",", " ").split()
    known = [address for address in failed[:_MOST_KNOWN] if _ADDRESS.fullmatch(address)]
    told = read_prose(prose)
    delayed = bool(_DELAYED.search(prose)) and not _GIVEN_UP.search(prose)
    fields = [text for _, text in mail.reports] or [text for text in texts if has_fields(text)]
    if not fields and not told:  # a report that some gateway turned into text
        fields = [text for text in rests if has_fields(text)]
    found, successes = _from_fields(fields, told)
    if not found and not successes:
        found = [_from_words(one, final=not delayed) for one in told]
        if len(found) == 1 == len(known) and found[0].address is None:
            found = [replace(found[0], address=known[0])]
        if not found:
            found = [_from_words(Told(address, None, prose), final=not delayed) for address in known]
    references = _references(mail, rests)
    if successes and not found:
        return NoFailure()
    return Bounce(tuple(found), references)


def _from_fields(texts: Iterable[str], told: Sequence[Told]) -> tuple[list[Returned], int]:
    """Reads the fields of reports, and completes them by what the words for people say.

    Returns:
        Who was refused, and of how many recipients the report says something else.
    """
    return _from_groups((group for text in texts for group in groups(text)), told)


def _from_groups(fields: Iterable[dict[str, str]], told: Sequence[Told]) -> tuple[list[Returned], int]:
    found: list[Returned] = []
    successes = 0
    by_address = {one.address.lower(): one for one in told if one.address}
    for group in fields:
        address = _address(group.get("final-recipient")) or _address(group.get("original-recipient"))
        action = group.get("action", "").strip().lower()
        status = (group.get("status", "").split() or [""])[0]
        diagnosis = group.get("diagnostic-code", "")
        if not (address or diagnosis):
            continue
        if action.startswith(("delivered", "relayed", "expanded")) or (not action and status.startswith("2")):
            successes += 1
            continue
        original = _address(group.get("original-recipient"))
        words = by_address.get((address or "").lower()) or by_address.get((original or "").lower())
        if words is None and len(told) == 1 and not any(one.address for one in found):
            words = told[0]
        found.append(
            _judged(
                address or original or (words.address if words else None),
                read_reply(diagnosis),
                words,
                status=status if _is_failure(status) else None,
                diagnosis=diagnosis,
                final=not action.startswith("delayed"),
            )
        )
    return found, successes


def _judged(
    address: str | None,
    reply: Reply | None,
    words: Told | None,
    *,
    status: str | None,
    diagnosis: str,
    final: bool,
) -> Returned:
    sender_refused = words is not None and words.sender_refused
    if words is not None and words.reply is not None and (reply is None or _says_more(words.reply, reply)):
        reply = words.reply
    if reply is None:
        said = diagnosis.partition(";")[2].strip() or (words.words if words else "")
        reply = Reply(_code(status, final=final), said)
    verdict = _classified(reply, status, recipient_named=not sender_refused)
    return Returned(address, final, verdict, reply_line(reply.code, reply.text))


def _from_words(told: Told, *, final: bool) -> Returned:
    reply, status = told.reply, None
    if reply is None:
        status = told_status(told)
        reply = Reply(_code(status, final=final), told.words)
    verdict = _classified(reply, status, recipient_named=not told.sender_refused)
    return Returned(told.address, final, verdict, reply_line(reply.code, reply.text))


def _classified(reply: Reply, status: str | None, *, recipient_named: bool) -> Classified:
    """Classifies by the reply's own enhanced code; the report's status counts if the reply has none."""
    own = classify(reply.code, reply.text, recipient_named=recipient_named)
    if status is None or not own.status.endswith(".0.0") or status.endswith(".0.0"):
        return own
    return classify(reply.code, reply.text, status=status, recipient_named=recipient_named)


def _says_more(words: Reply, diagnosis: Reply) -> bool:
    """Returns whether the text for people quotes the same reply at greater length: reports cut long ones."""
    more, less = " ".join(words.text.split()), " ".join(diagnosis.text.split())
    return words.code == diagnosis.code and len(more) > len(less) and more.startswith(less)


def _code(status: str | None, *, final: bool) -> int:
    if status is not None:
        return _PERMANENT if status.startswith("5") else _TEMPORARY
    return _PERMANENT if final else _TEMPORARY


def _is_failure(status: str) -> bool:
    return bool(re.fullmatch(r"[45]\.\d{1,3}\.\d{1,3}", status))


def _address(value: str | None) -> str | None:
    """The address of a recipient field, with or without its type: `rfc822; <user@example.org>`."""
    if not value:
        return None
    text = value.rpartition(";")[2].split("\n")[0].strip().strip("<>").strip()
    return text if _ADDRESS.fullmatch(text) else None


def _complaint(mail: Opened, report: str) -> Reading:
    fields = {}
    for line in report.splitlines()[:200]:
        name, colon, value = line.partition(":")
        if colon and name.strip().lower() not in fields:
            fields[name.strip().lower()] = value.strip()[:1_000]
    feedback_type = fields.get("feedback-type", "abuse").lower()
    if feedback_type in _NO_COMPLAINT:
        return NoFailure()
    address = _address(fields.get("original-rcpt-to")) or _address(fields.get("removal-recipient"))
    return Complaint(feedback_type[:40], address, _references(mail, [report]))


def _references(mail: Opened, rests: Iterable[str]) -> tuple[str, ...]:
    """The names of the returned message, each once, in the order in which they are found."""
    found: dict[str, None] = {}
    for text in (*mail.returned, *(text for _, text in mail.reports), *rests, *mail.texts):
        for pattern in (_MESSAGE_ID, _RETURN_PATH):
            found.update((name, None) for name in pattern.findall(text))
        if len(found) >= _MOST_REFERENCES:
            break
    for name in ("In-Reply-To", "References", "X-Original-Message-ID"):
        found.update(
            (one, None) for one in re.findall(r"<([^<>\s@]{1,250}@[^<>\s]{1,250})>", field(mail.header, name))
        )
    return tuple(found)[:_MOST_REFERENCES]


def _is_daemon(header: Message) -> bool:
    """Returns whether a mail server wrote the mail: it says so, or the mail has no author."""
    author = field(header, "From")
    bracketed = _BRACKETED.search(author)
    local = (bracketed[1] if bracketed else author).partition("@")[0].strip(' "')
    return not local or bool(_DAEMON.match(local))


def _is_automatic(header: Message, subject: str) -> bool:
    """Returns whether a program answered for a person (RFC 3834 section 5, and what came before it)."""
    submitted = field(header, "Auto-Submitted").lower()
    if submitted and not submitted.startswith("no"):
        return True
    precedence = field(header, "Precedence").lower()
    if precedence in ("auto_reply", "auto-reply") or any(
        header.get(name) is not None for name in ("X-Autoreply", "X-Autorespond", "X-Auto-Response-Suppress")
    ):
        return True
    return bool(_AUTOMATIC.search(_decoded(subject)))


def _decoded(subject: str) -> str:
    try:
        return str(make_header(decode_header(subject)))
    except (ValueError, LookupError, UnicodeError):
        return subject
