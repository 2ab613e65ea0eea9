"""The tracker's own pages, in the language of the message or of the browser."""

from __future__ import annotations

import re
import tomllib
from functools import lru_cache
from html import escape
from importlib.resources import files
from typing import Final

_ENGLISH: Final = "en"
_PREFERRED: Final = re.compile(
    r"([A-Za-z]{1,8})(?:-[A-Za-z0-9-]*)?\s*(?:;\s*q\s*=\s*([01](?:\.\d{0,3})?))?\s*"
)
"""One language of Accept-Language (RFC 9110 section 12.5.4)."""
_STYLE: Final = (
    "body{font:1.1rem/1.5 system-ui,sans-serif;max-width:34rem;margin:4rem auto;padding:0 1rem;color:#222}"
    "button{font:inherit;padding:.6rem 1.4rem;border:0;border-radius:.4rem;background:#0b57d0;color:#fff}"
    "@media(prefers-color-scheme:dark){body{background:#111;color:#eee}}"
)
CONTENT_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
"""The Content-Security-Policy of these pages."""
MIRROR_POLICY: Final = (
    "sandbox allow-popups allow-popups-to-escape-sandbox allow-top-navigation-by-user-activation; "
    "default-src 'none'; img-src http: https: data:; media-src http: https:; font-src http: https: data:; "
    "style-src 'unsafe-inline' http: https:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
"""That of a mirror page: an author's HTML, which runs no script and is of no origin."""


def languages() -> dict[str, dict[str, str]]:
    """Returns the words of the pages by language."""
    return tomllib.loads((files(__package__ or "") / "words.toml").read_text("utf-8"))


_WORDS: Final = languages()


def chosen(of_message: str, accepted: str) -> str:
    """Returns the language of a page.

    Args:
        of_message: The language of the message; empty if it is not known.
        accepted: The browser's Accept-Language.

    Returns:
        One of `languages`: that of the message, else the one that the browser likes best, else English.
    """
    own = of_message.strip().partition("-")[0].lower()
    return own if own in _WORDS else _accepted(accepted[:200])


@lru_cache(maxsize=256)
def _accepted(header: str) -> str:
    liked: dict[str, float] = {}
    for item in header.split(","):
        match = _PREFERRED.fullmatch(item.strip())
        if match and match[1].lower() in _WORDS:
            liked.setdefault(match[1].lower(), float(match[2] or 1))
    best = max(liked, key=lambda name: liked[name], default=_ENGLISH)
    return best if liked.get(best, 0) > 0 else _ENGLISH


@lru_cache(maxsize=64)
def note(language: str, words: str) -> bytes:
    """Returns a page that says something: `unknown`, `later` or `optout_done`."""
    of = _WORDS[language]
    title = of["optout_title"] if words == "optout_done" else of[f"{words}_title"]
    return _page(language, title, f"<p>{escape(of[words])}</p>")


@lru_cache(maxsize=64)
def question(language: str) -> bytes:
    """Returns the page that asks before an opt-out. Its form posts to the page's own address."""
    of = _WORDS[language]
    button = f'<button name="confirm" value="yes">{escape(of["optout_button"])}</button>'
    form = f'<form method="post">{button}</form>'
    return _page(language, of["optout_title"], f"<p>{escape(of['optout_ask'])}</p>{form}")


def text_as_page(language: str, text: str) -> bytes:
    """Returns a message that has a text alone as a page."""
    return _page(language or _ENGLISH, "", f'<pre style="white-space:pre-wrap">{escape(text)}</pre>')


def _page(language: str, title: str, body: str) -> bytes:
    heading = f"<h1>{escape(title)}</h1>" if title else ""
    return (
        f'<!doctype html><html lang="{escape(language)}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><meta name="robots" content="noindex">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{heading}{body}</body></html>"
    ).encode()
