"""The plain text of a message, made from its HTML template: a template again, with the same variables.

Template syntax is set apart before the HTML is read, and put back where it stood. It does not matter to Jinja
which part a statement stands in, so loops and conditions go on working in the text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from bs4 import BeautifulSoup
from jinja2 import TemplateSyntaxError
from markdownify import MarkdownConverter

from worker.domain.template_language import Sandbox

if TYPE_CHECKING:
    from bs4 import Tag

_OPEN, _OPEN_STATEMENT, _CLOSE = "\ue000", "\ue001", "\ue002"
"""Characters for private use. They stand around the number of a piece of template syntax in the HTML."""
_SET_APART: Final = re.compile(f"[{_OPEN}{_OPEN_STATEMENT}]([0-9]+){_CLOSE}")
_STATEMENT: Final = f"{_OPEN_STATEMENT}[0-9]+{_CLOSE}"
_ALONE_AFTER_BLANK: Final = re.compile(rf"(?<=\n\n)((?:{_STATEMENT}[ \t]*)+)\n+")
_ALONE: Final = re.compile(rf"^((?:[ \t]*{_STATEMENT}[ \t]*)+)\n", re.MULTILINE)
"""Lines with nothing but statements: their ends would be sent."""
_LIKE_SYNTAX: Final = re.compile(f"\\{{(?=[{{%#{_OPEN}{_OPEN_STATEMENT}])")
_BLANK_LINES: Final = re.compile(r"(?:[ \t\u00a0\u200b-\u200d\u2007\u034f\ufeff]*\n){3,}")
_HIDDEN: Final = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_NEVER_SHOWN: Final = frozenset({"head", "script", "style", "template", "title"})
_ESCAPES: Final = frozenset({"e", "escape", "safe"})
"""Filters that are about HTML alone."""

_language: Final = Sandbox(autoescape=True)


def text_of(html: str) -> str | None:
    """Returns a text template for an HTML template.

    Links keep their addresses, images their `alt`, lists their marks. What is hidden is left out.

    Args:
        html: The HTML, as a template.

    Returns:
        The text; None if there is none to read, or the HTML is not a template.
    """
    if any(mark in html for mark in (_OPEN, _OPEN_STATEMENT, _CLOSE)):
        return None
    try:
        marked, syntax = _set_apart(html)
    except TemplateSyntaxError:
        return None
    soup = BeautifulSoup(marked, "html.parser")
    for element in soup.find_all(_not_shown):
        element.decompose()
    for cell in soup.find_all(["td", "th"]):
        cell.name = (
            "cell"  # the library puts all in a cell into one line, which a table for the layout is not
        )
    converter = _Converter(bullets="*", escape_asterisks=False, escape_misc=False, escape_underscores=False)
    text = converter.convert_soup(soup)
    text = "\n".join(line.rstrip(" \t\u00a0") for line in text.splitlines())
    text = _BLANK_LINES.sub("\n\n", text).strip("\n \t\u00a0")
    if not _SET_APART.sub("", text).strip() and _OPEN not in text:
        return None
    text = _ALONE.sub(r"\1", _ALONE_AFTER_BLANK.sub(r"\1", f"{text}\n"))
    text = _LIKE_SYNTAX.sub('{{ "{" }}', text)
    return _SET_APART.sub(lambda found: syntax[int(found[1])], text)


def _not_shown(element: Tag) -> bool:
    hidden = element.has_attr("hidden") or _HIDDEN.search(str(element.get("style", "")))
    return element.name in _NEVER_SHOWN or bool(hidden)


def _set_apart(html: str) -> tuple[str, list[str]]:
    """Returns the HTML with numbers for its template syntax, and the syntax by number.

    Raises:
        TemplateSyntaxError: It is not a template.
    """
    pieces: list[str] = []
    syntax: list[str] = []
    inside: list[tuple[str, str]] = []
    for _, kind, text in _language.lex(html):
        if kind == "data":
            pieces.append(text)
        elif kind.startswith(("raw_", "comment", "linecomment")):
            continue
        else:
            inside.append((kind, text))
            if kind in {"variable_end", "block_end"}:
                opening = _OPEN if kind == "variable_end" else _OPEN_STATEMENT
                pieces.append(f"{opening}{len(syntax)}{_CLOSE}")
                syntax.append(_without_escapes(inside))
                inside = []
    return "".join(pieces), syntax


def _without_escapes(tokens: list[tuple[str, str]]) -> str:
    """Returns the source of a piece of syntax, without filters that are about HTML."""
    kept: list[str] = []
    for kind, text in tokens:
        if kind == "name" and text in _ESCAPES and "".join(kept).rstrip().endswith("|"):
            last = "".join(kept).rstrip()
            kept = [last[:-1].rstrip()]
        else:
            kept.append(text)
    return "".join(kept)


class _Converter(MarkdownConverter):
    """Writes text as people write it in mail, not as Markdown."""

    def convert_a(self, el: Tag, text: str, parent_tags: Any) -> str:  # noqa: ANN401, ARG002 - the library's
        """A link: its words, and its address where they do not say it."""
        address = str(el.get("href") or "").strip()
        words = text.strip()
        if not address or address.startswith("#") or words in {address, address.removeprefix("mailto:")}:
            return text
        return f"{words} ({address})" if words else address

    def convert_img(self, el: Tag, text: str, parent_tags: Any) -> str:  # noqa: ANN401, ARG002 - the library's
        """An image: its description."""
        return str(el.get("alt") or "")

    def _words(self, el: Tag, text: str, parent_tags: Any) -> str:  # noqa: ANN401, ARG002 - the library's
        return text

    convert_b = convert_strong = convert_em = convert_i = convert_del = convert_s = convert_code = _words
    convert_table = convert_thead = convert_tbody = convert_tfoot = convert_sub = convert_sup = _words

    def convert_hN(self, n: int, el: Tag, text: str, parent_tags: Any) -> str:  # noqa: ANN401, ARG002, N802 - the same
        """A heading: a paragraph."""
        return f"\n\n{text.strip()}\n\n"

    def convert_pre(self, el: Tag, text: str, parent_tags: Any) -> str:  # noqa: ANN401, ARG002 - the same
        """Text as it is laid out: a paragraph."""
        return f"\n\n{text}\n\n"

    def convert_tr(self, el: Tag, text: str, parent_tags: Any) -> str:  # noqa: ANN401, ARG002 - the same
        """A row of a table: a line, or paragraphs if a cell has several lines."""
        words = text.strip()
        return f"\n\n{words}\n\n" if "\n" in words else f"{words}\n"

    def convert_cell(self, el: Tag, text: str, parent_tags: Any) -> str:  # noqa: ANN401, ARG002 - the same
        """A cell of a table, apart from the next one."""
        words = text.strip()
        return f"\n\n{words}\n\n" if "\n" in words else f"{words} "
