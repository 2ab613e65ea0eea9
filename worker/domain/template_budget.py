"""Limits what one message may use while its templates are rendered: steps, sizes, characters of output.

Every operation counts the size of its input and output, in characters and items, with all nested items. An
operation with a much larger output computes the size before it begins. So a message uses at most
`MOST_STEPS`, with any template, and this bounds time and memory.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Final

from jinja2.exceptions import SecurityError
from jinja2.runtime import Context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

MOST_STEPS: Final = 100_000
"""The most steps of one message. A newsletter with a loop over fifty lines uses about a thousand."""
LARGEST_VALUE: Final = 200_000
"""The most characters and items of one value. A row of the recipients file has at most 131,072."""
_LARGEST_NUMBER: Final = 4096
"""The most bits of a whole number. With more, one expression could take hours."""
_PER_OPERATION: Final = 4
"""Steps of an operation, without those for the size of its values."""
PER_STEP: Final = 8
"""Characters or items that count as one step. The slowest operation, `urlencode`, needs 0.1 µs for each."""
_SEARCHED_PER_STEP: Final = 1_000
"""Comparisons of characters that count as one step in a search for a text."""
CONTAINERS: Final = (list, tuple, dict, range)
"""The types of a template's values that have items."""
NUMBERS: Final = (int, float)


class Budget:
    """The remaining steps and characters of one message."""

    __slots__ = ("characters", "steps")

    def __init__(self, characters: int) -> None:
        """Starts with all steps, and takes the characters of output."""
        self.steps = MOST_STEPS
        self.characters = characters

    def spend(self, steps: int) -> None:
        """Counts steps.

        Raises:
            SecurityError: Fewer steps are left.
        """
        self.steps -= steps
        if self.steps < 0:
            raise SecurityError(f"the message takes more than {MOST_STEPS:,} steps")

    def take(self, values: Iterable[Any]) -> int:
        """Counts an operation on values, and returns their size.

        Raises:
            SecurityError: They are too large together, or the steps are used up.
        """
        size = 0
        for value in values:
            if isinstance(value, str):
                size += len(value)
            elif isinstance(value, CONTAINERS):
                size += measure(value)
        check_size(size)
        self.spend(_PER_OPERATION + size // PER_STEP)
        return size

    def keep(self, result: Any) -> Any:  # noqa: ANN401 - any value of a template
        """Counts the result of an operation, and returns it.

        Raises:
            SecurityError: It is too large, or the steps are used up.
        """
        if isinstance(result, int) and result.bit_length() > _LARGEST_NUMBER:
            raise SecurityError("a number is too large")
        self.take((result,))
        return result

    def search(self, text: Any, part: Any) -> None:  # noqa: ANN401 - any value of a template
        """Counts a search for a part in the worst case: each character is compared with each."""
        if isinstance(text, str) and isinstance(part, str):
            self.spend(len(text) * len(part) // _SEARCHED_PER_STEP)


class BudgetedContext(Context):
    """Jinja's context for the parts of a message, with the message's budget."""

    budget: Budget


def check_size(size: int) -> None:
    """Refuses a value that is too large.

    Raises:
        SecurityError: The size is above `LARGEST_VALUE`.
    """
    if size > LARGEST_VALUE:
        raise SecurityError(f"a value is larger than {LARGEST_VALUE:,} characters and items")


def measure(value: Any) -> int:  # noqa: ANN401 - any value of a template
    """Returns the size of a container with all nested items; stops counting at the limit."""
    size = 0
    stack = [value]
    while stack and size <= LARGEST_VALUE:
        item = stack.pop()
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, CONTAINERS):
            size += len(item)
            if size > LARGEST_VALUE or isinstance(item, range):
                continue
            stack += item
            if isinstance(item, dict):
                stack += item.values()
    return size


def calculate(budget: Budget, sign: str, left: Any, right: Any) -> Any:  # noqa: ANN401 - any values of a template
    """Applies an arithmetic operator, which also joins and repeats texts and lists.

    Raises:
        SecurityError: The result would be too large, or `%` would format a text.
        Exception: Any error that Python raises for these operands.
    """
    if isinstance(left, NUMBERS) and isinstance(right, NUMBERS):
        if sign == "**" and isinstance(left, int) and isinstance(right, int):
            _bound(left.bit_length() * right, _LARGEST_NUMBER, sign)
        result = _OPERATORS[sign](left, right)
        if isinstance(result, int):
            _bound(result.bit_length(), _LARGEST_NUMBER, sign)
        return result
    if sign == "%" and isinstance(left, str):
        raise SecurityError("% is for numbers; the filter “format” fills in texts")
    budget.take((left, right))
    if sign == "*":
        for many, times in ((left, right), (right, left)):
            if isinstance(many, (str, list, tuple)) and isinstance(times, int):
                _bound(len(many) * times, LARGEST_VALUE, sign)
    return budget.keep(_OPERATORS[sign](left, right))


def _bound(size: int, limit: int, sign: str) -> None:
    if size > limit:
        raise SecurityError(f"the result of {sign} is too large")


_OPERATORS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
}
OPERATORS: Final = frozenset(_OPERATORS)
"""The arithmetic operators. All of them use `calculate`."""
