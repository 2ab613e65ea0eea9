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

import pytest

from contracts.sends import Send
from tests.support.templates import ATTACKS, STEPS, VARIABLES, content
from worker.channels.email.channel import EmailChannel
from worker.channels.email.smtp import SmtpPool
from worker.channels.email.timeouts import Timeouts
from worker.channels.protocol import Granted
from worker.domain import template_operations
from worker.domain.template_checks import check, try_out
from worker.domain.templates import Renderer, RenderFailed, ValueUnfit
from worker.domain.verdicts import Failed

ROOT = Path(__file__).parents[2]
MEMORY = 512 * 2**20
PROCESSOR_SECONDS = 15


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


if __name__ == "__main__":
    attack()
