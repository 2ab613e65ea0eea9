"""Lanes: a provider that is slow, wants a pause or has a limit gets its share, and nobody else waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.channels.email.capacity import Connections, Pace
from worker.channels.email.lanes import _KEPT, Lanes
from worker.channels.email.providers import read_providers
from worker.settings import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from worker.channels.email.lane import Lane
    from worker.channels.email.providers import Providers

OURS = read_providers()


def lanes(size: int = 8, providers: Providers = OURS, per_minute: int = 0) -> Lanes:
    return Lanes("r", providers, Connections(size), Pace(), per_minute)


def enter(lane: Lane, count: int = 1) -> None:
    for _ in range(count):
        lane.wait()
    lane.enter(count)


def sent(lane: Lane, began: float, seconds: float, times: int = 1) -> None:
    for _ in range(times):
        lane.end(lane.begin(began), began + seconds)
        lane.passed(began + seconds)


def test_the_domains_of_a_provider_share_a_lane_in_any_spelling() -> None:
    many = lanes()
    assert many.of("ana@gmail.com") is many.of("bo@GoogleMail.com") is not many.of("bo@example.org")
    assert many.of("a@bücher.example") is many.of("b@xn--bcher-kva.example")
    assert many.of("a@not a domain\udcff").room(0) > 0


def test_nothing_is_limited_while_nobody_is_slow() -> None:
    many = lanes(2)
    one, other = many.of("a@one.example"), many.of("a@two.example")
    enter(one, 1_000)
    assert one.room(0) > 1_000
    sent(one, 0, 0.2, 100)
    sent(other, 0, 0.001, 100)
    assert one.room(1) > 1_000, "0.2 s is not slow"


def test_a_lane_that_is_slow_beside_others_gets_its_share_until_it_is_fast_again() -> None:
    many = lanes(8)
    slow, fast = many.of("a@slow.example"), many.of("a@fast.example")
    sent(slow, 0, 2, 20)
    assert slow.room(2) > 8, "it is alone: nobody waits for it"
    sent(fast, 2, 0.01, 100)
    assert (slow.room(3), fast.room(3) > 8) == (6, True), "the others find a quarter free"
    numbers = [fast.begin(3) for _ in range(3)]
    assert slow.room(3) == 3, "what they leave"
    numbers += [fast.begin(3) for _ in range(5)]
    assert slow.room(3) == 2, "a quarter"
    for number in numbers:
        fast.end(number, 3.01)
    assert slow.room(3.1) == 2, "they need them again in a moment"
    enter(slow)
    sent(fast, 12, 0.01)
    assert slow.room(13) == 1, "half the time is over"
    assert slow.room(30) > 8, "nobody else was active for so long"
    sent(fast, 30, 0.01)
    sent(slow, 30, 0.01, 100)
    assert slow.room(31) > 8


def test_slow_lanes_together_get_half_while_the_others_need_the_rest() -> None:
    many = lanes(8)
    slow = [many.of(f"a@slow{n}.example") for n in range(2)]
    fast = [many.of(f"a@fast{n}.example") for n in range(3)]
    for lane in slow:
        sent(lane, 0, 2, 20)
    for lane in fast:
        sent(lane, 2, 0.01, 200)
    for _ in range(8):
        fast[0].begin(3)
    slow.append(many.of("a@slow2.example"))
    sent(slow[2], 0, 2, 20)
    assert [lane.room(3) for lane in slow] == [2, 2, 2]
    for lane in slow:
        for _ in range(lane.room(3)):
            enter(lane)
    assert [lane.claimed for lane in slow] == [2, 2, 0]
    slow[0].leave()
    assert slow[2].room(3) == 1


def test_nobody_is_slow_where_all_take_long() -> None:
    many = lanes(8)
    every = [many.of(f"a@d{n}.example") for n in range(3)]
    for lane in every:
        sent(lane, 0, 2, 60)
    assert all(lane.room(2.5) > 8 for lane in every)


def test_a_lane_whose_share_hangs_on_connections_is_slow_before_the_first_answer() -> None:
    many = lanes(8)
    slow = many.of("a@slow.example")
    sent(many.of("a@fast.example"), 0, 0.01)
    slow.begin(0)
    assert slow.room(1) > 8, "one may hang"
    slow.begin(0)
    assert (slow.free(0.2), slow.free(0.3)) == (True, False)


def test_a_lane_that_may_hang_gets_half_of_the_connections_until_it_answers() -> None:
    many = lanes(8)
    new, other = many.of("a@new.example"), many.of("a@other.example")
    for _ in range(8):
        enter(new)
    numbers = [new.begin(0) for _ in range(4)]
    assert new.free(0.01), "it is alone"
    enter(other)
    assert (new.free(0.01), other.free(0.01)) == (False, True)
    assert new.room(0.01) > 0, "for a moment: the others are read meanwhile"
    new.end(numbers[0], 0.02)
    assert new.free(0.02)
    many = lanes(3)
    enter(many.of("a@other.example"))
    new = many.of("a@new.example")
    new.begin(0)
    assert new.free(0.01), "a half of three is too few"


def test_a_refused_lane_pauses_ever_longer_and_steps_up_again() -> None:
    many = lanes(4)
    lane = many.of("a@busy.example")
    pauses = []
    now = 0.0
    for _ in range(8):
        lane.slow_down("421 later", now)
        assert (lane.room(now), lane.free(now)) == (0, False)
        pauses.append(lane.opens_at - now)
        now = lane.opens_at
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert lane.room(now) == 1, "one finds out"
    for room in (2, 3):
        sent(lane, now, 0.01)
        assert lane.room(now + 1) == room
    sent(lane, now, 0.01)
    assert lane.room(now + 1) > 4
    lane.slow_down("421 later", now + 2)
    assert lane.opens_at == now + 3


def test_while_the_relay_wants_a_pause_one_message_of_each_lane_finds_out() -> None:
    many = lanes(8)
    one, paused = many.of("a@one.example"), many.of("a@paused.example")
    many.pace.slow_down("421 later", 0)
    paused.slow_down("421 later", 0)
    assert (one.room(0.5), paused.room(0.5)) == (1, 0)
    enter(one)
    assert one.room(0.5) == 0, "the others of the lane do not fill the window meanwhile"
    assert [(lane.name, lane.connections) for lane in many.held(0.5)] == [("*", 0), ("paused.example", 0)]
    many.pace.went_well(2)
    assert one.room(2) > 8


def test_a_limit_is_the_lanes_while_others_pass_and_the_relays_when_nobody_passes() -> None:
    many = lanes()
    first, second, third, fast = (many.of(f"a@{n}.example") for n in "abcd")
    assert not first.own_limit(0), "nobody else is there"
    enter(second)
    assert first.own_limit(0), "another may pass"
    assert not second.own_limit(0)
    enter(first)
    assert second.own_limit(0)
    first.leave()
    second.leave()
    sent(fast, -60, 0.01)
    sent(fast, 0, 0.01)
    assert first.own_limit(1)
    assert second.own_limit(1)
    assert third.own_limit(1.5), "by chance"
    assert not third.own_limit(2), "three in a row, and for long"
    sent(fast, 2, 0.01)
    assert third.own_limit(3)
    assert first.own_limit(300), "others passed at some time: they may come again"


def test_what_is_held_back_is_named_with_its_reason(tmp_path: Path) -> None:
    file = tmp_path / "providers.toml"
    file.write_text('[small]\ndomains = ["small.example"]\nconnections = 2\n')
    many = lanes(8, read_providers(file))
    calm, busy, slow, small = (many.of(f"a@{n}.example") for n in ("calm", "busy", "slow", "small"))
    assert [lane.name for lane in many.held(0)] == ["small"]
    sent(slow, 0, 2, 20)
    sent(calm, 2, 0.01, 100)
    sent(small, 2, 0.01)
    sent(busy, 2, 0.01, 3)
    busy.slow_down("450 too many", 2)
    enter(slow)
    found = {lane.name: lane for lane in many.held(2.5)}
    assert sorted(found) == ["busy.example", "slow.example", "small"]
    assert found["busy.example"] == ("r", "busy.example", 0, 3, 3, "450 too many")
    assert (found["slow.example"].connections, "slow" in found["slow.example"].because) == (6, True)
    assert (found["small"].connections, found["small"].because) == (0, "it has this limit"), "not leased"
    assert [lane.connections for lane in many.held(4) if lane.name == "busy.example"] == [1]
    sent(busy, 4, 0.01, 8)
    assert "busy.example" not in {lane.name for lane in many.held(5)}


def test_messages_a_minute_are_those_that_were_leased(tmp_path: Path) -> None:
    file = tmp_path / "providers.toml"
    file.write_text('[few]\ndomains = ["few.example"]\nmessages_per_minute = 90\n')
    many = lanes(8, read_providers(file), 6_000)
    few, other = many.of("a@few.example"), many.of("a@other.example")
    assert many.wants() == [], "nobody asked"
    assert (few.room(0), other.room(0)) == (0, 0)
    assert sorted(many.wants()) == [("r *", 6_000, 100), ("r few", 90, 2)]
    many.grant({"r few": 2, "r *": 5, "gone": 7}, 0)
    assert (few.room(0), other.room(0)) == (2, 5)
    enter(few)
    enter(few)
    assert (few.room(0), other.room(0)) == (0, 3), "both count it"
    assert [w.name for w in many.wants()] == ["r few"]
    few.leave(unused=True)
    few.leave()
    assert (few.room(0), other.room(0)) == (1, 4)
    shown = {lane.name: lane.because for lane in many.held(0)}
    assert shown == {"few": "it may have 90 messages a minute"}
    assert other.room(2) == 0, "a lease is not saved up"
    assert sorted(lane.name for lane in many.held(2)) == ["*", "few"]


@pytest.mark.parametrize("per_minute", [0, 60])
def test_lanes_are_bounded_and_those_in_use_stay(per_minute: int) -> None:
    many = lanes(8, OURS, per_minute)
    held, idle = many.of("a@held.example"), many.of("a@idle.example")
    held.slow_down("later", 0)
    for number in range(_KEPT):
        many.of(f"a@d{number}.example")
    assert many.of("b@held.example") is held
    assert many.of("b@idle.example") is not idle
    assert len(many._by_domain) < _KEPT  # noqa: SLF001


_STEPS = st.tuples(st.integers(0, 3), st.sampled_from(["enter", "leave", "begin", "end", "refuse", "pass"]))


@given(st.lists(_STEPS, max_size=60))
def test_no_lane_waits_for_ever(steps: list[tuple[int, str]]) -> None:  # noqa: C901 - one case a step
    """Whatever happened: when all that is claimed ended and all pauses are over, each lane takes one."""
    many = lanes(4)
    every = [many.of(f"a@{n}.example") for n in range(4)]
    begun: dict[Lane, list[int]] = {lane: [] for lane in every}

    def step(lane: Lane, what: str, now: float) -> None:
        match what:
            case "enter" if lane.room(now):
                enter(lane)
            case "leave" if lane.claimed:
                lane.leave()
            case "begin" if lane.free(now):
                begun[lane].append(lane.begin(now))
            case "end" if begun[lane]:
                lane.end(begun[lane].pop(), now)
            case "refuse":
                lane.slow_down("later", now)
            case "pass":
                lane.passed(now)

    for number, (n, what) in enumerate(steps):
        step(every[n], what, number * 0.3)
    now = len(steps) * 0.3
    for lane in every:
        for _ in range(60):
            step(lane, "end", now)
            step(lane, "leave", now)
    assert all(lane.room(now + 61) > 0 and lane.free(now + 61) for lane in every)


def test_a_file_adds_providers_and_takes_domains_over(tmp_path: Path) -> None:
    file = tmp_path / "providers.toml"
    file.write_text(
        '[house]\ndomains = ["Example.org", "bücher.example", "gmail.com"]\nconnections = 3\n'
        '[apple]\ndomains = ["icloud.com"]\n'
    )
    read = read_providers(file)
    assert read.of("example.org") == read.of("xn--bcher-kva.example") == ("house", 3, None)
    assert read.of("gmail.com") == ("house", 3, None)
    assert read.of("googlemail.com") == ("google", None, None)
    assert read.of("me.com") == ("me.com", None, None), "our list of this provider is replaced"
    many = lanes(8, read)
    lane = many.of("a@gmail.com")
    assert (lane.room(0), many.shares()) == (0, []), "nothing is leased, nothing is wanted"
    lane.wait()
    assert many.shares() == [("r house connections", 3)]
    many.grant({"r house connections": 2, "gone": 1}, 0)
    assert (lane.room(0), lane.room(2)) == (2, 0)
    numbers = [lane.begin(0) for _ in range(3)]
    assert not lane.free(0)
    lane.end(numbers[0], 0)
    assert lane.free(0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[a", "is not TOML"),
        ("a = 1", "a: "),
        ("[a]\ndomains = []", "a.domains"),
        ('[a]\ndomains = ["x@y.example"]', "'x@y.example' is not a domain"),
        ('[a]\ndomains = ["y.example"]\nconnections = 0', "a.connections"),
        ('[a]\ndomains = ["y.example"]\nspeed = 1', "a.speed"),
        ('[a]\ndomains = ["y.example"]\n[b]\ndomains = ["Y.example"]', "y.example belongs to 'a' and to 'b'"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "providers.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as told:
        read_providers(file)
    assert sentence in str(told.value)
    assert str(told.value).startswith(f"SENDOFF_PROVIDERS_FILE: {file}")


def test_a_file_that_is_not_there_or_not_utf_8_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        read_providers(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'[a]\ndomains = ["\xe9.example"]')
    with pytest.raises(SettingsError, match="is not UTF-8"):
        read_providers(tmp_path / "latin.toml")
