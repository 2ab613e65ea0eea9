"""The templates of a delivery: checked when it is prepared, filled in for each recipient.

Values are data and never templates: nothing that a recipients file holds is compiled, the HTML part escapes
it, and header parts refuse line breaks in it. Templates come from operators and run in a sandbox.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from jinja2 import StrictUndefined, TemplateSyntaxError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from worker.domain.content import control_character

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from jinja2 import Template
    from jinja2.runtime import Context

    from worker.domain.content import EmailContent

BUILT_IN: Final = ("address", "recipient", "delivery_id")
"""Variables that every recipient has; they win over columns of these names."""

_LONGEST_REPEAT: Final = 100_000
"""Characters or items that `*` may make of a string or list, like the sandbox's own limit on `range`."""
_LARGEST_POWER: Final = 4096
"""Bits that `**` may make: beyond that, one expression could keep a process busy for hours."""
_BODIES: Final = ("text", "html")
_SOURCE_NAME: Final = "<template>"
"""The file name that Jinja gives to templates made of strings, in tracebacks."""
_ELSEWHERE: Final = (nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)
"""What reads another template; there is none, as a part stands alone."""


class RenderFailed(Exception):  # noqa: N818 - named for what happened, as a verdict is
    """A template could not be filled in for one recipient; the message names the part and the line."""


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


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja without a way to Python's insides, to other templates, or to results out of all proportion."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self, *, autoescape: bool) -> None:
        super().__init__(undefined=StrictUndefined, autoescape=autoescape, keep_trailing_newline=True)
        del self.globals["lipsum"]  # filler text has no place in a real message

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401 - Jinja's own
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, (str, list, tuple)) and isinstance(times, int):
                    self._bound(len(many) * times, _LONGEST_REPEAT, operator)
        elif isinstance(left, int) and isinstance(right, int):
            self._bound(left.bit_length() * right, _LARGEST_POWER, operator)
        return super().call_binop(context, operator, left, right)

    @staticmethod
    def _bound(size: int, limit: int, operator: str) -> None:
        if size > limit:
            raise SecurityError(f"the result of {operator} is too large")


_PLAIN: Final = _Sandbox(autoescape=False)
_HTML: Final = _Sandbox(autoescape=True)


def _environment(part: str) -> _Sandbox:
    return _HTML if part == "html" else _PLAIN


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
    environment = _environment(part)
    try:
        environment.compile(source)  # tells of unknown filters and tests too, which parsing alone does not
        tree = environment.parse(source)
    except TemplateSyntaxError as error:
        yield f"{part}, line {error.lineno}: {_sentence(error.message or 'it is not a template')}"
        return
    for node in tree.find_all(_ELSEWHERE):
        word = type(node).__name__.lower().replace("fromimport", "from … import")
        yield f"{part}, line {node.lineno}: “{word}” needs another template; here a part stands alone."
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


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


class Renderer:
    """The compiled templates of one content."""

    def __init__(self, content: EmailContent) -> None:
        """Compiles the templates.

        Args:
            content: A content in which `check` found nothing.

        Raises:
            RenderFailed: A template is not one; the message names its part and line.
        """
        self._templates: dict[str, Template] = {}
        for part, source in content.parts.items():
            try:
                self._templates[part] = _environment(part).from_string(source)
            except TemplateSyntaxError as error:
                message = _sentence(error.message or "it is not a template")
                raise RenderFailed(f"{part}, line {error.lineno}: {message}") from error
        self._headers = {name: f"headers.{name}" for name in content.headers}
        self.fixed: Final = {
            part: _fixed_texts(part, source) for part, source in content.parts.items() if part in _BODIES
        }
        """What the templates' authors wrote between the places that are filled in, by part: bodies only."""

    def render(self, variables: Mapping[str, Any]) -> Rendered:
        """Fills in the templates for one recipient.

        Args:
            variables: The recipient's values by name, those of `BUILT_IN` among them.

        Raises:
            RenderFailed: A template failed with these values, or a header's value holds a control character.
        """
        # Merged once; each template would copy both for itself, which took two thirds of its time.
        values = {**_PLAIN.globals, **variables}
        return Rendered(
            subject=self._line("subject", values),
            text_pieces=self._pieces("text", values),
            html_pieces=self._pieces("html", values),
            to_name=self._line("to_name", values),
            headers={name: self._line(part, values) for name, part in self._headers.items()},
        )

    def _pieces(self, part: str, values: dict[str, Any]) -> list[str] | None:
        template = self._templates.get(part)
        if template is None:
            return None
        try:
            pieces = _fill_in(template, values)
            for piece in pieces:
                if not piece.isascii():
                    piece.encode()  # a lone surrogate, which JSON can carry, is no character
        except Exception as error:  # a template can raise whatever its expressions do
            raise RenderFailed(f"{part}{_line_of(error)}: {_sentence(_words(error))}") from error
        return pieces

    def _line(self, part: str, values: dict[str, Any]) -> str:
        rendered = "".join(self._pieces(part, values) or ()).replace("\t", " ").strip(" ")
        found = control_character(rendered)
        if found is not None:
            raise RenderFailed(
                f"{part}: a value holds a line break or another control character ({found!r}), "
                f"which must not stand in a header."
            )
        return rendered


def _fill_in(template: Template, values: dict[str, Any]) -> list[str]:
    """Renders as `Template.render` does, but leaves the pieces apart, and `values` uncopied."""
    environment = template.environment
    context = environment.context_class(environment, values, template.name, template.blocks)
    try:
        return list(template.root_render_func(context))
    except Exception:  # noqa: BLE001 - Jinja raises it again, with the template's line in its traceback
        environment.handle_exception()


def _fixed_texts(part: str, source: str) -> list[str]:
    return [node.data for node in _environment(part).parse(source).find_all(nodes.TemplateData)]


def _line_of(error: Exception) -> str:
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == _SOURCE_NAME
    ]
    return f", line {lines[-1]}" if lines else ""


def _words(error: Exception) -> str:
    return str(error) or f"{type(error).__name__} was raised"
