"""The content of a webhook delivery: the `[webhook]` table of its file, and the bodies made of it.

The body is JSON whose texts are templates. It is read as JSON before any template is filled in, and each text
is written as JSON afterwards. So no value can end a text, add a key or change a number.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from typing import TYPE_CHECKING, Any, Final, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr, model_validator

from worker.domain.content import Body
from worker.domain.template_language import LONGEST_SOURCE
from worker.domain.templates import Templates

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from worker.domain.link_names import LinkValues

_DEEPEST: Final = 32
"""How deep lists and objects may be nested."""
_MOST_TEMPLATES: Final = 200
"""Texts with templates: compiling one takes a third of a millisecond."""
_TEMPLATE_SIGNS: Final = ("{{", "{%", "{#")


class WebhookContent(BaseModel):
    """The content of a webhook delivery. An unknown field is refused: it is probably misspelt."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    body: Body
    """The body as JSON, an object or a list. Texts in it are templates; keys are not."""
    _tree: Any = PrivateAttr()
    _parts: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _read(self) -> Self:
        self._tree = _parse(self.body)
        for path, text in _texts(self._tree):
            _check_text(path, text)
            if any(sign in text for sign in _TEMPLATE_SIGNS):
                self._parts[path] = text
        if len(self._parts) > _MOST_TEMPLATES:
            raise ValueError(f"body: it has more than {_MOST_TEMPLATES} texts with templates")
        return self

    @property
    def parts(self) -> dict[str, str]:
        """Every template by its place, such as `body.messages[0].text`."""
        return self._parts

    @property
    def tree(self) -> Any:  # noqa: ANN401 - JSON
        """The body as it was read."""
        return self._tree


class BodyRenderer:
    """The compiled templates of one content."""

    def __init__(self, content: WebhookContent) -> None:
        """Compiles them.

        Raises:
            RenderFailed: A template is refused; the message names its place.
        """
        self._templates = Templates(content.parts)
        # The body is written once, with a mark in the place of each text that is filled in.
        mark = secrets.token_hex(16)
        marks = {path: f"{mark}{number}" for number, path in enumerate(content.parts)}
        marked = _dump(_filled(content.tree, marks, "body"))
        self._fixed = re.split(rf'"{mark}[0-9]+"', marked)
        """What stands between those texts."""

    @property
    def names(self) -> frozenset[str]:
        """The variables that the body reads or sets."""
        return self._templates.names

    @property
    def links(self) -> LinkValues:
        """The variables that stand for links to the tracker."""
        return self._templates.links

    def render(self, variables: dict[str, Any]) -> str:
        """Returns the body for one recipient, as JSON.

        Args:
            variables: The recipient's values by name, with `address`, `recipient` and `delivery_id`.

        Raises:
            RenderFailed: A template failed with these values, or exceeded a limit.
        """
        texts = self._templates.texts(variables).values()
        filled = zip(self._fixed, [*map(_dump, texts), ""], strict=True)
        return "".join(piece for pair in filled for piece in pair)

    def texts(self, variables: dict[str, Any]) -> list[str]:
        """Returns the texts with templates, filled in for one recipient; raises as `render`."""
        return list(self._templates.texts(variables).values())


def _dump(value: Any) -> str:  # noqa: ANN401 - JSON
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _parse(source: str) -> Any:  # noqa: ANN401 - JSON
    if len(source) > LONGEST_SOURCE:
        raise ValueError(f"body: it is longer than {LONGEST_SOURCE:,} characters")
    try:
        tree = json.loads(
            source, object_pairs_hook=_object, parse_float=_finite, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise ValueError("body: it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"body: it is not JSON: {error}") from None
    if not isinstance(tree, dict | list):
        raise ValueError("body: it must be a JSON object or a list")  # noqa: TRY004 - pydantic's kind of error
    _check_depth(tree, _DEEPEST)
    return tree


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) < len(pairs):
        seen = [key for key, _ in pairs]
        double = next(key for key in seen if seen.count(key) > 1)
        raise ValueError(f"body: the key {double!r} is there twice")
    for key in read:
        if any(sign in key for sign in _TEMPLATE_SIGNS):
            raise ValueError(f"body: {key!r} is a key, and keys are no templates")
        _check_text(f"the key {key!r}", key)
    return read


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"body: the number {text[:20]} is too large")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"body: {name} is not JSON")


def _check_depth(node: Any, room: int) -> None:  # noqa: ANN401 - JSON
    if room < 0:
        raise ValueError(f"body: it is nested more than {_DEEPEST} deep")
    if isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            _check_depth(child, room - 1)


def _check_text(path: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path}: it holds half a character (a lone surrogate)") from None


def _texts(node: Any, path: str = "body") -> Iterator[tuple[str, str]]:  # noqa: ANN401 - JSON
    if isinstance(node, str):
        yield path, node
    for name, child in _children(node, path):
        yield from _texts(child, name)


def _filled(node: Any, texts: Mapping[str, str], path: str) -> Any:  # noqa: ANN401 - JSON
    if isinstance(node, str):
        return texts.get(path, node)
    filled = [_filled(child, texts, name) for name, child in _children(node, path)]
    if isinstance(node, dict):
        return dict(zip(node, filled, strict=True))
    return filled if isinstance(node, list) else node


def _children(node: Any, path: str) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - JSON
    """Yields what is in a list or an object, each with a path that no other has."""
    if isinstance(node, dict):
        for key, child in node.items():
            yield f"{path}.{key}" if key.isidentifier() else f"{path}[{json.dumps(key)}]", child
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield f"{path}[{index}]", child
