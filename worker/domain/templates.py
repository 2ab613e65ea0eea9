"""The templates of a delivery: checked when it is prepared, filled in for each recipient.

Values are data and never templates: nothing that a recipients file holds is compiled, the HTML part escapes
it, and header parts refuse line breaks in it. Templates come from operators and run in a sandbox.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError

from worker.domain.content import control_character
from worker.domain.template_budget import MOST_STEPS, Budget, BudgetedContext
from worker.domain.template_language import Refused, Sandbox

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence

    from jinja2 import Environment, Template

    from worker.domain.content import EmailContent

BUILT_IN: Final = ("address", "recipient", "delivery_id")
"""Variables that every recipient has; they win over columns of these names."""

LONGEST_MESSAGE: Final = 1_000_000
"""Characters of all parts of a message together; webmail cuts off what is beyond 100,000."""
LONGEST_HEADER: Final = 4_000
"""Characters of one part that goes into a header; folding and encoding it takes 2 ms."""
_MOST_PROBLEMS: Final = 5
"""Of those found with recipients: more say nothing new."""
_AT_A_TIME: Final = 32
"""Pieces between two looks at their length; a piece is a value at most, five times as long once escaped."""
_LONGEST_SENTENCE: Final = 300
"""Characters of what Jinja or Python say; a value may stand in it."""
_BODIES: Final = ("text", "html")
_SOURCE_NAME: Final = "<template>"
"""The file name that Jinja gives to templates made of strings, in tracebacks."""


class RenderFailed(Exception):  # noqa: N818 - named for what happened, as a verdict is
    """A template could not be filled in for one recipient; the message names the part and the line."""


class ValueUnfit(RenderFailed):
    """A recipient's value cannot stand where the template puts it; the template is sound."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A content filled in for one recipient; no header value holds a control character."""

    subject: str
    text_pieces: Sequence[str] | None
    """The text as the template yields it: what its author wrote in one stretch is a piece of its own."""
    html_pieces: Sequence[str] | None
    to_name: str
    """Empty for none."""
    headers: dict[str, str]

    @property
    def text(self) -> str | None:
        """The text; None for none."""
        return None if self.text_pieces is None else "".join(self.text_pieces)

    @property
    def html(self) -> str | None:
        """The HTML; None for none."""
        return None if self.html_pieces is None else "".join(self.html_pieces)


_PLAIN: Final = Sandbox(autoescape=False)
_HTML: Final = Sandbox(autoescape=True)


def _read(part: str, source: str) -> tuple[nodes.Template, Template]:
    """Reads a part's template; raises Refused."""
    return (_HTML if part == "html" else _PLAIN).read(source)


def check(content: EmailContent, columns: Collection[str]) -> list[str]:
    """Looks for everything in the templates that would fail for every recipient.

    A variable is known if it is a column, one of `BUILT_IN`, or set by the template itself. One that is not
    known passes if the part says somewhere what to do without it, by `default` or by `is defined`: its author
    expects it to be missing.

    Args:
        content: The content as it was written.
        columns: The names of the recipients file's columns.

    Returns:
        A sentence for each problem, by part and line; empty if there is none.
    """
    return [problem for part, source in content.parts.items() for problem in _problems(part, source, columns)]


def _problems(part: str, source: str, columns: Collection[str]) -> Iterator[str]:
    try:
        tree, _ = _read(part, source)
    except Refused as refused:
        yield from _sentences(part, refused)
        return
    names = meta.find_undeclared_variables(tree)
    shadowed = names & set(columns) & (set(BUILT_IN) - {"address"})
    unknown = names - set(columns) - set(BUILT_IN) - _guarded(tree)
    for name, line in _first_lines(tree):
        if name in unknown:
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
    """Fills in the templates for some recipients, as they would be filled in when sending.

    A value that cannot stand in a header is no problem: it costs one recipient, and the template is sound.

    Args:
        content: A content in which `check` found nothing.
        recipients: Each one's line in the recipients file, and the values of its columns by name.

    Returns:
        A sentence for each problem, with part, line and the first who has it; empty if there is none.
    """
    renderer = Renderer(content)
    found: dict[str, int] = {}
    for line, values in recipients:
        try:
            # Which number the recipient and a new delivery will have is not known yet.
            renderer.render({**values, "recipient": line, "delivery_id": 1})
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


def _guarded(tree: nodes.Template) -> set[str]:
    """Names that the template itself expects to be missing."""
    guards = [node.node for node in tree.find_all(nodes.Filter) if node.name in {"default", "d"}]
    guards += [node.node for node in tree.find_all(nodes.Test) if node.name in {"defined", "undefined"}]
    return {guard.name for guard in guards if isinstance(guard, nodes.Name)}


def _first_lines(tree: nodes.Template) -> list[tuple[str, int]]:
    """Every name that the template reads, with the line where it is first read, in that order."""
    lines: dict[str, int] = {}
    for node in tree.find_all(nodes.Name):
        if node.ctx == "load":
            lines[node.name] = min(node.lineno, lines.get(node.name, node.lineno))
    return sorted(lines.items(), key=lambda item: item[1])


class Renderer:
    """The compiled templates of one content."""

    def __init__(self, content: EmailContent) -> None:
        """Compiles the templates.

        Args:
            content: A content in which `check` found nothing.

        Raises:
            RenderFailed: A template is refused; the message names its part and line.
        """
        self._templates: dict[str, Template] = {}
        self.fixed: Final[dict[str, list[str]]] = {}
        """What the templates' authors wrote between the places that are filled in, by part: bodies only."""
        for part, source in content.parts.items():
            try:
                tree, self._templates[part] = _read(part, source)
            except Refused as refused:
                raise RenderFailed(_sentences(part, refused)[0]) from refused
            if part in _BODIES:
                self.fixed[part] = [node.data for node in tree.find_all(nodes.TemplateData)]
        self._headers = {name: f"headers.{name}" for name in content.headers}

    def render(self, variables: dict[str, Any]) -> Rendered:
        """Fills in the templates for one recipient.

        Args:
            variables: The recipient's values by name, those of `BUILT_IN` among them; they stay as they are.

        Raises:
            ValueUnfit: A header's value holds a control character.
            RenderFailed: A template failed with these values, or went beyond a limit.
        """
        filling = _Filling(variables)
        return Rendered(
            subject=self._line("subject", filling),
            text_pieces=self._pieces("text", filling, LONGEST_MESSAGE),
            html_pieces=self._pieces("html", filling, LONGEST_MESSAGE),
            to_name=self._line("to_name", filling),
            headers={name: self._line(part, filling) for name, part in self._headers.items()},
        )

    def _pieces(self, part: str, filling: _Filling, longest: int) -> list[str] | None:
        template = self._templates.get(part)
        if template is None:
            return None
        try:
            return filling.fill_in(template, longest)
        except Exception as error:  # a template can raise whatever its expressions do
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


class _Filling:
    """One message that is being filled in, part by part, within one budget."""

    __slots__ = ("_budget", "_contexts", "_encodable", "_values")

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values
        self._budget = Budget(LONGEST_MESSAGE)
        self._encodable = _encodable(values)
        self._contexts: dict[Environment, BudgetedContext] = {}

    def fill_in(self, template: Template, longest: int) -> list[str]:
        """Renders as `Template.render` does, but leaves the pieces apart, and ends at a limit."""
        room = min(longest, self._budget.characters)
        context = self._context(template)
        try:
            stream = template.root_render_func(context)
            # Looked at a few at a time, which takes a third of the time of one by one.
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
        except Exception:  # noqa: BLE001 - Jinja raises it again, with the template's line in its traceback
            template.environment.handle_exception()
        self._budget.characters -= size
        return pieces

    def _context(self, template: Template) -> BudgetedContext:
        """One for the parts of each environment, as making one takes as long as a short part does."""
        context = self._contexts.get(template.environment)
        if context is None:
            context = BudgetedContext(template.environment, self._values, None, {})
            context.budget = self._budget
            self._contexts[template.environment] = context
        elif context.vars:
            context.vars = {}  # what another part has set
        return context

    def _tell_where(self, template: Template, room: int, words: str) -> NoReturn:
        """Fills in once more, piece by piece, and fails in the template's line where it becomes too long."""
        self._budget.steps = MOST_STEPS
        stream = cast("Generator[str, None, None]", template.root_render_func(self._context(template)))
        error = SecurityError(words)
        for piece in stream:
            room -= len(piece)
            if room < 0:
                stream.throw(error)
        raise error


def _encodable(values: dict[str, Any]) -> bool:
    """Says whether no value holds a lone surrogate, which JSON can carry, but which is no character.

    Lists and mappings are not looked through: if there are any, every piece is encoded instead.
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
