"""The readers of the demo: they open, click, look at their copy on the web, opt out and complain.

They know what any reader knows: the message that the SMTP sink received. What one does follows from the place
of the message among the others, so that it can be compared with the KPIs.
"""

from __future__ import annotations

import email
import http.client
import re
from email.policy import default
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable
    from email.message import EmailMessage

    from demo_returns import Listener

READ_AT_MOST = 150
BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
MAIL_PROVIDER = "Mail provider of the demo (one-click unsubscribe)"
ONE_CLICK = "List-Unsubscribe=One-Click"
SECONDS = 10


class ReaderError(Exception):
    """The tracker did not answer as it should; the message says what it did."""


class Deeds:
    """Who did what: recipients by kind."""

    def __init__(self) -> None:
        self.clicked: set[str] = set()
        self.mirror: set[str] = set()
        self.optout: set[str] = set()
        self.opened: set[str] = set()
        """All of them too: a click is an open, with or without a pixel."""
        self.complained: set[str] = set()
        """A complaint is no open: who complains has perhaps seen the subject and no more."""
        self.returned: set[str] = set()
        """Not read at all: their servers took the message and returned it later."""

    @property
    def kpis(self) -> dict[str, int]:
        """The KPIs that must come of it, by their names."""
        kinds = ("opened", "clicked", "mirror", "optout", "complained")
        return {name: len(getattr(self, name)) for name in kinds}

    def note(self, kind: str, recipient: str) -> None:
        """Notes a deed."""
        getattr(self, kind).add(recipient)
        self.opened.add(recipient)


def read_all(messages: Iterable[tuple[str, bytes]], listener: Listener) -> Deeds:
    """Lets the readers of some messages, given by recipient, do what they do, and their servers too.

    Raises:
        ReaderError: The tracker answered otherwise than it should.
        ListenerError: The listener for returned mail did not take a mail.
    """
    deeds = Deeds()
    for place, (recipient, raw) in enumerate(sorted(messages)[:READ_AT_MOST]):
        message = email.message_from_bytes(raw, policy=default)
        html = _html(message)
        if _turn(place, 3, 0):
            _ask(_find(html, r'src="(http[^"]+/o/[^"]+\.gif)"'), 200)
            deeds.note("opened", recipient)
        if _turn(place, 5, 0):
            link = re.findall(r'href="(http[^"]+/c/[^"]+)"', html)[place // 5 % 2]
            location = _ask(link, 302)
            if not location.startswith("https://news.example.org/"):
                raise ReaderError(f"The link {link} leads to {location or 'nowhere'}.")
            deeds.note("clicked", recipient)
        if _turn(place, 20, 1):
            _ask(_find(html, r'href="(http[^"]+/m/[^"]+)"'), 200)
            deeds.note("mirror", recipient)
        if _turn(place, 15, 2):
            # What a mailbox's provider does for a reader who presses its button (RFC 8058). The header
            # List-Unsubscribe-Post, which asks for it, is there with https alone.
            _ask(str(message["List-Unsubscribe"]).strip("<>"), 200, ONE_CLICK)
            deeds.note("optout", recipient)
        if _turn(place, 10, 4):
            # Programs that look at every link ahead of the reader opt nobody out.
            _ask(_find(html, r'href="(http[^"]+/u/[^"]+)"'), 200)
        if _turn(place, 50, 7):
            listener.complain(raw)
            deeds.complained.add(recipient)
        if _turn(place, 30, 13):
            listener.bounce(recipient, raw)
            deeds.returned.add(recipient)
    return deeds


def _turn(place: int, every: int, rest: int) -> bool:
    return place % every == rest


def _html(message: EmailMessage) -> str:
    part = message.get_body(("html",))
    if part is None:
        raise ReaderError("A message has no HTML.")
    return str(part.get_content())


def _find(html: str, pattern: str) -> str:
    found = re.search(pattern, html)
    if found is None:
        raise ReaderError(f"A message has nothing like {pattern}.")
    return found[1]


def _ask(url: str, expected: int, body: str | None = None) -> str:
    """Asks as a browser does, or posts; returns where the answer leads."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=SECONDS)
    try:
        headers = {"User-Agent": BROWSER if body is None else MAIL_PROVIDER}
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        connection.request("GET" if body is None else "POST", parts.path, body, headers)
        answer = connection.getresponse()
        answer.read()
    except OSError as error:
        raise ReaderError(f"The tracker does not answer at {url}: {error}.") from error
    finally:
        connection.close()
    if answer.status != expected:
        raise ReaderError(f"The tracker answered {answer.status} at {url}, not {expected}.")
    return answer.getheader("Location", "")
