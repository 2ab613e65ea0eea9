"""The templates of a delivery: checked at the preparation, rendered for each recipient.

Values are data and never templates: no value of a recipients file is compiled, the HTML part escapes values,
and header parts refuse line breaks in them. Templates come from operators and run in a sandbox.
"""

from __future__ import annotations

import html
import traceback
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from pydantic import ValidationError

from contracts.base import explain
from worker.domain.content import EmailContent, control_character
from worker.domain.headers import ESCAPES, LONGEST_HEADER, HeaderInvalid, kind_of, shaped
from worker.domain.link_names import FOR_AUTHORS, LinkValues
from worker.domain.template_budget import MOST_STEPS, Budget, BudgetedContext
from worker.domain.template_language import Refused, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence

    from jinja2 import Environment, Template

BUILT_IN: Final = ("address", "recipient", "delivery_id")
"""Variables that every recipient has. They win over columns with these names."""

LONGEST_MESSAGE: Final = 1_000_000
"""The most characters of all parts of a message together. Webmail cuts a message after 100,000."""
LONGEST_TARGET: Final = 8_192
"""The most characters of a link's target, as of `url` in a tracking event."""
_MOST_PROBLEMS: Final = 5
"""The most problems found with recipients: more do not help."""
_AT_A_TIME: Final = 32
"""Pieces between two checks of their length. A piece has at most one value, five times as long when
escaped."""
_LONGEST_SENTENCE: Final = 300
"""Characters that are kept of an error of Jinja or Python, since it may contain a value."""
_BODIES: Final = ("text", "html")
_SOURCE_NAME: Final = "<template>"
"""The file name of templates in tracebacks, given by Jinja."""


class RenderFailed(Exception):
    """A template could not be rendered for one recipient; the message names the part and the line."""


class ValueUnfit(RenderFailed):
    """A recipient's value cannot be used in its place. The template has no fault."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A content rendered for one recipient. No header value contains a control character."""

    subject: str
    text_pieces: Sequence[str] | None
    """The text in the template's pieces: each stretch of the author's text is one piece."""
    html_pieces: Sequence[str] | None
    """The HTML in pieces, likewise."""
    to_name: str
    """The recipient's display name; empty for none."""
    headers: dict[str, str]
    """The author's headers in the form of their kind, without those that are empty."""

    @property
    def text(self) -> str | None:
        """The text; None for none."""
        return None if self.text_pieces is None else "".join(self.text_pieces)

    @property
    def html(self) -> str | None:
        """The HTML; None for none."""
        return None if self.html_pieces is None else "".join(self.html_pieces)


_PLAIN: Final = Sandbox()
_HTML: Final = Sandbox(autoescape=True)
_STRUCTURED: Final = {kind: Sandbox(escape=escape) for kind, escape in ESCAPES.items()}
"""For headers that are not free text."""
_HEADERS: Final = "headers."
_UNSUBSCRIBE: Final = "List-Unsubscribe"
_ONE_CLICK: Final = {"List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}
"""What says that one POST to an https address is enough to unsubscribe (RFC 8058 section 3.1)."""


def environment(part: str) -> Sandbox:
    """Returns the language of a part: how it escapes values."""
    if part == "html":
        return _HTML
    name = _UNSUBSCRIBE if part == "unsubscribe" else part.removeprefix(_HEADERS)
    return _PLAIN if name == part else _STRUCTURED.get(kind_of(name), _PLAIN)


def check(content: EmailContent, columns: Collection[str], *, tracker: bool = False) -> list[str]:
    """Returns the faults of the templates that would fail for every recipient.

    A variable is known if it is a column, one of `BUILT_IN`, or set by the template itself. An unknown
    variable is allowed if the part uses `default` or `is defined` for it: its author expects that it may be
    missing.

    Args:
        content: The content, with its templates.
        columns: The names of the recipients file's columns.
        tracker: Whether the installation has a tracker. Then links to it are variables too
            (`worker.domain.link_names.FOR_AUTHORS`), and win over columns with their names.

    Returns:
        A sentence for each problem, by part and line; empty if there is none.
    """
    return [
        problem
        for part, source in content.parts.items()
        for problem in _problems(part, source, columns, tracker=tracker)
    ]


def _problems(part: str, source: str, columns: Collection[str], *, tracker: bool) -> Iterator[str]:
    try:
        tree, _ = environment(part).read(source)
    except Refused as refused:
        yield from _sentences(part, refused)
        return
    try:
        names = meta.find_undeclared_variables(tree)
    except Exception as error:  # noqa: BLE001 - Jinja computes what is constant, which may raise any error
        yield f"{part}: {_sentence(_words(error))}"
        return
    shadowed = names & set(columns) & (set(BUILT_IN) - {"address"})
    links = set(FOR_AUTHORS)
    unknown = names - set(columns) - set(BUILT_IN) - _guarded(tree) - (links if tracker else set())
    for name, line in _first_lines(tree):
        if name in unknown & links:
            yield (
                f"{part}, line {line}: “{name}” is a link to the tracker, and this installation has none: "
                f"set SENDOFF_TRACKER_URL and SENDOFF_TRACKER_KEYS, or leave it out."
            )
        elif tracker and name in names & links & set(columns):
            yield (
                f"{part}, line {line}: the column “{name}” cannot be used in templates, as {name} always is "
                f"a link given by Sendoff; rename the column."
            )
        elif name in unknown:
            yield (
                f"{part}, line {line}: unknown variable “{name}”; the recipients file has: "
                f"{', '.join(sorted(columns)) or 'no columns'}, and {', '.join(BUILT_IN)} are always there."
            )
        elif name in shadowed:
            yield (
                f"{part}, line {line}: the column “{name}” cannot be used in templates, as {name} always is "
                f"a number given by Sendoff; rename the column."
            )


def _sentences(part: str, refused: Refused) -> list[str]:
    return [f"{part}, line {line}: {_sentence(words)}" for line, words in refused.faults]


def try_out(content: EmailContent, recipients: Iterable[tuple[int, Mapping[str, Any]]]) -> list[str]:
    """Renders the templates for some recipients, as for a send.

    A value that a header cannot carry is not a problem here: it affects one recipient, and the template has
    no fault.

    Args:
        content: A content in which `check` found nothing.
        recipients: The line of each in the recipients file, and the values of its columns by name.

    Returns:
        A sentence for each problem, with part, line and the first recipient; empty if there is none.
    """
    renderer = Renderer(content)
    links = renderer.links.examples()
    found: dict[str, int] = {}
    for line, values in recipients:
        try:
            # The numbers of the recipient and of a new delivery are not known yet.
            renderer.render({**values, **links, "recipient": line, "delivery_id": 1})
        except ValueUnfit:
            continue
        except RenderFailed as error:
            found.setdefault(str(error), line)
            if len(found) == _MOST_PROBLEMS:
                break
    return [
        f"{words.removesuffix('.')}; so with the recipient in line {line} of the recipients file."
        for words, line in found.items()
    ]


def check_headers(headers: Mapping[str, str]) -> None:
    """Checks headers that every message gets, whatever its audience: only `BUILT_IN` variables are there.

    Raises:
        ValueError: One of them cannot be sent; the message says why.
    """
    try:
        content = EmailContent.model_validate(
            {"from": "news@example.org", "subject": "-", "text": "-", "headers": headers}
        )
    except ValidationError as error:
        raise ValueError(explain(error)) from None
    faults = check(content, ()) or try_out(content, [(1, {"address": "ana@example.org"})])
    if faults:
        raise ValueError(" ".join(faults))


def _guarded(tree: nodes.Template) -> set[str]:
    """Returns the names that the template expects to be missing."""
    guards = [node.node for node in tree.find_all(nodes.Filter) if node.name in {"default", "d"}]
    guards += [node.node for node in tree.find_all(nodes.Test) if node.name in {"defined", "undefined"}]
    return {guard.name for guard in guards if isinstance(guard, nodes.Name)}


def _first_lines(tree: nodes.Template) -> list[tuple[str, int]]:
    """Returns every name that the template reads, with its first line, in this order."""
    lines: dict[str, int] = {}
    for node in tree.find_all(nodes.Name):
        if node.ctx == "load":
            lines[node.name] = min(node.lineno, lines.get(node.name, node.lineno))
    return sorted(lines.items(), key=lambda item: item[1])


class Renderer:
    """The compiled templates of one content."""

    def __init__(
        self, content: EmailContent, change: Callable[[str, nodes.Template], None] | None = None
    ) -> None:
        """Compiles the templates.

        Args:
            content: A content in which `check` found nothing.
            change: Changes the tree of each part before it is compiled; None for no change.

        Raises:
            RenderFailed: A template is refused; the message names its part and line.
        """
        self._templates: dict[str, Template] = {}
        self.fixed: Final[dict[str, list[str]]] = {}
        """The author's texts between the values, by part, for bodies only."""
        names: set[str] = set()
        needed: set[str] = set()
        for part, source in content.parts.items():
            try:
                tree, self._templates[part] = environment(part).read(source)
            except Refused as refused:
                raise RenderFailed(_sentences(part, refused)[0]) from refused
            if change is not None:
                change(part, tree)
                self._templates[part] = environment(part).from_string(tree)
            found = {node.name for node in tree.find_all(nodes.Name)}
            names |= found
            needed |= found - _guarded(tree)
            if part in _BODIES:
                self.fixed[part] = [node.data for node in tree.find_all(nodes.TemplateData)]
        self.links: Final = LinkValues(names, needed)
        """The variables that stand for links to the tracker."""
        self._headers = {name: f"{_HEADERS}{name}" for name in content.headers}
        if content.unsubscribe:
            self._headers[_UNSUBSCRIBE] = "unsubscribe"

    def render(self, variables: dict[str, Any]) -> Rendered:
        """Renders the templates for one recipient.

        Args:
            variables: The recipient's values by name, with those of `BUILT_IN`. They are not changed.

        Raises:
            ValueUnfit: A header's value holds a control character.
            RenderFailed: A template failed with these values, or exceeded a limit.
        """
        filling = _Filling(variables)
        return Rendered(
            subject=self._line("subject", filling),
            text_pieces=self._pieces("text", filling, LONGEST_MESSAGE),
            html_pieces=self._pieces("html", filling, LONGEST_MESSAGE),
            to_name=self._line("to_name", filling),
            headers=self._filled_headers(filling),
        )

    def _filled_headers(self, filling: _Filling) -> dict[str, str]:
        headers = {name: self._header(name, part, filling) for name, part in self._headers.items()}
        headers = {name: value for name, value in headers.items() if value}
        own = self._headers.get(_UNSUBSCRIBE) == "unsubscribe"
        return (
            headers | _ONE_CLICK if own and "<https://" in headers.get(_UNSUBSCRIBE, "").lower() else headers
        )

    def _header(self, name: str, part: str, filling: _Filling) -> str:
        try:
            return shaped(name, self._line(part, filling))
        except HeaderInvalid as error:
            raise RenderFailed(f"{part}: {error}.") from error

    def _pieces(self, part: str, filling: _Filling, longest: int) -> list[str] | None:
        template = self._templates.get(part)
        if template is None:
            return None
        try:
            return filling.fill_in(template, longest)
        except Exception as error:  # a template may raise any error
            raise RenderFailed(f"{part}{_line_of(error)}: {_sentence(_words(error))}") from error

    def _line(self, part: str, filling: _Filling) -> str:
        pieces = self._pieces(part, filling, LONGEST_HEADER)
        if not pieces:
            return ""
        rendered = "".join(pieces).replace("\t", " ").strip(" ")
        found = control_character(rendered)
        if found is not None:
            raise ValueUnfit(
                f"{part}: a value holds a line break or another control character ({found!r}), "
                f"which must not stand in a header."
            )
        return rendered


class TargetTemplate:
    """The template of a link's target, filled in when the link is clicked."""

    def __init__(self, part: str, source: str) -> None:
        """Compiles it.

        Args:
            part: `html` or `text`.
            source: The template; of the HTML as it stands in an attribute.

        Raises:
            RenderFailed: It is refused.
        """
        try:
            tree, self._template = environment(part).read(source)
        except Refused as refused:
            raise RenderFailed(_sentences(part, refused)[0]) from refused
        self._part = part
        self.names: Final = frozenset(node.name for node in tree.find_all(nodes.Name))
        """The variables that it reads."""

    def fill_in(self, variables: dict[str, Any]) -> str:
        """Returns the target for one recipient, without the entities of HTML.

        Raises:
            RenderFailed: It failed with these values, or exceeded a limit.
        """
        try:
            text = "".join(_Filling(variables).fill_in(self._template, LONGEST_TARGET))
        except Exception as error:  # a template may raise any error
            raise RenderFailed(f"link: {_sentence(_words(error))}") from error
        return html.unescape(text) if self._part == "html" else text


class _Filling:
    """One message that is being rendered, part by part, within one budget."""

    __slots__ = ("_budget", "_contexts", "_encodable", "_values")

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values
        self._budget = Budget(LONGEST_MESSAGE)
        self._encodable = _encodable(values)
        self._contexts: dict[Environment, BudgetedContext] = {}

    def fill_in(self, template: Template, longest: int) -> list[str]:
        """Renders as `Template.render` does, but returns the pieces, and ends at a limit."""
        room = min(longest, self._budget.characters)
        context = self._context(template)
        try:
            stream = template.root_render_func(context)
            # The length is checked for several pieces at once: this takes a third of the time of one by one.
            pieces = batch = list(islice(stream, _AT_A_TIME))
            size = sum(map(len, batch))
            while size <= room and len(batch) == _AT_A_TIME:
                batch = list(islice(stream, _AT_A_TIME))
                size += sum(map(len, batch))
                pieces += batch
            if size > room:
                alone = room < self._budget.characters
                what, most = ("it", longest) if alone else ("the message", LONGEST_MESSAGE)
                self._tell_where(template, room, f"{what} becomes longer than {most:,} characters")
            if not self._encodable:
                for piece in pieces:
                    piece.encode()
        except Exception:  # noqa: BLE001 - Jinja re-raises it with the template's line
            template.environment.handle_exception()
        self._budget.characters -= size
        return pieces

    def _context(self, template: Template) -> BudgetedContext:
        """Returns one context for all parts of an environment: making one takes as long as a short part."""
        context = self._contexts.get(template.environment)
        if context is None:
            context = BudgetedContext(template.environment, self._values, None, {})
            context.budget = self._budget
            self._contexts[template.environment] = context
        elif context.vars:
            context.vars = {}  # variables that another part set
        return context

    def _tell_where(self, template: Template, room: int, words: str) -> NoReturn:
        """Renders again, piece by piece, and fails in the template's line at which it becomes too long."""
        self._budget.steps = MOST_STEPS
        stream = cast("Generator[str, None, None]", template.root_render_func(self._context(template)))
        error = SecurityError(words)
        for piece in stream:
            room -= len(piece)
            if room < 0:
                stream.throw(error)
        raise error


def _encodable(values: dict[str, Any]) -> bool:
    """Returns whether no value contains a lone surrogate: JSON can carry it, but it is not a character.

    Lists and mappings are not searched: if there are any, every piece is encoded instead.
    """
    for value in values.values():
        if isinstance(value, str):
            if not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError:
                    return False
        elif isinstance(value, (list, dict)):
            return False
    return True


def _line_of(error: Exception) -> str:
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == _SOURCE_NAME
    ]
    return f", line {lines[-1]}" if lines else ""


def _words(error: Exception) -> str:
    return str(error)[:_LONGEST_SENTENCE] or f"{type(error).__name__} was raised"


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."
