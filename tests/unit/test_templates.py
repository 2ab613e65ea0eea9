"""Templates: what is found wrong before sending, and what cannot go wrong while sending."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.domain.content import EmailContent
from worker.domain.template_checks import check
from worker.domain.templates import Rendered, Renderer, RenderFailed

COLUMNS = ("address", "first_name", "orders")


def content(**parts: object) -> EmailContent:
    return EmailContent.model_validate(
        {"from": "news@example.org", "subject": "Hello", "text": "Hi"} | parts,
    )


def render(variables: dict[str, Any] | None = None, **parts: object) -> Rendered:
    return Renderer(content(**parts)).render(variables or {})


class TestCheck:
    @pytest.mark.parametrize(
        "text",
        [
            "{{ first_name }} {{ address }} {{ recipient }} {{ delivery_id }}",
            "{% set x = 1 %}{{ x }}",
            "{% for n in orders %}{{ loop.index }}{{ n }}{% endfor %}",
            "{% for n in range(3) %}{{ n }}{% endfor %}",
            "{{ nick | default('friend') }}",
            "{% if nick is defined %}{{ nick }}{% endif %}",
            "{{ nick if nick is defined else first_name }}",
            "no template at all, 100 % {plain}",
        ],
    )
    def test_a_template_with_known_variables_has_no_problem(self, text: str) -> None:
        assert check(content(text=text), COLUMNS) == []

    def test_an_unknown_variable_is_named_with_its_part_and_line(self) -> None:
        problems = check(
            content(subject="{{ frist_name }}", html="<p>\n\n{{ last_name }}{{ frist_name }}"), COLUMNS
        )
        assert problems == [
            f"{where}: unknown variable “{name}”; the recipients file has: address, first_name, orders, and "
            f"address, recipient, delivery_id are always there."
            for where, name in (
                ("subject, line 1", "frist_name"),
                ("html, line 3", "last_name"),
                ("html, line 3", "frist_name"),
            )
        ]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("a\n{{ first_name", "text, line 2: unexpected end of template"),
            ("\n{% if x %}", "text, line 2: Unexpected end of template"),
            ("\n\n{{ first_name | shout }}", "text, line 3: No filter named 'shout'."),
            ("{{ first_name is shouting }}", "No test named 'shouting'."),
            ("\n{% include 'other' %}", "text, line 2: “include” needs another template"),
            ("{% extends 'other' %}", "“extends” needs another template"),
            ("{% from 'other' import x %}", "“from … import” needs another template"),
            ("{{ lipsum() }}", "calling “lipsum” is unsafe"),
        ],
    )
    def test_a_problem_is_one_sentence_with_its_part_and_line(self, text: str, words: str) -> None:
        (problem,) = check(content(text=text), COLUMNS)
        assert words in problem
        assert problem.endswith(".")

    def test_each_unknown_variable_is_told_once_where_it_is_first_read(self) -> None:
        known = "address, x, and address, recipient, delivery_id are always there."
        assert check(content(text="a\n{{ b }}{{ b }}\n{{ a }}{{ b }}"), ("x", "address")) == [
            f"text, line 2: unknown variable “b”; the recipients file has: {known}",
            f"text, line 3: unknown variable “a”; the recipients file has: {known}",
        ]
        (told,) = check(content(text="{{ b }}"), ())
        assert "the recipients file has: no columns, and address" in told

    @pytest.mark.parametrize("name", ["recipient", "delivery_id"])
    def test_a_column_named_as_a_number_of_sendoff_is_told_to_be_renamed(self, name: str) -> None:
        assert check(content(text=f"{{{{ {name} }}}}"), ("address", name)) == [
            (
                f"text, line 1: the column “{name}” cannot be used in templates, as {name} always is a number"
                " given by Sendoff; rename the column."
            )
        ]

    @pytest.mark.parametrize(
        "guard",
        ["{{ b | default('') }}", "{{ b | d('') }}", "{{ b is defined }}", "{{ b is undefined }}"],
    )
    def test_a_variable_that_the_template_does_without_may_be_missing(self, guard: str) -> None:
        assert check(content(text=f"{guard}{{{{ b }}}}"), COLUMNS) == []

    def test_a_test_or_a_filter_of_another_kind_guards_nothing(self) -> None:
        for text in ("{{ b | upper }}", "{{ b is none }}", "{{ 'x' | default(b) }}"):
            (told,) = check(content(text=text), COLUMNS)
            assert "unknown variable “b”" in told

    @pytest.mark.parametrize(
        ("text", "word"),
        [
            ("{% extends 'o' %}", "extends"),
            ("{% include 'o' %}", "include"),
            ("{% import 'o' as x %}", "import"),
            ("{% from 'o' import x %}", "from … import"),
        ],
    )
    def test_a_template_that_asks_for_another_is_told_so(self, text: str, word: str) -> None:
        assert check(content(text=text), COLUMNS) == [
            f"text, line 1: “{word}” needs another template; here a part stands alone."
        ]

    def test_every_part_of_a_content_is_checked(self) -> None:
        wrong = "{{ nobody }}"
        problems = check(
            content(subject=wrong, text=wrong, html=wrong, to_name=wrong, headers={"X-A": wrong}), COLUMNS
        )
        assert [problem.split(",")[0] for problem in problems] == [
            "subject",
            "to_name",
            "text",
            "html",
            "headers.X-A",
        ]

    def test_a_column_that_a_built_in_variable_hides_is_told_where_it_is_used(self) -> None:
        (problem,) = check(content(text="{{ recipient }}"), (*COLUMNS, "recipient"))
        assert "the column “recipient” cannot be used in templates" in problem
        assert check(content(text="{{ address }}"), (*COLUMNS, "recipient")) == []


class TestRender:
    def test_every_part_is_rendered_and_only_html_is_escaped(self) -> None:
        rendered = render(
            {"name": "Zoë & Bob"},
            subject="Hi {{ name }}",
            text="Dear {{ name }},\n",
            html="<b>{{ name }}</b>",
            to_name="{{ name }}",
            headers={"X-Who": " {{ name }} "},
        )
        assert rendered.subject == "Hi Zoë & Bob"
        assert rendered.text == "Dear Zoë & Bob,\n"
        assert rendered.html == "<b>Zoë &amp; Bob</b>"
        assert rendered.to_name == "Zoë & Bob"
        assert rendered.headers == {"X-Who": "Zoë & Bob"}

    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def test_values_are_never_templates(self, value: str) -> None:
        hostile = "{{ 7 * 7 }}{% for x in y %}" + value
        rendered = render({"v": hostile}, text="[{{ v }}]", html="[{{ v }}]")
        assert rendered.text == f"[{hostile}]"
        assert rendered.html is not None
        assert "<" not in rendered.html
        assert "{{ 7 * 7 }}" in rendered.html

    @given(st.text())
    def test_no_value_breaks_out_of_a_header(self, value: str) -> None:
        try:
            rendered = render({"v": value}, subject="{{ v }}", headers={"X-A": "{{ v }}"})
        except RenderFailed:
            return
        for line in (rendered.subject, rendered.headers.get("X-A", "")):
            assert len(line.splitlines()) <= 1
            line.encode()

    @pytest.mark.parametrize(
        "value", ["a\r\nBcc: eve@example.org", "a\n", "a\r", "a\x00", "a\x0b", "a\x85", "a\u2029"]
    )
    def test_line_breaks_in_a_header_are_refused(self, value: str) -> None:
        for part in ({"subject": "{{ v }}"}, {"to_name": "{{ v }}"}, {"headers": {"X-A": "{{ v }}"}}):
            with pytest.raises(RenderFailed, match="must not stand in a header"):
                render({"v": value}, **part)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("\n{{ missing }}", "text, line 2: 'missing' is undefined."),
            ("{{ v.nothing }}", "no attribute 'nothing'."),
            (
                "\n\n{{ v.__class__.__mro__ }}",
                "text, line 3: access to attribute '__class__' of 'str' object is unsafe.",
            ),
            ("{{ ''.__class__.__base__.__subclasses__() }}", "unsafe"),
            ("{{ '{0.__class__}'.format(v) }}", "unsafe"),
            ("{{ items.append(1) }}", "unsafe"),
            ("{% for i in range(10**7) %}{% endfor %}", "Range too big"),
            ("{{ 10 ** 10000 }}", "the result of ** is too large."),
            ("{{ v * 10000000 }}", "the result of * is too large."),
            ("{{ 10000000 * items }}", "the result of * is too large."),
            ("{{ 1 / 0 }}", "division by zero."),
            ("{{ v + 1 }}", "text, line 1: "),
            ("{{ lone }}", "surrogates not allowed"),
        ],
    )
    def test_what_fails_becomes_one_sentence(self, text: str, words: str) -> None:
        with pytest.raises(RenderFailed) as failure:
            render({"v": "x", "items": [1], "lone": "\ud800"}, text=text)
        assert words in str(failure.value)
        assert str(failure.value).startswith("text")

    def test_arithmetic_within_bounds_is_allowed(self) -> None:
        rendered = render({"v": "ab", "n": 3}, text="{{ v * n }} {{ n * 2.5 }} {{ 2 ** n }} {{ -n * v }}")
        assert rendered.text == "ababab 7.5 8 "

    def test_a_broken_template_is_not_compiled(self) -> None:
        with pytest.raises(RenderFailed, match="html, line 2"):
            Renderer(content(html="\n{% if %}"))

    def test_a_body_keeps_apart_what_its_author_wrote_in_one_stretch(self) -> None:
        renderer = Renderer(content(text="Dear {{ n }},\nbye", html="<b>{{ n }}</b>", subject="Hi {{ n }}"))
        assert renderer.fixed == {"text": ["Dear ", ",\nbye"], "html": ["<b>", "</b>"]}
        assert renderer.render({"n": "Ana"}).text_pieces == ["Dear ", "Ana", ",\nbye"]

    def test_a_part_that_is_not_there_is_none_and_a_name_empty(self) -> None:
        rendered = render()
        assert (rendered.html, rendered.html_pieces, rendered.to_name) == (None, None, "")
        assert render(text=None, html="<b>").text is None

    def test_a_tab_in_a_header_is_a_space(self) -> None:
        assert render({"v": " a\tb "}, subject="{{ v }}").subject == "a b"

    def test_a_line_break_in_a_header_is_told_with_its_part(self) -> None:
        with pytest.raises(RenderFailed) as failure:
            render({"v": "a\nb"}, headers={"X-A": "{{ v }}"})
        assert str(failure.value) == (
            "headers.X-A: a value holds a line break or another control character ('\\n'), which must not"
            " stand in a header."
        )

    def test_an_error_without_words_is_told_by_its_kind(self) -> None:
        class Silent:
            def __str__(self) -> str:
                raise KeyError

        with pytest.raises(RenderFailed, match=r"^text, line 2: KeyError was raised\.$"):
            render({"v": Silent()}, text="a\n{{ v }}")
        with pytest.raises(RenderFailed, match=r"^text: .*surrogates not allowed\.$"):
            render({"v": "\ud800"}, text="{{ v }}")


def test_a_constant_that_cannot_be_computed_is_a_sentence() -> None:
    content = EmailContent.model_validate(
        {"from": "a@example.org", "subject": "s", "text": "{{ (a if ('x')['x':] else a) }}"}
    )
    (problem,) = check(content, ["a"])
    assert problem.startswith("text: ")
