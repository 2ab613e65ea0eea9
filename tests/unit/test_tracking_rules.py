"""Tracking: who is behind an event, which of doubled ones stands, and which opt-outs are heeded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from contracts.tracking import TrackingEvent, TrackingKind
from worker.domain.machines import RulesInvalid, Sort, own_rules, read_rules
from worker.domain.tracking import USER_AGENT_LIMIT, fold, judge
from worker.services.tracking import open_machines
from worker.settings import Settings, SettingsError

if TYPE_CHECKING:
    import random
    from pathlib import Path

MACHINES = own_rules()
AGAIN = own_rules()
KHTML = "AppleWebKit/537.36 (KHTML, like Gecko)"
WINDOWS = f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {KHTML}"
CHROME = f"{WINDOWS} Chrome/142.0.0.0"
OLD_EDGE = f"{WINDOWS} Chrome/42.0.2311.135 Safari/537.36 Edge/12.246"

PERSONS = [
    f"{CHROME} Safari/537.36",
    f"{CHROME} Safari/537.36 Edg/142.0.0.0",
    f"Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) {KHTML} Mobile/15E148",
    f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {KHTML}",
    "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Thunderbird/140.3.0",
    f"Mozilla/5.0 (Linux; Android 11; CUBOT NOTE 20) {KHTML} Chrome/142.0 Mobile",
    f"Mozilla/5.0 (Linux; Android 9; CUBOT_P40 Build/PPR1) {KHTML} Chrome/120.0",
    "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)",
    "Mozilla/5.0 (compatible; YahooMailProxy; https://help.yahoo.com/kb/yahoo-mail-proxy-SLN28749.html)",
    "Microsoft Office/16.0 (Windows NT 10.0; Microsoft Outlook 16.0.17328; Pro)",
    "Outlook-iOS/2.0",
    "Dalvik/2.1.0 (Linux; U; Android 14; Pixel 8 Build/UQ1A)",
    "Mail/3774.500.171.1.1 CFNetwork/1490.0.4 Darwin/23.2.0",
]

MACHINE_MADE = [
    ("Mozilla/5.0", "apple_mail_privacy", Sort.PREFETCH),
    (f"{OLD_EDGE} Mozilla/5.0", "gmail_prefetch", Sort.PREFETCH),
    ("Microsoft Office Existence Discovery", "office_discovery", Sort.PREFETCH),
    (f"{OLD_EDGE} Gmail-content-sampling", "gmail_sampling", Sort.SCANNER),
    (f"Mozilla/5.0 (Windows NT 6.1; WOW64) {KHTML} BingPreview/1.0b", "outlook_preview", Sort.SCANNER),
    ("Microsoft Defender for Office 365", "microsoft_defender", Sort.SCANNER),
    ("Barracuda Sentinel (EE)", "barracuda", Sort.SCANNER),
    ("Mozilla/5.0 (compatible; mimecast; +https://www.mimecast.com)", "mimecast", Sort.SCANNER),
    ("Mozilla/5.0 Proofpoint URL Defense", "proofpoint", Sort.SCANNER),
    ("Symantec Email Security.cloud", "symantec", Sort.SCANNER),
    ("Sophos Email", "other_gateway", Sort.SCANNER),
    ("Mozilla/5.0+(compatible; UptimeRobot/2.0; http://www.uptimerobot.com/)", "monitor", Sort.PROGRAM),
    ("Mozilla/5.0 HeadlessChrome/142.0.0.0", "headless_browser", Sort.PROGRAM),
    ("curl/8.11.0", "http_library", Sort.PROGRAM),
    ("python-requests/2.32.3", "http_library", Sort.PROGRAM),
    ("Python/3.12 aiohttp/3.11.0", "http_library", Sort.PROGRAM),
    ("Go-http-client/2.0", "http_library", Sort.PROGRAM),
    ("facebookexternalhit/1.1", "link_preview", Sort.PROGRAM),
    ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", "bot", Sort.PROGRAM),
    ("Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)", "bot", Sort.PROGRAM),
]

events = st.builds(
    TrackingEvent.model_construct,
    event_id=st.sampled_from("abcdef"),
    delivery_id=st.integers(1, 2),
    recipient=st.integers(1, 3),
    kind=st.sampled_from(TrackingKind),
    user_agent=st.sampled_from([None, "", "curl/8", "Barracuda", *PERSONS]),
)


def one(kind: TrackingKind, user_agent: str | None) -> TrackingEvent:
    return TrackingEvent.model_construct(
        event_id="a", delivery_id=1, recipient=1, kind=kind, user_agent=user_agent
    )


@pytest.mark.parametrize("user_agent", [*PERSONS, "", None])
def test_persons_are_not_taken_for_machines(user_agent: str | None) -> None:
    assert MACHINES.judge(user_agent) is None


@pytest.mark.parametrize(("user_agent", "name", "sort"), MACHINE_MADE)
def test_machines_are_told_by_name(user_agent: str, name: str, sort: Sort) -> None:
    rule = MACHINES.judge(user_agent)
    assert rule is not None
    assert (rule.name, rule.sort) == (name, sort)


def test_every_rule_has_an_example_that_reaches_it() -> None:
    assert {rule.name for rule in MACHINES.rules} == {name for _, name, _ in MACHINE_MADE}


@given(st.text(max_size=2_000))
def test_any_text_is_judged_and_always_alike(user_agent: str) -> None:
    assert MACHINES.judge(user_agent) == AGAIN.judge(user_agent)


@given(st.lists(events))
def test_the_first_of_equal_ids_stands_and_folding_again_changes_nothing(
    history: list[TrackingEvent],
) -> None:
    folded = fold(history)
    for event in history:
        first = next(e for e in history if (e.delivery_id, e.event_id) == (event.delivery_id, event.event_id))
        assert folded[event.delivery_id][event.event_id] is first
    kept = [event for by_id in folded.values() for event in by_id.values()]
    assert fold(kept + history) == folded


@given(st.lists(events, unique_by=lambda e: (e.delivery_id, e.event_id)), st.randoms(use_true_random=False))
def test_no_order_and_no_doubling_changes_what_is_folded(
    history: list[TrackingEvent], chance: random.Random
) -> None:
    shuffled = history * 2
    chance.shuffle(shuffled)
    assert fold(shuffled) == fold(history)


@given(st.lists(events))
def test_opt_outs_and_complaints_are_heeded_but_not_opt_outs_of_scanners(
    history: list[TrackingEvent],
) -> None:
    for event in history:
        tracked = judge(event, MACHINES)
        opts_out = event.kind is TrackingKind.OPTOUT and event.user_agent != "Barracuda"
        heeded = opts_out or event.kind is TrackingKind.COMPLAINT
        assert tracked.heeded is heeded
        assert (tracked.machine_rule is None) is (event.user_agent not in {"curl/8", "Barracuda"})


def test_an_endless_user_agent_is_judged_by_what_is_kept_of_it() -> None:
    tracked = judge(one(TrackingKind.OPEN, "x" * USER_AGENT_LIMIT + "curl"), MACHINES)
    assert tracked.user_agent == "x" * USER_AGENT_LIMIT
    assert tracked.machine_rule is None


@pytest.mark.parametrize(
    ("text", "because"),
    [
        ("version = ", "no TOML"),
        ("rule = []", "version: Field required"),
        (
            'version = "1"\n[[rule]]\nname = "x"\nsort = "scanner"\nwhy = "y"\npatterns = ["("]',
            "no regular expr",
        ),
        ('version = "1"\n[[rule]]\nname = "x"\nsort = "person"\nwhy = "y"\npatterns = ["a"]', "sort: Input"),
        (
            'version = "1"\n' + '[[rule]]\nname = "x"\nsort = "scanner"\nwhy = "y"\npatterns = ["a"]\n' * 2,
            "same name",
        ),
    ],
)
def test_rules_that_cannot_be_used_are_refused_with_a_sentence(
    tmp_path: Path, text: str, because: str
) -> None:
    with pytest.raises(RulesInvalid, match=because):
        read_rules(text)
    file = tmp_path / "rules.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"SENDOFF_MACHINE_RULES_FILE: .*rules\.toml holds no rules: .*"):
        open_machines(Settings(machine_rules_file=file))


def test_rules_of_ones_own_are_used_instead(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(
        'version = "ours"\n[[rule]]\nname = "us"\nsort = "program"\nwhy = "y"\npatterns = ["^Us/"]'
    )
    ours = open_machines(Settings(machine_rules_file=file))
    assert (ours.version, ours.judge("curl/8")) == ("ours", None)
    assert (found := ours.judge("us/1"))
    assert found.name == "us"
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        open_machines(Settings(machine_rules_file=tmp_path / "none"))


RULE = """version = "{version}"
[[rule]]
name = "{name}"
sort = "scanner"
why = "{why}"
patterns = [{patterns}]"""
GOOD = {"version": "1", "name": "x", "why": "y", "patterns": '"a"'}


@pytest.mark.parametrize(
    ("change", "because"),
    [
        ({"version": ""}, "version: String should have at least 1 character"),
        ({"version": "v" * 41}, "version: String should have at most 40 characters"),
        ({"name": "X"}, r"rule.0.name: String should match pattern"),
        ({"name": "x" * 41}, r"rule.0.name: String should match pattern"),
        ({"why": ""}, "rule.0.why: String should have at least 1 character"),
        ({"patterns": ""}, "rule.0.patterns: Tuple should have at least 1 item"),
        ({"patterns": '"("'}, r"rule.0.patterns: Value error, '\(' is no regular expression: "),
    ],
)
def test_a_rule_that_says_too_little_or_too_much_is_refused(change: dict[str, str], because: str) -> None:
    with pytest.raises(RulesInvalid, match=because):
        read_rules(RULE.format(**GOOD | change))


def test_a_rule_within_its_bounds_is_read_in_its_order() -> None:
    longest = {"version": "v" * 40, "name": "x" * 40, "patterns": '"a", "b"'}
    rules = read_rules(RULE.format(**GOOD | longest))
    assert (rules.version, [rule.name for rule in rules.rules]) == ("v" * 40, ["x" * 40])
    assert [rules.judge(text) is None for text in ("A", "-b-", "c")] == [False, False, True]
    with pytest.raises(ValidationError, match="frozen"):
        rules.rules[0].name = "y"  # type: ignore[misc]


def test_faults_of_a_file_of_rules_are_sentences() -> None:
    with pytest.raises(RulesInvalid, match=r"^It is no TOML: .*\.$"):
        read_rules("version = ")
    one = RULE.format(**GOOD)
    with pytest.raises(RulesInvalid, match=r"^Two rules have the same name\.$"):
        read_rules(one + one[one.index("\n[[") :])
    with pytest.raises(RulesInvalid, match=r"^rule\.0\.unknown: Extra inputs are not permitted\.$"):
        read_rules(one + '\nunknown = "x"')


def test_a_user_agent_is_judged_by_its_first_500_characters() -> None:
    assert judge(one(TrackingKind.OPEN, "x" * 496 + "curl"), MACHINES).machine_rule is None
    tracked = judge(one(TrackingKind.OPEN, "-" * 490 + "curl/8.11.0"), MACHINES)
    assert tracked.user_agent == "-" * 490 + "curl/8.11."
