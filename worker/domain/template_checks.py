"""Checks the templates of a delivery at its preparation: by themselves, and with some recipients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from jinja2 import meta, nodes
from pydantic import ValidationError

from contracts.base import explain
from worker.domain.content import EmailContent
from worker.domain.link_names import FOR_AUTHORS
from worker.domain.template_language import Refused
from worker.domain.templates import (
    BUILT_IN,
    Renderer,
    RenderFailed,
    ValueUnfit,
    environment,
    guarded,
    sentence,
    sentences_of,
    words_of,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from worker.domain.link_names import LinkValues

_MOST_PROBLEMS: Final = 5
"""The most problems found with recipients: more do not help."""


class HasParts(Protocol):
    """A content of any channel."""

    @property
    def parts(self) -> Mapping[str, str]:
        """Every template by its name for people."""


class Rendering(Protocol):
    """The compiled templates of a content."""

    @property
    def links(self) -> LinkValues:
        """The variables that stand for links to the tracker."""

    def render(self, variables: dict[str, Any]) -> object:
        """Renders them for one recipient, or raises RenderFailed."""


def check(content: HasParts, columns: Collection[str], *, tracker: bool = False) -> list[str]:
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
        yield from sentences_of(part, refused)
        return
    try:
        names = meta.find_undeclared_variables(tree)
    except Exception as error:  # noqa: BLE001 - Jinja computes what is constant, which may raise any error
        yield f"{part}: {sentence(words_of(error))}"
        return
    shadowed = names & set(columns) & (set(BUILT_IN) - {"address"})
    links = set(FOR_AUTHORS)
    unknown = names - set(columns) - set(BUILT_IN) - guarded(tree) - (links if tracker else set())
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


def try_out(content: EmailContent, recipients: Iterable[tuple[int, Mapping[str, Any]]]) -> list[str]:
    """Renders the templates of an email for some recipients; see `try_rendering`.

    Args:
        content: A content in which `check` found nothing.
        recipients: The line of each in the recipients file, and the values of its columns by name.
    """
    return try_rendering(Renderer(content), recipients)


def try_rendering(renderer: Rendering, recipients: Iterable[tuple[int, Mapping[str, Any]]]) -> list[str]:
    """Renders templates for some recipients, as for a send.

    A value that a header cannot carry is not a problem here: it affects one recipient, and the template has
    no fault.

    Args:
        renderer: The templates.
        recipients: The line of each in the recipients file, and the values of its columns by name.

    Returns:
        A sentence for each problem, with part, line and the first recipient; empty if there is none.
    """
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


def _first_lines(tree: nodes.Template) -> list[tuple[str, int]]:
    """Returns every name that the template reads, with its first line, in this order."""
    lines: dict[str, int] = {}
    for node in tree.find_all(nodes.Name):
        if node.ctx == "load":
            lines[node.name] = min(node.lineno, lines.get(node.name, node.lineno))
    return sorted(lines.items(), key=lambda item: item[1])
