"""Reads a corpus of replies with the rules, and prints how far the readings are those that were expected.

`python dev/corpus.py DIR`, where DIR holds an `expected.csv`: a row per reply with its `code`, its text
(`reply`), and what Sisimai reads in it (`reason`, `hard`; https://libsisimai.org/en/reason/). If DIR holds
the returned mails too (`file`), they are read as well: is it a bounce, and is what it says of the `recipient`
as expected? The corpus is not part of this project.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

from contracts.results import BounceKind, BounceReason, Fault
from worker.domain.bounces import Classified, classify
from worker.returned.reading import Bounce, Returned, read_mail

_R = BounceReason

SAME: Final[dict[str, set[BounceReason]]] = {
    "userunknown": {_R.USER_UNKNOWN},
    "hostunknown": {_R.INVALID_DOMAIN},
    "notaccept": {_R.INVALID_DOMAIN},
    "hasmoved": {_R.MOVED},
    "suspend": {_R.ACCOUNT_DISABLED},
    "mailboxfull": {_R.MAILBOX_FULL},
    "filtered": {_R.USER_UNKNOWN, _R.POLICY, _R.REFUSED},
    "exceedlimit": {_R.TOO_LARGE},
    "mesgtoobig": {_R.TOO_LARGE},
    "emailtoolarge": {_R.TOO_LARGE},
    "blocked": {_R.SPAM, _R.POLICY, _R.REFUSED},
    "badreputation": {_R.SPAM, _R.RATE_LIMITED},
    "rejected": {_R.REFUSED, _R.POLICY},
    "requireptr": {_R.AUTHENTICATION},
    "authfailure": {_R.AUTHENTICATION},
    "securityerror": {_R.POLICY, _R.AUTHENTICATION},
    "policyviolation": {_R.POLICY, _R.CONTENT},
    "norelaying": {_R.POLICY},
    "failedstarttls": {_R.POLICY},
    "spamdetected": {_R.SPAM},
    "virusdetected": {_R.SPAM},
    "toomanyconn": {_R.RATE_LIMITED},
    "ratelimited": {_R.RATE_LIMITED},
    "speeding": {_R.RATE_LIMITED},
    "contenterror": {_R.CONTENT},
    "notcompliantrfc": {_R.CONTENT},
    "syntaxerror": {_R.PROTOCOL},
    "systemerror": {_R.SYSTEM},
    "systemfull": {_R.SYSTEM},
    "mailererror": {_R.SYSTEM},
    "expired": {_R.EXPIRED},
    "networkerror": {_R.UNREACHABLE, _R.EXPIRED, _R.SYSTEM},
}
"""What each of Sisimai's reasons is called here. A reason that is not listed is not compared."""
ABOUT_THE_RECIPIENT: Final = {
    *("userunknown", "hostunknown", "notaccept", "hasmoved", "suspend", "mailboxfull", "filtered"),
}
NOT_SAID: Final = {"undefined", "onhold"}
DISPUTED: Final = {"filtered", "suspend"}
"""Sisimai says “not hard” of these by other measures than ours."""


class Read(NamedTuple):
    """A reply with what was expected of it, and what the rules read."""

    row: dict[str, str]
    ours: Classified

    @property
    def reason(self) -> str:
        """What was expected, in Sisimai's word."""
        return self.row["reason"]

    @property
    def disputed(self) -> bool:
        """Whether hard or soft is measured otherwise there: by other words, or for now (4yz) and yet hard."""
        return self.reason in DISPUTED or (self.row["hard"] == "true" and self.row["code"].startswith("4"))

    @property
    def weighs_alike(self) -> bool:
        """Whether hard or soft is as expected."""
        return (self.ours.kind is BounceKind.HARD) == (self.row["hard"] == "true")

    @property
    def blames_wrongly(self) -> bool:
        """Whether the recipient is blamed for something else."""
        known = self.reason not in ABOUT_THE_RECIPIENT | NOT_SAID
        return known and self.ours.fault is Fault.RECIPIENT

    def line(self) -> str:
        """Returns the reply with both readings."""
        ours = self.ours
        mark = f"{self.row['file']}: {self.reason}{', hard' * (self.row['hard'] == 'true')}"
        return (
            f"  {mark} | {ours.kind} {ours.reason} {ours.fault or 'nobody'} by {ours.rule} |"
            f" {self.row['code']} {' '.join(self.row['reply'].split())[:150]}"
        )


class Mailed(NamedTuple):
    """A row of the corpus, and what the reader of mails says of its recipient."""

    row: dict[str, str]
    returned: Returned | None
    """None if the mail is not read as a bounce of this recipient."""
    instead: str
    """What it is read as then."""

    @property
    def wrong(self) -> str:
        """What is not as expected; empty for nothing."""
        if self.returned is None:
            return self.instead
        one = Read(self.row, self.returned.verdict)
        if not (one.disputed or one.weighs_alike):
            return "hard or soft"
        return "reason" if one.reason in SAME and one.ours.reason not in SAME[one.reason] else ""

    def line(self) -> str:
        """Returns what is wrong, and the reply that was found."""
        found = self.returned.reply[:150] if self.returned else "nothing"
        return f"  {self.row['file']}: {self.wrong} | {found}"


def read_mails(folder: Path) -> list[Mailed]:
    """Reads the mails of a folder, as far as they are there."""
    with (folder / "expected.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (folder / row["file"]).is_file()]
    return [_mailed(row, (folder / row["file"]).read_bytes()) for row in rows]


def _mailed(row: dict[str, str], data: bytes) -> Mailed:
    reading = read_mail(data)
    if not isinstance(reading, Bounce) or not reading.returned:
        return Mailed(row, None, "not read as a bounce")
    same = [one for one in reading.returned if (one.address or "").lower() == row["recipient"].lower()]
    return Mailed(row, same[0], "") if same else Mailed(row, None, "another recipient")


def mail_report(mails: list[Mailed]) -> str:
    """Returns how many mails are read as expected, and the others."""
    wrong = [one for one in mails if one.wrong]
    good = _share(len(mails) - len(wrong), len(mails))
    return "\n".join(
        [
            f"read from the mails: {good}: a bounce, its recipient, hard or soft, reason",
            *(one.line() for one in wrong),
        ]
    )


def read(folder: Path) -> list[Read]:
    """Reads the corpus of a folder."""
    with (folder / "expected.csv").open(encoding="utf-8", newline="") as file:
        return [Read(row, classify(int(row["code"]), row["reply"])) for row in csv.DictReader(file)]


def report(replies: list[Read]) -> str:
    """Returns the shares, the table of readings, and the replies that are read otherwise."""
    undisputed = [one for one in replies if not one.disputed]
    compared = [one for one in replies if one.reason in SAME]
    weighed = [one for one in undisputed if not one.weighs_alike]
    reasoned = [one for one in compared if one.ours.reason not in SAME[one.reason]]
    others = [one for one in replies if one.reason not in ABOUT_THE_RECIPIENT | NOT_SAID]
    blamed = [one for one in others if one.blames_wrongly]
    parts = [
        f"hard or soft  {_share(len(undisputed) - len(weighed), len(undisputed))} of the undisputed",
        f"reason        {_share(len(compared) - len(reasoned), len(compared))}",
        f"the recipient is blamed for what is not his: {len(blamed)} of {len(others)}",
        "",
        *_table(replies),
    ]
    for title, some in (("hard or soft", weighed), ("reason", reasoned), ("blamed", blamed)):
        if some:
            parts += ["", f"{title}: expected | read | reply", *(one.line() for one in some)]
    return "\n".join(parts)


def _share(good: int, of: int) -> str:
    return f"{100 * good / of:.1f} % ({good} of {of})" if of else "nothing to compare"


def _table(replies: list[Read]) -> list[str]:
    counts = Counter((one.reason, one.ours.reason.value) for one in replies)
    columns = sorted({ours for _, ours in counts})
    rows = sorted({theirs for theirs, _ in counts})
    width = max(map(len, rows))
    head = " " * width + "  " + "  ".join(columns)
    lines = [
        f"{theirs:{width}}  " + "  ".join(f"{counts[theirs, ours] or '.':>{len(ours)}}" for ours in columns)
        for theirs in rows
    ]
    return ["expected (down), read (across)", head, *lines]


def main() -> None:
    """Prints the report of the folder that the command line names."""
    if len(sys.argv) != 2:  # noqa: PLR2004 - the script and the folder
        sys.exit("Name the folder of the corpus: python dev/corpus.py DIR")
    folder = Path(sys.argv[1])
    if not (folder / "expected.csv").is_file():
        sys.exit(f"{folder} holds no expected.csv.")
    replies = read(folder)
    print(report(replies) if replies else f"{folder}/expected.csv has no rows.")
    mails = read_mails(folder)
    if mails:
        print(f"\n{mail_report(mails)}")


if __name__ == "__main__":
    main()
