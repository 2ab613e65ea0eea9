"""Which branches of templates no recipient of a sample takes, so that nobody has seen what they print."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from jinja2 import nodes

from worker.domain.templates import Renderer, RenderFailed, Templates

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from worker.domain.content import EmailContent

_PARTS: Final = ("subject", "to_name", "text", "html")
_OPEN, _CLOSE = "\ue003", "\ue004"
"""Characters for private use. They stand around the number of a branch."""
_MARK: Final = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


class Branch(NamedTuple):
    """A branch: what stands between two statements of a template."""

    part: str
    line: int
    statement: str
    """How it begins: `if`, `elif`, `else` or `for`."""


def untried(content: EmailContent, recipients: Iterable[tuple[int, Mapping[str, Any]]]) -> list[Branch]:
    """Returns the branches of an email that none of the recipients takes.

    The templates are rendered with a mark at the beginning of each branch.

    Args:
        content: A content whose templates can be rendered.
        recipients: The number of each recipient, and the values by name.
    """
    marking = _Marking(_PARTS)
    renderer = Renderer(content, marking.mark)

    def printed(values: dict[str, Any]) -> Iterable[str]:
        message = renderer.render(values)
        return message.subject, message.to_name, message.text or "", message.html or ""

    return marking.untried(printed, renderer.links.examples(), recipients)


def untried_texts(
    parts: Mapping[str, str], recipients: Iterable[tuple[int, Mapping[str, Any]]]
) -> list[Branch]:
    """Returns the branches of texts, by part, that none of the recipients takes; see `untried`."""
    marking = _Marking(parts)
    templates = Templates(parts, marking.mark)
    return marking.untried(
        lambda values: templates.texts(values).values(), templates.links.examples(), recipients
    )


class _Marking:
    """Puts a mark at the beginning of each branch, and looks for the marks in what is printed."""

    def __init__(self, parts: Collection[str]) -> None:
        self._parts = parts
        self._branches: list[Branch] = []

    def mark(self, part: str, tree: nodes.Template) -> None:
        if part not in self._parts:
            return
        for statement, body, line in list(_bodies(tree)):
            number = nodes.TemplateData(f"{_OPEN}{len(self._branches)}{_CLOSE}", lineno=line)
            body.insert(0, nodes.Output([number], lineno=line))
            self._branches.append(Branch(part, line, statement))

    def untried(
        self,
        printed: Callable[[dict[str, Any]], Iterable[str]],
        links: Mapping[str, str],
        recipients: Iterable[tuple[int, Mapping[str, Any]]],
    ) -> list[Branch]:
        left = set(range(len(self._branches)))
        for number, values in recipients:
            if not left:
                break
            try:
                texts = printed({**values, **links, "recipient": number, "delivery_id": 1})
            except RenderFailed:
                continue
            left -= {int(found) for text in texts for found in _MARK.findall(text)}
        return [branch for number, branch in enumerate(self._branches) if number in left]


def _bodies(tree: nodes.Template) -> Iterable[tuple[str, list[nodes.Node], int]]:
    choices = list(tree.find_all(nodes.If))
    others = {id(other) for choice in choices for other in choice.elif_}
    for choice in choices:
        if id(choice) in others:
            continue
        yield "if", choice.body, choice.lineno
        for other in choice.elif_:
            yield "elif", other.body, other.lineno
        if choice.else_:
            yield "else", choice.else_, choice.else_[0].lineno
    for loop in tree.find_all(nodes.For):
        yield "for", loop.body, loop.lineno
        if loop.else_:
            yield "else", loop.else_, loop.else_[0].lineno
