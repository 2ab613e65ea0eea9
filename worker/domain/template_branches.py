"""Which branches of templates no recipient of a sample takes, so that nobody has seen what they print."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from jinja2 import nodes

from worker.domain.templates import Renderer, RenderFailed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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
    """Returns the branches that none of the recipients takes.

    The templates are rendered with a mark at the beginning of each branch.

    Args:
        content: A content whose templates can be rendered.
        recipients: The number of each recipient, and the values by name.
    """
    branches: list[Branch] = []

    def mark(part: str, tree: nodes.Template) -> None:
        if part not in _PARTS:
            return
        for statement, body, line in list(_bodies(tree)):
            number = nodes.TemplateData(f"{_OPEN}{len(branches)}{_CLOSE}", lineno=line)
            body.insert(0, nodes.Output([number], lineno=line))
            branches.append(Branch(part, line, statement))

    renderer = Renderer(content, mark)
    links = renderer.links.examples()
    left = set(range(len(branches)))
    for number, values in recipients:
        if not left:
            break
        try:
            rendered = renderer.render({**values, **links, "recipient": number, "delivery_id": 1})
        except RenderFailed:
            continue
        printed = (rendered.subject, rendered.to_name, rendered.text or "", rendered.html or "")
        left -= {int(found) for text in printed for found in _MARK.findall(text)}
    return [branch for number, branch in enumerate(branches) if number in left]


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
