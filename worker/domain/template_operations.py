"""The operations of a template: filters, tests, methods and operators, within the budget."""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from jinja2 import filters, pass_context
from jinja2 import tests as jinja_tests
from jinja2.exceptions import SecurityError, UndefinedError
from jinja2.runtime import LoopContext, Undefined, markup_join, str_join
from jinja2.sandbox import safe_range
from jinja2.utils import object_type_repr
from markupsafe import Markup, escape, soft_str

from worker.domain.template_budget import CONTAINERS, NUMBERS, PER_STEP, check_size, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from worker.domain.template_budget import BudgetedContext

_FINEST: Final = 15
"""The most places after the point for `round`: a float has no more."""
_FORMAT: Final = re.compile(r"(?:[^%]|%%|%[-+ 0#]{0,5}\d{0,2}(?:\.\d{0,2})?[sdifeEgGx])*")
"""A printf format. The width and the precision of a field are at most 99."""
_FIELD: Final = 512
"""Characters that a field of such a format may add: a float may have 309 digits and 99 places."""


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a filter from a function of the context and values."""

    @pass_context
    def bounded(context: BudgetedContext, /, *values: Any, **options: Any) -> Any:  # noqa: ANN401 - Jinja's own
        budget = context.budget
        budget.take(chain(values, options.values()) if options else values)
        return budget.keep(function(context, *values, **options))

    return bounded


def _plain(function: Callable[[Any], Any]) -> Callable[..., Any]:
    return _bounded(lambda _, value: function(value))


def _format(_: BudgetedContext, value: Any, *items: Any) -> Any:  # noqa: ANN401 - any values of a template
    text = soft_str(value)
    if not _FORMAT.fullmatch(text):
        raise SecurityError("a format has fields such as %s, %-20s, %03d or %.2f, at most 99 wide and fine")
    check_size(len(items) * _FIELD)
    return text % items


def _replace(context: BudgetedContext, text: Any, old: Any, new: Any, count: int = -1) -> Any:  # noqa: ANN401
    if context.eval_ctx.autoescape and any(isinstance(part, Markup) for part in (text, old, new)):
        text, old, new = escape(text), escape(old), escape(new)
    else:
        text, old, new = str(text), str(old), str(new)
    context.budget.search(text, old)
    places = text.count(old) if count < 0 else min(text.count(old), count)
    check_size(len(text) + places * len(new))
    return text.replace(old, new, count)


def _join(context: BudgetedContext, items: Any, between: Any = "") -> Any:  # noqa: ANN401 - any values of a template
    items = list(items)
    between = soft_str(between)
    check_size(len(items) * len(between))
    if context.eval_ctx.autoescape and any(isinstance(part, Markup) for part in (between, *items)):
        return escape(between).join(items)
    return str(between).join(map(str, items))


def _round(_: BudgetedContext, value: Any, precision: int = 0, method: Any = "common") -> Any:  # noqa: ANN401
    _numbers(value)
    if abs(precision) > _FINEST:
        raise SecurityError(f"a number is rounded to at most {_FINEST} places")
    return filters.do_round(value, precision, method)


def _sort(context: BudgetedContext, items: Any, reverse: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002 - Jinja's order
    # Each item is compared log2(n) times.
    halvings = len(items).bit_length()
    context.budget.spend(len(items) * halvings + measure(items) * halvings // PER_STEP)
    return filters.do_sort(context.environment, items, reverse)


def _sum(context: BudgetedContext, items: Any) -> Any:  # noqa: ANN401 - any value of a template
    context.budget.spend(len(items))
    _numbers(*items)
    return sum(items)


def _max(context: BudgetedContext, items: Any) -> Any:  # noqa: ANN401 - any value of a template
    context.budget.spend(len(items))
    return filters.do_max(context.environment, items)


def _min(context: BudgetedContext, items: Any) -> Any:  # noqa: ANN401 - any value of a template
    context.budget.spend(len(items))
    return filters.do_min(context.environment, items)


def _title(context: BudgetedContext, text: Any) -> str:  # noqa: ANN401 - any value of a template
    text = soft_str(text)
    context.budget.spend(len(text) // 2)  # every second character may be a word
    return filters.do_title(text)


def _numbers(*values: Any) -> None:  # noqa: ANN401 - any values of a template
    for value in values:
        if isinstance(value, Undefined):
            str(value)  # an undefined value raises its error here
        if not isinstance(value, NUMBERS):
            raise TypeError(f"{object_type_repr(value)} is not a number; the filters int and float make one")


def _trim(context: BudgetedContext, text: Any, characters: Any = None) -> Any:  # noqa: ANN401 - any values of a template
    text = soft_str(text)
    context.budget.search(text, characters)
    return text.strip(characters)


FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    "abs": _plain(abs),
    "capitalize": _plain(filters.do_capitalize),
    "count": _plain(len),
    "d": _bounded(lambda _, *values, **options: filters.do_default(*values, **options)),
    "default": _bounded(lambda _, *values, **options: filters.do_default(*values, **options)),
    "e": _plain(escape),
    "escape": _plain(escape),
    "first": _bounded(lambda context, items: filters.sync_do_first(context.environment, items)),
    "float": _bounded(lambda _, value, default=0.0: filters.do_float(value, default)),
    "format": _bounded(_format),
    "int": _bounded(lambda _, value, default=0: filters.do_int(value, default)),
    "join": _bounded(_join),
    "last": _bounded(lambda context, items: filters.do_last(context.environment, items)),
    "length": _plain(len),
    "lower": _plain(filters.do_lower),
    "max": _bounded(_max),
    "min": _bounded(_min),
    "replace": _bounded(_replace),
    "reverse": _plain(lambda value: value[::-1]),
    "round": _bounded(_round),
    "safe": _plain(filters.do_mark_safe),
    "sort": _bounded(_sort),
    "string": _plain(soft_str),
    "sum": _bounded(_sum),
    "title": _bounded(_title),
    "trim": _bounded(_trim),
    "truncate": _bounded(lambda context, *v, **o: filters.do_truncate(context.environment, *v, **o)),
    "upper": _plain(filters.do_upper),
    "urlencode": _plain(filters.do_urlencode),
}
"""The filters that templates may use, as Jinja documents them, without the options that read attributes."""


def _number_test(test: Callable[..., bool]) -> Callable[..., bool]:
    def checked(*values: Any) -> bool:  # noqa: ANN401 - any values of a template
        _numbers(*values)  # with a text, `%` would format it
        return test(*values)

    return checked


TESTS: Final[Mapping[str, Callable[..., bool]]] = {
    "boolean": jinja_tests.test_boolean,
    "defined": jinja_tests.test_defined,
    "divisibleby": _number_test(jinja_tests.test_divisibleby),
    "even": _number_test(jinja_tests.test_even),
    "false": jinja_tests.test_false,
    "float": jinja_tests.test_float,
    "integer": jinja_tests.test_integer,
    "mapping": jinja_tests.test_mapping,
    "none": jinja_tests.test_none,
    "number": jinja_tests.test_number,
    "odd": _number_test(jinja_tests.test_odd),
    "string": jinja_tests.test_string,
    "true": jinja_tests.test_true,
    "undefined": jinja_tests.test_undefined,
}
"""The tests that templates may use."""


def _method(kind: type, name: str) -> Callable[..., Any]:
    def call(context: BudgetedContext, value: Any, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - Jinja's own
        if isinstance(value, Undefined):
            str(value)  # an undefined value raises its error here
        if not isinstance(value, kind):
            raise UndefinedError(f"{object_type_repr(value)} has no method {name!r}")
        for argument in chain(arguments, options.values()):
            context.budget.search(value, argument)
        result = getattr(value, name)(*arguments, **options)
        return list(result) if kind is dict and name != "get" else result

    return _bounded(call)


METHODS: Final[Mapping[str, Callable[..., Any]]] = (
    {
        name: _method(str, name)
        for name in (
            *("capitalize", "endswith", "lower", "lstrip", "removeprefix", "removesuffix", "rstrip"),
            *("split", "splitlines", "startswith", "strip", "title", "upper"),
        )
    }
    | {name: _method(dict, name) for name in ("get", "items", "keys", "values")}
    | {name: _method(LoopContext, name) for name in ("changed", "cycle")}
    | {"replace": _bounded(_replace)}
)
"""The methods of texts, mappings and `loop` that templates may call. `replace` is the filter."""

LOOP_VALUES: Final = frozenset(
    ("index", "index0", "revindex", "revindex0", "first", "last", "length", "previtem", "nextitem")
)
"""The values of `loop` that a template may read."""


@pass_context
def each(context: BudgetedContext, items: Any, weight: int) -> Any:  # noqa: ANN401 - any value of a template
    """Counts a whole loop at its beginning, and returns its items.

    Args:
        context: The part's context.
        items: The items of the loop.
        weight: The steps of one turn.
    """
    if not isinstance(items, (str, *CONTAINERS)):
        iter(items)  # Python's own words, if there are any
        raise SecurityError(f"{object_type_repr(items)} cannot be looped over")
    context.budget.spend(len(items) * weight)
    return items


@pass_context
def taken(context: BudgetedContext, value: Any) -> Any:  # noqa: ANN401 - any value of a template
    """Counts a value that will be compared, sliced or put into a list, and returns it."""
    context.budget.take((value,))
    return value


def _joined(context: BudgetedContext, *values: Any) -> Any:  # noqa: ANN401 - any values of a template
    return (markup_join if context.eval_ctx.autoescape else str_join)(values)


def _contains(context: BudgetedContext, items: Any, item: Any) -> bool:  # noqa: ANN401 - any values of a template
    context.budget.search(items, item)
    return item in items


joined: Final = _bounded(_joined)
"""The operator `~`."""
contains: Final = _bounded(_contains)
"""The operator `in`, with its operands swapped."""
numbers_to: Final = _bounded(lambda _, *limits: safe_range(*limits))
"""The function `range`."""
