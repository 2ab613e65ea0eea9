"""What no template may do: take memory, keep the process, reach Python.

The attacks run in a process of their own whose memory and processor time are limited, so that one which
gets through ends that process, and not the tests.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.sends import Send
from worker.channels.email.channel import EmailChannel
from worker.channels.email.smtp import SmtpPool
from worker.channels.email.timeouts import Timeouts
from worker.channels.protocol import Granted
from worker.domain import template_budget, template_language, template_operations, templates
from worker.domain.content import EmailContent
from worker.domain.templates import Renderer, RenderFailed, ValueUnfit, check, try_out
from worker.domain.verdicts import Failed

ROOT = Path(__file__).parents[2]
MEMORY = 512 * 2**20
PROCESSOR_SECONDS = 15
VARIABLES: dict[str, Any] = {
    "a": "a" * 1000,
    "long": "é " * 60_000,
    "quotes": "'" * 120_000,
    "comments": "<!---->" * 17_000,
    "items": [1, 2, 3],
    "mapping": {"k": "v"},
    "n": 7,
}

STEPS = "takes more than 100,000 steps"
VALUE = "a value is larger than 200,000"
DEEP = "nested"

ATTACKS: dict[str, tuple[str, str]] = {
    # One expression makes much of little.
    "center": ("{{ 'x'|center(2000000000) }}", "No filter named 'center'"),
    "indent": ("{{ 'x'|indent(2000000000, true) }}", "No filter named 'indent'"),
    "wordwrap": ("{{ long|wordwrap(1, true, long) }}", "No filter named 'wordwrap'"),
    "batch": ("{{ items|batch(2000000000, 'x')|list }}", "No filter named"),
    "slice": ("{{ items|slice(2000000000)|list }}", "No filter named"),
    "urlize": ("{{ long|urlize(rel=long) }}", "No filter named 'urlize'"),
    "tojson": ("{{ items|tojson(indent=2000000000) }}", "No filter named 'tojson'"),
    "pprint": ("{{ long|pprint }}", "No filter named 'pprint'"),
    "xmlattr": ("{{ mapping|xmlattr }}", "No filter named 'xmlattr'"),
    "striptags": ("{{ comments|striptags }}", "No filter named 'striptags'"),
    "attr": ("{{ ''|attr('join') }}", "No filter named 'attr'"),
    "map": ("{{ items|map('center', 2000000000)|list }}", "No filter named"),
    "groupby": ("{{ items|groupby('x') }}", "No filter named 'groupby'"),
    "width of %": ("{{ '%2000000000d' % 1 }}", "% is for numbers"),
    "star of %": ("{{ '%*d' % (2000000000, 1) }}", "% is for numbers"),
    "width of format": ("{{ '%2000000000d'|format(1) }}", "at most 99 wide"),
    "precision of format": ("{{ '%.2000000000f'|format(1) }}", "at most 99 wide"),
    "star of format": ("{{ '%*d'|format(2000000000, 1) }}", "at most 99 wide"),
    "name of format": ("{{ '%(x)2000000000d'|format(x=1) }}", "unexpected keyword"),
    "% inside a test": ("{{ '%2000000000d' is odd }}", "is not a number"),
    "% inside divisibleby": ("{{ '%2000000000d' is divisibleby 3 }}", "is not a number"),
    "method format": ("{{ '{:2000000000}'.format(1) }}", "calling “format” is unsafe"),
    "method format_map": ("{{ '{x:2000000000}'.format_map(mapping) }}", "calling “format_map” is unsafe"),
    "method ljust": ("{{ 'x'.ljust(2000000000) }}", "calling “ljust” is unsafe"),
    "method zfill": ("{{ 'x'.zfill(2000000000) }}", "calling “zfill” is unsafe"),
    "method center": ("{{ 'x'['center'](2000000000) }}", "calling “this” is unsafe"),
    "method expandtabs": ("{{ '\t'.expandtabs(2000000000) }}", "calling “expandtabs” is unsafe"),
    "method join": ("{{ long.join(long) }}", "calling “join” is unsafe"),
    "method translate": ("{{ a.translate({97: long}) }}", "calling “translate” is unsafe"),
    "method encode": ("{{ a.encode('idna') }}", "calling “encode” is unsafe"),
    "method to_bytes": ("{{ (1).to_bytes(2000000000, 'big') }}", "calling “to_bytes” is unsafe"),
    "replace": ("{{ long[:60000]|replace('', long[:60000]) }}", VALUE),
    "method replace": ("{{ long[:60000].replace('', long[:60000]) }}", VALUE),
    "replace by name": ("{{ a.replace(old='', new=long) }}", VALUE),
    "join": ("{{ range(50000)|join(long[:99999]) }}", VALUE),
    "repeat": ("{{ 'x' * 2000000000 }}", "the result of * is too large"),
    "repeat a list": ("{{ [1] * 2000000000 }}", "the result of * is too large"),
    "repeat by true": ("{{ (long * true) * 99999 }}", "the result of * is too large"),
    "concatenate": ("{{ " + " ~ ".join(["long"] * 3000) + " }}", VALUE),
    "add": ("{% set s = long %}" + "{% set s = s + s %}" * 40, VALUE),
    "double": ("{% set s = 'x' %}" + "{% set s = s ~ s %}" * 60, VALUE),
    "double by format": ("{% set s = 'x' %}" + "{% set s = '%s%s'|format(s, s) %}" * 60, VALUE),
    "double by replace": ("{% set s = 'x' %}" + "{% set s = s|replace('x', 'xx') %}" * 60, VALUE),
    "double by join": ("{% set s = 'x' %}" + "{% set s = [s, s]|join %}" * 60, VALUE),
    "double a list": ("{% set s = [1] %}" + "{% set s = s + s %}" * 60, VALUE),
    "double by nesting": ("{% set s = [1] %}" + "{% set s = [s, s] %}" * 60 + "{{ s }}", VALUE),
    "double by tuples": ("{% set s = 1 %}" + "{% set s = (s, s) %}" * 60 + "{{ s == s }}", VALUE),
    "double by mappings": ("{% set s = 1 %}" + "{% set s = {1: s, 2: s} %}" * 60 + "{{ s }}", VALUE),
    "escape again and again": ("{{ quotes|e }}", VALUE),
    "urlencode": ("{{ long|urlencode }}", VALUE),
    # Numbers.
    "power": ("{{ 10 ** 100000000 }}", "the result of ** is too large"),
    "powers": ("{{ 9 ** (9 ** 9) }}", "the result of ** is too large"),
    "products": ("{% set s = 10 ** 300 %}" + "{% set s = s * s %}" * 60, "the result of * is too large"),
    "round": ("{{ 1|round(-2000000000) }}", "rounded to at most 15 places"),
    "round up": ("{{ 1.5|round(2000000000, 'ceil') }}", "rounded to at most 15 places"),
    "round a text": ("{{ 'x'|round(99, 'ceil') }}", "is not a number"),
    "long number": ("{{ 0x" + "f" * 200_000 + " }}", "is too long or too large"),
    "decimal number": ("{{ " + "9" * 5_000 + " }}", "is too long or too large"),
    "infinite number": ("{{ 1e999 }}", "is too long or too large"),
    "int of another base": ("{{ long|int(base=36) }}", "unexpected keyword"),
    "sum of lists": ("{{ [[1], [2]]|sum(start=[]) }}", "unexpected keyword"),
    # Loops.
    "one loop": ("{% for i in range(100000) %}x{% endfor %}", STEPS),
    "two loops": ("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", STEPS),
    "loop of a text": ("{% for c in long %}{% for d in long %}{% endfor %}{% endfor %}", STEPS),
    "loop with a condition": ("{% for i in range(99999) if i > i + 1 %}x{% endfor %}", STEPS),
    "long range": ("{{ range(2000000000)|length }}", "Range too big"),
    "longest range": ("{{ range(10 ** 30)|length }}", "too large to convert"),
    "work in a loop": ("{% for i in range(999) %}{% set q = long|upper %}{% endfor %}", STEPS),
    "sort in a loop": ("{% for i in range(999) %}{% set q = long.split()|sort %}{% endfor %}", STEPS),
    "sums": ("{% for i in range(20) %}{% set q = range(9999)|sum %}{% endfor %}", STEPS),
    "greatest": ("{% for i in range(20) %}{% set q = range(9999)|max %}{% endfor %}", STEPS),
    "least": ("{% for i in range(20) %}{% set q = range(9999)|min %}{% endfor %}", STEPS),
    "sorts": ("{% for i in range(5) %}{% set q = range(2999)|sort %}{% endfor %}", STEPS),
    "titles": ("{% for i in range(2) %}{% set q = long|title %}{% endfor %}", STEPS),
    "compare in a loop": (
        "{% for i in range(9999) %}{% if long.lower() == long %}{% endif %}{% endfor %}",
        STEPS,
    ),
    "compare what is equal in a loop": (
        "{% set same = long ~ '' %}{% for i in range(3333) %}{% if same == long %}{% endif %}{% endfor %}",
        STEPS,
    ),
    "search in a loop": ("{% for i in range(999) %}{% if 'éé' in long %}{% endif %}{% endfor %}", STEPS),
    "search for much": ("{{ long[:60000] in long }}", STEPS),
    "split at much": ("{{ long.split(long[:60000]) }}", STEPS),
    "strip much": ("{{ long[:90000].strip(long[:90000]) }}", STEPS),
    "cut in a loop": ("{% for i in range(9999) %}{% set q = long[1:] %}{% endfor %}", STEPS),
    "look up in a loop": (
        "{% for i in range(9999) %}{{ mapping[(long, long)] is defined }}{% endfor %}",
        STEPS,
    ),
    "output of a loop": (
        "\n{% for i in range(9) %}\n{{ long }}{% endfor %}",
        "line 3: the message becomes longer than",
    ),
    "output without a loop": ("{{ long }}" * 2000, "the message becomes longer than 1,000,000 characters"),
    # What is no part of the language.
    "macro": ("{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}", "“macro” cannot be used"),
    "call": ("{% call range(1) %}{% endcall %}", "“call” cannot be used"),
    "recursive loop": ("{% for i in items recursive %}{{ loop(items) }}{% endfor %}", "“recursive” cannot"),
    "loop called": ("{% for i in items %}{{ loop(items) }}{% endfor %}", "calling “loop” is unsafe"),
    "namespace": ("{% set ns = namespace(s='x') %}", "calling “namespace” is unsafe"),
    "namespace in a loop": (
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "unsafe",
    ),
    "set as a block": ("{% set s %}{{ long }}{% endset %}", "“set … endset” cannot be used"),
    "filter as a block": ("{% filter upper %}{{ long }}{% endfilter %}", "“filter” cannot be used"),
    "block": ("{% block b %}{{ self.b() }}{% endblock %}", "“block” cannot be used"),
    "with": ("{% with s = 1 %}{% endwith %}", "“with” cannot be used"),
    "autoescape": ("{% autoescape true %}{% endautoescape %}", "“autoescape” cannot be used"),
    "dict": ("{{ dict(a=1) }}", "calling “dict” is unsafe"),
    "cycler": ("{{ cycler(1) }}", "calling “cycler” is unsafe"),
    "joiner": ("{{ joiner(long) }}", "calling “joiner” is unsafe"),
    "lipsum": ("{{ lipsum(n=100000) }}", "calling “lipsum” is unsafe"),
    "arguments by star": ("{{ a|replace(*items) }}", "cannot be given with *"),
    "arguments by two stars": ("{{ a|replace(**mapping) }}", "cannot be given with *"),
    "an argument of Python's": ("{{ a|truncate(__debug__=1) }}", "nor by names that begin with _"),
    "half a character": (r"{{ '\ud800' }}", "lone surrogate"),
    # Python's insides.
    "class": ("{{ a.__class__ }}", "is unsafe"),
    "class as an item": ("{{ a['__class__'] }}", "has no attribute '__class__'"),
    "class in a format": ("{{ '{0.__class__}'.format(a) }}", "calling “format” is unsafe"),
    "subclasses": ("{{ ''.__class__.__base__.__subclasses__() }}", "is unsafe"),
    "method as a value": ("{{ a.upper }}", "has no attribute 'upper'"),
    "method of a list": ("{{ items.append(1) }}", "calling “append” is unsafe"),
    "self": ("{{ self._TemplateReference__context }}", "has no attribute"),
    "context of a loop": ("{% for i in items %}{{ loop._iterator }}{% endfor %}", "has no attribute"),
    "undefined": ("{{ nobody.at.all }}", "'nobody' is undefined"),
    "include": ("{% include 'a' %}", "needs another template"),
    # The source itself.
    "long source": ("x" * 500_001, "it is longer than 500,000 characters"),
    "many expressions": ("{{ a }}" * 5_000, "more than 10,000 words and signs"),
    "parentheses": ("{{ " + "(" * 300 + "a" + ")" * 300 + " }}", "brackets stand more than 20 deep"),
    "lists": ("{{ " + "[" * 300 + "]" * 300 + " }}", "brackets stand more than 20 deep"),
    "nots": ("{{ " + "not " * 5_000 + "a }}", DEEP),
    "signs": ("{{ " + "-" * 5_000 + "1 }}", DEEP),
    "elses": ("{{ " + "a if a else " * 2_000 + "a }}", DEEP),
    "sum of many": ("{{ " + "a + " * 3_000 + "a }}", DEEP),
    "filters": ("{{ a" + "|upper" * 3_000 + " }}", DEEP),
    "dots": ("{{ a" + ".b" * 3_000 + " }}", DEEP),
    "ifs": ("{% if a %}" * 1_000 + "{% endif %}" * 1_000, DEEP),
    "loops in loops": ("{% for i in a %}" * 9 + "{% endfor %}" * 9, "loops stand more than 8 deep"),
    "many loops in loops": ("{% for i in a %}" * 100 + "{% endfor %}" * 100, "loops stand more than 8 deep"),
}
"""The template, and what is said of it."""


def content(**parts: object) -> EmailContent:
    return EmailContent.model_validate({"from": "news@example.org", "subject": "s", "text": "t"} | parts)


def outcome(**parts: str) -> str:
    """What is said of a template when it is prepared or else filled in; "sent" if nothing is."""
    try:
        Renderer(content(**parts)).render(VARIABLES | {"address": "ana@example.org"})
    except RenderFailed as error:
        return str(error)
    return "sent"


def attack() -> None:
    """Reads the attacks from standard input; writes a line of JSON for each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS))
    for name, part, source in json.load(sys.stdin):
        sys.stdout.write(json.dumps([name, part, outcome(**{part: source})]) + "\n")
        sys.stdout.flush()


@pytest.fixture(scope="module")
def outcomes() -> dict[tuple[str, str], str]:
    asked = [(name, part, source) for name, (source, _) in ATTACKS.items() for part in ("text", "html")]
    ran = subprocess.run(
        [sys.executable, __file__],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    told = [json.loads(line) for line in ran.stdout.splitlines()]
    found = {(name, part): words for name, part, words in told}
    if len(told) < len(asked):
        name, part, _ = asked[len(told)]
        found[name, part] = f"ended the process ({ran.returncode}): {ran.stderr[-300:]}"
    return found


@pytest.mark.parametrize("part", ["text", "html"])
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_with_its_place(
    outcomes: dict[tuple[str, str], str], name: str, part: str
) -> None:
    said = outcomes.get((name, part), "was not reached, as one before it ended the process")
    assert said.startswith(f"{part}, line ")
    assert ATTACKS[name][1] in said
    assert said.endswith(".")
    assert len(said) < 1_000


SOUND = [
    (
        "{% for i in items %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% endfor %}",
        "1/3,2/3,3/3",
    ),
    (
        "{% for i in items if i > 1 %}{{ i }}{% else %}none{% endfor %}",
        "23",
    ),
    (
        "{% for part in 'x; y ;z'.split(';') %}<{{ part|trim }}>{% endfor %}",
        "<x><y><z>",
    ),
    (
        "{% for k, v in mapping.items() %}{{ k }}={{ v }}{% endfor %}",
        "k=v",
    ),
    (
        "{{ mapping.k }}{{ mapping['k'] }}{{ mapping.get('no', '-') }}{{ items[0] }}{{ items[1:] }}",
        "vv-1[2, 3]",
    ),
    (
        "{{ '%-5s|%05.1f|%x|%%'|format('é', 2.25, 255) }}",
        "é    |002.2|ff|%",
    ),
    (
        "{{ 'a' ~ n ~ 'b' }} {{ n + 1 }} {{ n ** 2 }} {{ n // 2 }} {{ n % 4 }} {{ -n }}",
        "a7b 8 49 3 3 -7",
    ),
    (
        "{{ 1 < 2 < 3 }} {{ 'x' in 'xyz' }} {{ 4 not in items }} {{ n is odd }}",
        "True True True True",
    ),
    (
        "{{ nobody|default('friend') }} {{ nobody is defined }} {{ '3.9'|int }} {{ '2'|float }}",
        "friend False 3 2.0",
    ),
    (
        "{{ items|join('-') }} {{ items|sum }} {{ items|max }} {{ [3, 1]|sort|first }} {{ 'ab'|reverse }}",
        "1-2-3 6 3 1 ba",
    ),
    (
        "{% set x, y = 1, (2, 3) %}{{ x }}{{ y }}{% raw %}{{ x }}{% endraw %}{# no #}",
        "1(2, 3){{ x }}",
    ),
    (
        "{% for i in items %}{{ loop.cycle('a', 'b') }}{% endfor %}",
        "aba",
    ),
    (
        "{{ 'a b&c'|urlencode }} {{ 'abab'|replace('a', 'x', 1) }} {{ 2.567|round(1) }}",
        "a%20b%26c xbab 2.6",
    ),
]
"""Templates, and what they give as text."""


@pytest.mark.parametrize(("source", "text"), SOUND)
def test_what_mail_needs_is_allowed(source: str, text: str) -> None:
    assert check(content(text=source, html=source), VARIABLES) == []
    assert Renderer(content(text=source, html=source)).render(VARIABLES).text == text


@pytest.mark.parametrize(
    ("source", "html"),
    [
        ("{{ v ~ '<' }}", "&amp;&lt;"),
        ("{{ v|safe ~ '<' }}", "&&lt;"),
        ("{{ [v, '<b>'|safe]|join(', ') }}", "&amp;, <b>"),
        ("{{ v|replace('&', '<') }}", "&lt;"),
        ("{{ v|safe|replace('&', '<') }}", "&"),
        ("{{ v|e|replace('&', '<') }}", "&lt;"),
        ("{{ '<%s>'|safe|format(v) }}", "<&amp;>"),
        ("{{ (v|e ~ v)|upper }}", "&AMP;&AMP;"),
        ("{{ '<b>'|safe + v }}", "<b>&amp;"),
        ("{% for c in '<>' %}{{ c }}{% endfor %}", "&lt;&gt;"),
    ],
)
def test_no_operation_gets_around_the_escaping(source: str, html: str) -> None:
    assert Renderer(content(html=source)).render({"v": "&"}).html == html


def test_every_limit_is_reached_only_just() -> None:
    assert outcome(text="x" * 500_000) == "sent"
    assert outcome(text="{{ " + "(" * 20 + "a" + ")" * 20 + " }}") == "sent"
    assert outcome(text="{{ " + "not " * 38 + "a }}") == "sent"
    assert "nested more than 40 deep" in outcome(text="{{ " + "not " * 41 + "a }}")
    assert outcome(text="{% for i in 'a' %}" * 8 + "{% endfor %}" * 8) == "sent"
    assert outcome(text="{{ 'x' * 200000 }}") == "sent"
    assert outcome(text="{{ long }}" * 8) == "sent"
    assert outcome(subject="{{ 'x' * 4000 }}") == "sent"
    assert "subject, line 1: it becomes longer than 4,000" in outcome(subject="{{ 'x' * 4001 }}")


def test_the_parts_of_a_message_share_their_limits_and_nothing_else() -> None:
    half = "{% for i in range(30000) %}{{ i }}{% endfor %}"
    assert outcome(text=half) == "sent"
    assert STEPS in outcome(text=half, html=half)
    large = "{{ long }}" * 5
    assert outcome(text=large) == "sent"
    assert "html, line 1: the message becomes longer than" in outcome(text=large, html=large)
    assert "'s' is undefined" in outcome(subject="{% set s = 1 %}a", text="{{ s }}")


async def test_who_goes_beyond_a_limit_fails_alone_and_for_good() -> None:
    channel = EmailChannel(SmtpPool("smtp://127.0.0.1:1", size=1, timeouts=Timeouts.all(1)))
    compiled = channel.prepare(
        {"from": "n@example.org", "subject": "s", "text": "{% for c in v %}{{ v }}{% endfor %}"}
    )
    send = Send(
        delivery_id=1,
        recipient=1,
        attempt=1,
        channel="email",
        address="ana@example.org",
        variables={"v": "x" * 2_000},
    )
    verdict = await channel.send(compiled, send, Granted())
    assert isinstance(verdict, Failed)
    assert (verdict.reason, verdict.retryable) == ("template", False)
    assert verdict.detail == "text, line 1: the message becomes longer than 1,000,000 characters."


def test_what_fails_with_a_recipient_is_told_with_their_line() -> None:
    tried = content(subject="{{ v }}", text="\n{{ 10 // n|int }}", html="{% for c in v %}{{ v }}{% endfor %}")
    people = [{"v": "x", "n": "1"}, {"v": "x", "n": "0"}, {"v": "x" * 2_000, "n": "1"}, {"v": "x", "n": "0"}]
    assert try_out(tried, enumerate(people[:1], 2)) == []
    assert try_out(tried, enumerate(people, 2)) == [
        f"{words}; so with the recipient in line {line} of the recipients file."
        for words, line in (
            ("text, line 2: integer division or modulo by zero", 3),
            ("html, line 1: the message becomes longer than 1,000,000 characters", 4),
        )
    ]


def test_a_value_that_no_header_can_carry_is_no_fault_of_the_template() -> None:
    tried = content(subject="{{ v }}")
    assert try_out(tried, [(2, {"v": "two\nlines"})]) == []
    with pytest.raises(ValueUnfit):
        Renderer(tried).render({"v": "two\nlines"})


def test_the_documentation_lists_what_is_allowed() -> None:
    rows = (ROOT / "docs/templates.md").read_text("utf-8").splitlines()

    def listed(*kinds: str) -> set[str]:
        return {
            word
            for row in rows
            for kind in kinds
            if row.startswith(f"| {kind} |")
            for word in re.findall(r"`(?:loop\.)?(\w+)(?:\(\))?`", row)
        }

    assert listed("filters") == set(template_operations.FILTERS)
    assert listed("tests") == set(template_operations.TESTS)
    loop = listed("in a loop")
    assert loop > template_operations.LOOP_VALUES
    methods = listed("methods of texts", "methods of mappings") | (loop - template_operations.LOOP_VALUES)
    assert methods == set(template_operations.METHODS)


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


if __name__ == "__main__":
    attack()
