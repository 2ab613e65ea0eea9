"""The language of templates: a part of Jinja, listed here name by name.

A template is checked before it is compiled. Nodes that are not listed are refused, with their line. Listed
nodes that can take time or memory are rewritten as calls of `worker.domain.template_operations`. These take
the context of a message, so Jinja cannot compute them at compile time. A template never reaches an attribute
or method of a Python object: a dot reads a mapping's item or a value of `loop`, and a listed call becomes one
of our operations.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext, Undefined
from jinja2.sandbox import SandboxedEnvironment
from jinja2.visitor import NodeTransformer

from worker.domain import template_operations as operations
from worker.domain.template_budget import OPERATORS, BudgetedContext, calculate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONGEST_SOURCE: Final = 500_000
"""The most characters of one part's source. Webmail cuts a message after 100,000."""
_MOST_TOKENS: Final = 10_000
"""The most tokens of one part inside its braces: compiling them takes a quarter of a second."""
_DEEPEST: Final = 40
"""How deep expressions and statements may be nested."""
_DEEPEST_BRACKETS: Final = 20
"""How deep brackets may be nested. Each takes 15 nested calls of Jinja's parser, and Python allows 1,000."""
_DEEPEST_LOOPS: Final = 8
"""How deep loops may be nested. Python allows 20."""
_LONGEST_NUMBER: Final = 20
"""The most digits of a number."""

_STATEMENTS: Final = (nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Assign)
_VALUES: Final = (nodes.Name, nodes.Const, nodes.Tuple, nodes.List, nodes.Dict, nodes.Pair, nodes.Keyword)
_READING: Final = (nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Filter, nodes.Test, nodes.Call)
_CHOOSING: Final = (nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not)
_ARITHMETIC: Final = (nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Pow)
_SIGNS: Final = (nodes.Neg, nodes.Pos, nodes.Concat)
_ALLOWED: Final = frozenset(_STATEMENTS + _VALUES + _READING + _CHOOSING + _ARITHMETIC + _SIGNS)
_ELSEWHERE: Final = (nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)
"""The nodes that read another template. There is no other template."""
_WORDS: Final = {
    nodes.AssignBlock: "set … endset",
    nodes.CallBlock: "call",
    nodes.FilterBlock: "filter",
    nodes.FromImport: "from … import",
    nodes.NSRef: "set with a dot",
    nodes.Scope: "autoescape",
}
"""How a template writes a node, if that is not the node's name."""

# Names that no template can write as the name of a filter.
_EACH, _TAKEN, _JOINED, _CONTAINS, _RANGE = "for", "()", "~", "in", "range()"


class Refused(Exception):
    """A source is not a template, or uses more than it may. Every fault has a line and a sentence."""

    def __init__(self, *faults: tuple[int, str]) -> None:
        """Takes the faults, at least one."""
        super().__init__(faults)
        self.faults: Final = faults


class Sandbox(SandboxedEnvironment):
    """Jinja with only the listed nodes, filters, tests and methods."""

    context_class = BudgetedContext
    intercepted_binops = OPERATORS

    def __init__(self, *, autoescape: bool = False, escape: Callable[[Any], str] | None = None) -> None:
        """Takes whether values are escaped as HTML, or how they are escaped otherwise."""
        super().__init__(
            undefined=StrictUndefined,
            autoescape=autoescape,
            finalize=escape,
            keep_trailing_newline=True,
            optimized=False,
        )
        self.globals = {}
        self.tests = dict(operations.TESTS)
        self.filters = {
            **operations.FILTERS,
            **{f".{name}": method for name, method in operations.METHODS.items()},
            _EACH: operations.each,
            _TAKEN: operations.taken,
            _JOINED: operations.joined,
            _CONTAINS: operations.contains,
            _RANGE: operations.numbers_to,
        }

    def read(self, source: str) -> tuple[nodes.Template, Template]:
        """Parses, checks and compiles a template.

        Args:
            source: The template's source.

        Returns:
            The compiled nodes, and the template.

        Raises:
            Refused: It is not a template, is too large or too deep, or uses something that is not listed.
        """
        try:
            self._check_tokens(source)
            tree = self.parse(source)
            _check_depth(tree)
            rewriter = _Rewriter()
            rewriter.visit(tree)
            if rewriter.faults:
                raise Refused(*rewriter.faults)
            return tree, self.from_string(tree)
        except TemplateSyntaxError as error:
            raise Refused((error.lineno, error.message or "it is not a template")) from error
        except (RecursionError, MemoryError, SyntaxError):
            # Python's own limits, if the source reaches them before ours.
            raise Refused((1, "it is nested too deeply")) from None

    def _check_tokens(self, source: str) -> None:
        if len(source) > LONGEST_SOURCE:
            raise Refused((1, f"it is longer than {LONGEST_SOURCE:,} characters"))
        tokens = depth = 0
        for line, kind, text in self.lex(source):
            tokens += kind != "whitespace"
            if kind == "operator":
                depth += (text in "([{") - (text in ")]}")
            if tokens > _MOST_TOKENS:
                raise Refused((line, f"it has more than {_MOST_TOKENS:,} words and signs inside its braces"))
            if depth > _DEEPEST_BRACKETS:
                raise Refused((line, f"brackets stand more than {_DEEPEST_BRACKETS} deep in each other"))
            if kind in {"integer", "float"} and _too_large(text):
                raise Refused((line, f"the number {text[:_LONGEST_NUMBER]} is too long or too large"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401 - Jinja's own
        """Calculates within the budget."""
        return calculate(context.budget, operator, left, right)

    def getattr(self, obj: Any, attribute: str) -> Any:  # noqa: ANN401 - Jinja's own
        """Reads the name after a dot: a mapping's item, or a value of `loop`."""
        if isinstance(obj, dict):
            return self.getitem(obj, attribute)
        if isinstance(obj, LoopContext) and attribute in operations.LOOP_VALUES:
            return getattr(obj, attribute)
        if isinstance(obj, Undefined):
            str(obj)  # an undefined value raises its error here
        if attribute.startswith("__"):
            return self.unsafe_undefined(obj, attribute)
        return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:  # noqa: ANN401 - Jinja's own
        """Reads an item of a text, list or mapping."""
        try:
            return obj[argument]
        except (TypeError, LookupError):
            return self.undefined(obj=obj, name=argument)

    def call(self, *_: Any, **__: Any) -> NoReturn:  # noqa: ANN401 - Jinja's own
        """Is never called, since every allowed call is rewritten."""
        raise SecurityError("nothing can be called")


def _too_large(number: str) -> bool:
    if len(number) > _LONGEST_NUMBER:
        return True
    return "x" not in number.lower() and "e" in number.lower() and math.isinf(float(number))


def _check_depth(tree: nodes.Template) -> None:
    stack: list[tuple[nodes.Node, int, int]] = [(tree, 0, 0)]
    while stack:
        node, depth, loops = stack.pop()
        loops += isinstance(node, nodes.For)
        if depth > _DEEPEST:
            raise Refused((node.lineno, f"it is nested more than {_DEEPEST} deep"))
        if loops > _DEEPEST_LOOPS:
            raise Refused((node.lineno, f"loops stand more than {_DEEPEST_LOOPS} deep in each other"))
        stack += [(child, depth + 1, loops) for child in node.iter_child_nodes()]


class _Rewriter(NodeTransformer):
    """Collects the faults, and replaces nodes that must be counted by our operations."""

    def __init__(self) -> None:
        self.faults: list[tuple[int, str]] = []

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:  # noqa: ANN401 - Jinja's own
        if type(node) not in _ALLOWED:
            word = _WORDS.get(type(node), type(node).__name__.lower())
            if isinstance(node, _ELSEWHERE):
                self._refuse(node, f"“{word}” needs another template; here a part stands alone")
            else:
                self._refuse(node, f"“{word}” cannot be used; there are if, for, set and expressions")
            return node
        return super().generic_visit(node, *args, **kwargs)

    def _refuse(self, node: nodes.Node, sentence: str) -> None:
        self.faults.append((node.lineno, sentence))

    def visit_Const(self, node: nodes.Const) -> nodes.Node:  # noqa: N802 - Jinja's way
        if isinstance(node.value, str) and any("\ud800" <= character <= "\udfff" for character in node.value):
            self._refuse(node, "a text holds half a character (a lone surrogate)")
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - Jinja's way
        if node.recursive:
            self._refuse(node, "“recursive” cannot be used")
        self.generic_visit(node)
        turn = [*node.body, *([node.test] if node.test else [])]
        weight = 1 + sum(1 for part in turn for _ in _all_nodes(part))
        node.iter = _operation(_EACH, cast("nodes.Expr", node.iter), nodes.Const(weight))
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:  # noqa: N802 - Jinja's way
        if node.name not in operations.FILTERS:
            listed = ", ".join(sorted(operations.FILTERS))
            self._refuse(node, f"No filter named {node.name!r}. There are: {listed}")
        return self._with_arguments(node)

    def visit_Test(self, node: nodes.Test) -> nodes.Node:  # noqa: N802 - Jinja's way
        if node.name not in operations.TESTS:
            listed = ", ".join(sorted(operations.TESTS))
            self._refuse(node, f"No test named {node.name!r}. There are: {listed}")
        return self._with_arguments(node)

    def visit_Call(self, node: nodes.Call) -> nodes.Node:  # noqa: N802 - Jinja's way
        self._with_arguments(node)
        called = node.node
        if isinstance(called, nodes.Getattr) and called.attr in operations.METHODS:
            return _operation(f".{called.attr}", called.node, *node.args, options=node.kwargs)
        if isinstance(called, nodes.Name) and called.name == "range" and node.args:
            return _operation(_RANGE, *node.args, options=node.kwargs)
        name = getattr(called, "attr", None) or getattr(called, "name", None) or "this"
        listed = ", ".join(sorted(operations.METHODS))
        self._refuse(
            node, f"calling “{name}” is unsafe; what can be called is range, and the methods {listed}"
        )
        return node

    def _with_arguments(self, node: nodes.Filter | nodes.Test | nodes.Call) -> nodes.Node:
        if (
            node.dyn_args
            or node.dyn_kwargs
            or any(cast("nodes.Keyword", option).key.startswith("_") for option in node.kwargs)
        ):
            self._refuse(node, "arguments cannot be given with * or **, nor by names that begin with _")
        return self.generic_visit(node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802 - Jinja's way
        self.generic_visit(node)
        searches = [operand for operand in node.ops if operand.op in {"in", "notin"}]
        if not searches:
            # Only the right side is counted: the shorter side decides the time.
            for operand in node.ops:
                operand.expr = _counted(operand.expr)
            return node
        if len(node.ops) > 1:
            self._refuse(node, "“in” cannot be a link in a chain of comparisons")
        found = _operation(_CONTAINS, searches[0].expr, node.expr)
        return found if searches[0].op == "in" else nodes.Not(found, lineno=node.lineno)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802 - Jinja's way
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _counted(node.node)
        else:
            node.arg = _counted(node.arg)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - Jinja's way
        self.generic_visit(node)
        return _operation(_JOINED, *node.nodes)

    def visit_List(self, node: nodes.List | nodes.Dict) -> nodes.Node:  # noqa: N802 - Jinja's way
        self.generic_visit(node)
        return _counted(node)

    visit_Dict = visit_List  # noqa: N815 - Jinja's way

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802 - Jinja's way
        self.generic_visit(node)
        return _counted(node) if node.ctx == "load" else node


def _operation(
    name: str, value: nodes.Expr, *arguments: nodes.Expr, options: list[nodes.Keyword] | None = None
) -> nodes.Filter:
    return nodes.Filter(value, name, list(arguments), options or [], None, None, lineno=value.lineno)


def _counted(value: nodes.Expr) -> nodes.Expr:
    return value if isinstance(value, nodes.Const) else _operation(_TAKEN, value)


def _all_nodes(node: nodes.Node) -> Iterator[nodes.Node]:
    yield node
    yield from node.find_all(nodes.Node)
