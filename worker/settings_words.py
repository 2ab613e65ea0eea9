"""What values a setting takes, in words: for the page of settings and sentences about wrong ones. Pure."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import SecretStr

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

_FORMS: Final[Mapping[type, str]] = {
    bool: "`true` or `false`",
    str: "text",
    Path: "a path",
    SecretStr: "a secret",
    dict: "a JSON object of texts",
}
_OWN_WORDS: Final = frozenset({"value_error", "assertion_error"})
"""The kinds of errors that come with a sentence of ours."""
_LONGEST_SHOWN: Final = 60


def takes(field: FieldInfo) -> str:
    """Returns what a setting takes, such as “a whole number from 1 to 100000”."""
    kinds = get_args(field.annotation)
    return _form(kinds[0] if NoneType in kinds else field.annotation, field.metadata)


def complaint(error: ErrorDetails, fields: Mapping[str, FieldInfo]) -> str:
    """Returns what is wrong with a setting: a sentence without its name and its stop.

    Args:
        error: An error of pydantic, with its input.
        fields: The settings by name.
    """
    if error["type"] in _OWN_WORDS or not error["loc"]:
        return error["msg"].removeprefix("Value error, ")
    field = fields[str(error["loc"][0])]
    shown = str(error["input"])
    if SecretStr in get_args(field.annotation) or not shown or len(shown) > _LONGEST_SHOWN:
        return f"it must be {takes(field)}"
    if len(error["loc"]) > 1:
        return f"it must be {takes(field)}; “{shown}” is not one of them"
    return f"“{shown}” is not {takes(field)}"


def _form(annotation: Any, metadata: Iterable[object]) -> str:  # noqa: ANN401 - whatever a field has
    origin = get_origin(annotation) or annotation
    if choices := _choices(annotation):
        return _choice(choices)
    if origin is tuple:
        return _list(get_args(annotation)[0], metadata)
    if origin in (int, float):
        return ("a whole number" if origin is int else "a number") + _bounds(metadata)
    marks = list(metadata)
    return _FORMS[origin] + _like(marks) + _filled(marks)


def _list(item: Any, metadata: Iterable[object]) -> str:  # noqa: ANN401 - whatever a field has
    marks: tuple[object, ...] = ()
    if hasattr(item, "__metadata__"):
        item, marks = item.__origin__, tuple(_flat(item.__metadata__))
    if choices := _choices(item):
        return f"a list of {_choice(choices)}"
    each = "numbers" if item is float else "texts"
    return f"a list of {each}{_bounds(marks)}{_like(marks)}{_filled(metadata)}"


def _like(marks: Iterable[object]) -> str:
    pattern = next((found for mark in marks if (found := getattr(mark, "pattern", None))), None)
    return f" like `{pattern}`" if pattern else ""


def _filled(metadata: Iterable[object]) -> str:
    return ", not empty" if any(getattr(mark, "min_length", 0) for mark in metadata) else ""


def _flat(marks: Iterable[object]) -> Iterable[object]:
    for mark in marks:
        yield from getattr(mark, "metadata", None) or (mark,)


def _bounds(metadata: Iterable[object]) -> str:
    low = high = ""
    for mark in _flat(metadata):
        match mark:
            case Ge(ge=least):
                low = f" from {least}"
            case Gt(gt=beyond):
                low = f" above {beyond}"
            case Le(le=most):
                high = f" to {most}"
    return f"{low}{high}" if low.startswith(" from") or not high else f"{low} and up{high}"


def _choices(annotation: Any) -> list[str]:  # noqa: ANN401 - whatever a field has
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [str(each.value) for each in annotation] if _is_enum(annotation) else []


def _is_enum(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Enum)


def _choice(values: Sequence[str]) -> str:
    shown = [f"`{value}`" if value else "empty" for value in values]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"
