"""What one message may take while its templates are filled in: steps, sizes, and characters of output.

Every operation counts the size of what it is given and of what it makes, in characters and items, all the way
down. One that makes much of little works out the size before it begins. So a message takes at most
`MOST_STEPS`, whatever its templates hold, and time and memory follow from that.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Final

from jinja2.exceptions import SecurityError
from jinja2.runtime import Context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

MOST_STEPS: Final = 100_000
"""For one message. A newsletter with a loop over fifty lines takes about a thousand."""
LARGEST_VALUE: Final = 200_000
"""Characters and items of one value; a row of the recipients file has at most 131,072."""
_LARGEST_NUMBER: Final = 4096
"""Bits of a whole number: beyond that, one expression could keep a process busy for hours."""
_PER_OPERATION: Final = 4
"""Steps of an operation, beside those for the size of its values."""
PER_STEP: Final = 8
"""Characters or items that count as one step: the slowest, `urlencode`, needs 0.1 µs for each."""
_SEARCHED_PER_STEP: Final = 1_000
"""Comparisons of characters that count as one step, where one text is looked for in another."""
CONTAINERS: Final = (list, tuple, dict, range)
"""What has items, of all that a template can come by."""
NUMBERS: Final = (int, float)


class Budget:
    """What is left for one message."""

    __slots__ = ("characters", "steps")

    def __init__(self, characters: int) -> None:
        """Starts with all steps, and so many characters of output."""
        self.steps = MOST_STEPS
        self.characters = characters

    def spend(self, steps: int) -> None:
        """Counts steps.

        Raises:
            SecurityError: There are not so many left.
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
        """Counts what an operation has made, and returns it.

        Raises:
            SecurityError: It is too large, or the steps are used up.
        """
        if isinstance(result, int) and result.bit_length() > _LARGEST_NUMBER:
            raise SecurityError("a number is too large")
        self.take((result,))
        return result

    def search(self, text: Any, part: Any) -> None:  # noqa: ANN401 - any value of a template
        """Counts a search for a part, at the worst: every character against every one."""
        if isinstance(text, str) and isinstance(part, str):
            self.spend(len(text) * len(part) // _SEARCHED_PER_STEP)


class BudgetedContext(Context):
    """The context of parts of a message, with the message's budget."""

    budget: Budget


def check_size(size: int) -> None:
    """Refuses a value of a size.

    Raises:
        SecurityError: It is beyond `LARGEST_VALUE`.
    """
    if size > LARGEST_VALUE:
        raise SecurityError(f"a value is larger than {LARGEST_VALUE:,} characters and items")


def measure(value: Any) -> int:  # noqa: ANN401 - any value of a template
    """Returns the size of a container with all that it holds; counts no further than the limit."""
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
        Exception: Whatever Python raises for these operands.
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
"""The arithmetic operators, all of which go through `calculate`."""
