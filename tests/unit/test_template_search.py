"""What hypothesis finds no template of: one beyond the limits, or one that is refused without words."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.templates import VARIABLES, content
from worker.domain import template_budget, template_language, template_operations, templates
from worker.domain.templates import Renderer, RenderFailed

NAMES = st.sampled_from(["a", "long", "items", "mapping", "n", "nobody", "i", "s", "loop"])
LITERALS = st.sampled_from(
    [
        "'x'",
        "''",
        "'%99d'",
        "'%s%s'",
        "0",
        "1",
        "-1",
        "99999",
        "2.5",
        "true",
        "none",
        "[]",
        "{}",
        "range(999)",
    ]
)
FILTERS = st.sampled_from(sorted(template_operations.FILTERS))
METHODS = st.sampled_from(sorted(template_operations.METHODS))
SIGNS = st.sampled_from(["+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "not in", "and", "or"])
TESTS = st.sampled_from(sorted(template_operations.TESTS))


def _larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    arguments = st.lists(inner, max_size=3).map(", ".join)
    return st.one_of(
        st.tuples(inner, SIGNS, inner).map(lambda parts: f"({' '.join(parts)})"),
        st.tuples(inner, FILTERS, arguments).map(lambda p: f"{p[0]}|{p[1]}({p[2]})"),
        st.tuples(inner, METHODS, arguments).map(lambda p: f"({p[0]}).{p[1]}({p[2]})"),
        st.tuples(inner, TESTS).map(lambda p: f"({p[0]} is {p[1]})"),
        st.tuples(inner, inner, inner).map(lambda p: f"({p[0]} if {p[1]} else {p[2]})"),
        st.tuples(inner, inner).map(lambda p: f"({p[0]})[{p[1]}:]"),
        st.lists(inner, min_size=1, max_size=3).map(lambda p: f"[{', '.join(p)}]"),
        inner.map(lambda p: f"range({p})"),
    )


EXPRESSIONS = st.recursive(NAMES | LITERALS, _larger, max_leaves=6)


def _statements(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.lists(inner, max_size=4).map("".join),
        st.tuples(EXPRESSIONS, inner).map(lambda p: f"{{% for i in {p[0]} %}}{p[1]}{{% endfor %}}"),
        st.tuples(EXPRESSIONS, inner).map(lambda p: f"{{% if {p[0]} %}}{p[1]}{{% endif %}}"),
    )


SOURCES = st.recursive(
    st.one_of(
        EXPRESSIONS.map(lambda e: f"{{{{ {e} }}}}"),
        EXPRESSIONS.map(lambda e: f"{{% set s = {e} %}}"),
        st.just("words\n"),
    ),
    _statements,
    max_leaves=12,
)
FEW_STEPS = 2_000
SMALL = 3_000
"""Limits for the search, so that it comes near them often and quickly."""


@given(source=SOURCES)
@settings(max_examples=300)
def test_no_template_of_the_language_goes_beyond_the_limits(source: str) -> None:
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(template_budget, "MOST_STEPS", FEW_STEPS)
        patch.setattr(templates, "MOST_STEPS", FEW_STEPS)
        patch.setattr(template_budget, "LARGEST_VALUE", SMALL)
        patch.setattr(templates, "LONGEST_MESSAGE", SMALL)
        try:
            renderer = Renderer(content(text=f"x{source}", html=f"x{source}"))
        except RenderFailed:
            return
        sys.setprofile(count)
        try:
            rendered = renderer.render({**VARIABLES, "long": "é " * 500})
        except RenderFailed:
            pass
        else:
            assert len(rendered.text or "") + len(rendered.html or "") <= SMALL
        finally:
            sys.setprofile(None)
    assert calls < 40 * FEW_STEPS  # of Python's functions: the work itself, and not the time that it took


@given(source=st.text(st.sampled_from("{}%#()[]-'\"a.b|, 019e_x\n\\"), max_size=80))
def test_whatever_is_written_is_a_template_or_refused_in_words(source: str) -> None:
    for environment in (
        template_language.Sandbox(autoescape=False),
        template_language.Sandbox(autoescape=True),
    ):
        try:
            environment.read(source)
        except template_language.Refused as refused:
            assert all(line >= 1 and words for line, words in refused.faults)  # noqa: PT017 - it need not be
