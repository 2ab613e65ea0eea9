"""The templates of a delivery, rendered for each recipient; `template_checks` looks at them before.

Values are data and never templates: no value of a recipients file is compiled, the HTML part escapes values,
and header parts refuse line breaks in them. Templates come from operators and run in a sandbox.
"""

from __future__ import annotations

import html
import traceback
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from jinja2 import nodes
from jinja2.exceptions import SecurityError

from worker.domain.content import EmailContent, control_character
from worker.domain.headers import ESCAPES, LONGEST_HEADER, HeaderInvalid, kind_of, shaped
from worker.domain.link_names import LinkValues
from worker.domain.template_budget import MOST_STEPS, Budget, BudgetedContext
from worker.domain.template_language import Refused, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from jinja2 import Environment, Template

BUILT_IN: Final = ("address", "recipient", "delivery_id")
"""Variables that every recipient has. They win over columns with these names."""

LONGEST_MESSAGE: Final = 1_000_000
"""The most characters of all parts of a message together. Webmail cuts a message after 100,000."""
LONGEST_TARGET: Final = 8_192
"""The most characters of a link's target, as of `url` in a tracking event."""
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


class Templates:
    """Compiled templates, by their parts. They are rendered together, within one budget."""

    def __init__(
        self, parts: Mapping[str, str], change: Callable[[str, nodes.Template], None] | None = None
    ) -> None:
        """Compiles the templates.

        Args:
            parts: Every template by its name for people. The name says how values are escaped.
            change: Changes the tree of each part before it is compiled; None for no change.

        Raises:
            RenderFailed: A template is refused; the message names its part and line.
        """
        self._templates: dict[str, Template] = {}
        self.fixed: Final[dict[str, list[str]]] = {}
        """The author's texts between the values, by part, for bodies only."""
        names: set[str] = set()
        needed: set[str] = set()
        for part, source in parts.items():
            try:
                tree, self._templates[part] = environment(part).read(source)
            except Refused as refused:
                raise RenderFailed(sentences_of(part, refused)[0]) from refused
            if change is not None:
                change(part, tree)
                self._templates[part] = environment(part).from_string(tree)
            found = {node.name for node in tree.find_all(nodes.Name)}
            names |= found
            needed |= found - guarded(tree)
            if part in _BODIES:
                self.fixed[part] = [node.data for node in tree.find_all(nodes.TemplateData)]
        self.names: Final = frozenset(names)
        """The variables that they read or set."""
        self.links: Final = LinkValues(names, needed)
        """The variables that stand for links to the tracker."""

    def texts(self, variables: dict[str, Any]) -> dict[str, str]:
        """Renders all templates for one recipient, each as a text of its own.

        Args:
            variables: As for `Renderer.render`.

        Raises:
            RenderFailed: A template failed with these values, or exceeded a limit.
        """
        filling = _Filling(variables)
        return {p: "".join(self._pieces(p, filling, LONGEST_MESSAGE) or ()) for p in self._templates}

    def _pieces(self, part: str, filling: _Filling, longest: int) -> list[str] | None:
        template = self._templates.get(part)
        if template is None:
            return None
        try:
            return filling.fill_in(template, longest)
        except Exception as error:  # a template may raise any error
            raise RenderFailed(f"{part}{_line_of(error)}: {sentence(words_of(error))}") from error


class Renderer(Templates):
    """The compiled templates of one email content."""

    def __init__(
        self, content: EmailContent, change: Callable[[str, nodes.Template], None] | None = None
    ) -> None:
        """Compiles the templates of a content in which `check` found nothing, as `Templates` does.

        Raises:
            RenderFailed: A template is refused; the message names its part and line.
        """
        super().__init__(content.parts, change)
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
            raise RenderFailed(sentences_of(part, refused)[0]) from refused
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
            raise RenderFailed(f"link: {sentence(words_of(error))}") from error
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


def words_of(error: Exception) -> str:
    """Returns the words of an error, cut: it may contain a value."""
    return str(error)[:_LONGEST_SENTENCE] or f"{type(error).__name__} was raised"


def sentence(text: str) -> str:
    """Returns a text with a full stop at its end."""
    return text if text.endswith(".") else f"{text}."


def sentences_of(part: str, refused: Refused) -> list[str]:
    """Returns a sentence for each fault of a part that is no template."""
    return [f"{part}, line {line}: {sentence(words)}" for line, words in refused.faults]


def guarded(tree: nodes.Template) -> set[str]:
    """Returns the names that the template expects to be missing."""
    guards = [node.node for node in tree.find_all(nodes.Filter) if node.name in {"default", "d"}]
    guards += [node.node for node in tree.find_all(nodes.Test) if node.name in {"defined", "undefined"}]
    return {guard.name for guard in guards if isinstance(guard, nodes.Name)}
