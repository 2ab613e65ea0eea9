"""When a delivery is sent, and how fast: the pure rules."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from contracts import commands as told
from contracts.commands import Summary
from tests.support.fakes_schedule import CONFIRMED
from worker.channels.registry import content_table
from worker.cli.control import summary_table
from worker.domain.delivery_file import DeliveryFile, DeliveryFileInvalid, parse_delivery_file
from worker.domain.schedule import (
    WaveDefinition,
    check_waves,
    due_of,
    duration_text,
    page_size,
    wave_ends,
)
from worker.domain.timing import TimingInvalid, check_span, timing

DATE = "[schedule]\ncontact_date = 2026-12-01T09:00:00\n"


def parse(rest: str, valid_for: str = "3d") -> DeliveryFile:
    head = f'label = "x"\nchannel = "null"\nvalid_for = "{valid_for}"\n'
    return parse_delivery_file((head + rest).encode(), {"null": content_table("null")})


def waves_toml(*waves: tuple[str, str]) -> str:
    return "".join(f'[[waves]]\nshare = "{share}"\nafter = "{after}"\n' for share, after in waves)


PARTS = st.lists(st.integers(1, 999_999), min_size=1, max_size=12).map(
    lambda parts: tuple(Fraction(p, sum(parts)) for p in parts)
)


@given(total=st.integers(0, 3_000_000), shares=PARTS, rest=st.booleans())
def test_every_recipient_is_dealt_to_one_wave_as_its_share_says(
    *, total: int, shares: tuple[Fraction, ...], rest: bool
) -> None:
    last = len(shares) - 1
    waves = tuple(
        WaveDefinition.model_construct(share=None if rest and i == last else s, after=timedelta(hours=i))
        for i, s in enumerate(shares)
    )
    ends = wave_ends(total, waves)
    assert ends == sorted(ends)
    assert ends[-1] == total
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    assert all(abs(size - total * share) < 1 for size, share in zip(sizes, shares, strict=True))
    assert total == 0 or sizes[0] > 0


def test_waves_and_limits_are_read_from_the_delivery_file() -> None:
    file = parse(waves_toml(("10%", "0h"), ("0.5%", "90m"), ("rest", "1d")))
    assert [(w.share, w.after) for w in file.waves] == [
        (Fraction(1, 10), timedelta()),
        (Fraction(1, 200), timedelta(minutes=90)),
        (None, timedelta(days=1)),
    ]
    assert parse('[[waves]]\nshare = "100%"').waves[0].after == timedelta()
    assert parse("[limits]\nmessages_per_hour = 36000").limits.messages_per_hour == 36_000


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        (waves_toml(("10%", "0h"), ("80%", "1h")), "the shares come to 90%; make them 100%"),
        (waves_toml(("60%", "0h"), ("60%", "1h")), "the shares come to 120%"),
        (waves_toml(("60%", "0h"), ("40%", "1h"), ("rest", "2h")), "come to 100%; leave out the last"),
        (waves_toml(("rest", "0h"), ("40%", "1h")), "only the last share may be “rest”"),
        (waves_toml(("50%", "1h"), ("50%", "1h")), "each must come after the one before"),
        (waves_toml(("50%", "0h"), ("50%", "3d")), "due 3d after the start, when the delivery is no longer"),
        (waves_toml(("0%", "0h"), ("rest", "1h")), 'waves.0.share: give a share such as "10%"'),
        (waves_toml(("1e3%", "0h"), ("rest", "1h")), 'waves.0.share: give a share such as "10%"'),
        (waves_toml(("half", "0h"), ("rest", "1h")), 'waves.0.share: give a share such as "10%"'),
        (waves_toml(("101%", "0h")), 'waves.0.share: give a share such as "10%"'),
        (waves_toml(("100%", "-1h")), "waves.0.after: give a number with m, h or d"),
        (DATE + "local_time = true\n" + waves_toml(("100%", "0h")), "cannot be joined with schedule.local_t"),
        (DATE + 'late = "skip"', 'late = "skip" needs late_limit'),
        (DATE + 'late_limit = "2h"', 'late_limit goes with late = "skip" only'),
        (DATE + 'late = "maybe"', "schedule.late: "),
        ('[schedule]\nlate = "skip"\nlate_limit = "2h"', "need a contact_date"),
        ("[schedule]\nlocal_time = true", "need a contact_date"),
        ("[schedule]\ncontact_date = 2026-12-01T09:00:00Z\nlocal_time = true", "without an offset from UTC"),
        ("[limits]\nmessages_per_hour = 0", "limits.messages_per_hour: "),
        ("[limits]\nmessages_per_hour = 1.5", "limits.messages_per_hour: "),
        ("[limits]\nbreaker_minimum = -1", "limits.breaker_minimum: "),
        ("[limits]\nhard_bounce_pct = 100.1", "limits.hard_bounce_pct: "),
        ("[limits]\nerror_pct = nan", "limits.error_pct: "),
    ],
)
def test_a_schedule_that_contradicts_itself_is_refused_with_the_reason(rest: str, reason: str) -> None:
    with pytest.raises(DeliveryFileInvalid) as caught:
        parse(rest)
    assert reason in str(caught.value)


def test_an_empty_list_of_waves_is_no_waves() -> None:
    check_waves((), timedelta(hours=1))


@pytest.mark.parametrize("text", ["90m", "2h", "3d", "1m", "36h", "0m"])
def test_a_duration_is_written_as_it_was_read(text: str) -> None:
    amount, unit = int(text[:-1]), {"m": "minutes", "h": "hours", "d": "days"}[text[-1]]
    assert duration_text(timedelta(**{unit: amount})) == text


@pytest.mark.parametrize(
    ("send_at", "zone", "due"),
    [
        ("2026-12-01T09:00", "", "2026-12-01T08:00"),
        ("2026-12-01 09:00:00", "Asia/Tokyo", "2026-12-01T00:00"),
        ("2026-12-01T09:00:00Z", "Asia/Tokyo", "2026-12-01T09:00"),
        ("2026-12-01T09:00+05:30", "", "2026-12-01T03:30"),
        ("20261201T090000", "", "2026-12-01T08:00"),
        # Up to the full minute.
        ("2026-12-01T09:00:00.000001Z", "", "2026-12-01T09:01"),
        ("2026-12-01T09:59:59Z", "", "2026-12-01T10:00"),
        # Forward from 02:00 to 03:00: as much later as the clocks were put forward.
        ("2026-03-29T02:30", "", "2026-03-29T01:30"),
        ("2026-03-08T02:30", "America/New_York", "2026-03-08T07:30"),
        # Half an hour, on Lord Howe Island.
        ("2026-10-04T02:15", "Australia/Lord_Howe", "2026-10-03T15:45"),
        # Back from 03:00 to 02:00: the first of the two.
        ("2026-10-25T02:30", "", "2026-10-25T00:30"),
        ("2026-11-01T01:30", "America/New_York", "2026-11-01T05:30"),
    ],
)
def test_a_row_is_due_at_one_instant(send_at: str, zone: str, due: str) -> None:
    assert due_of(send_at, zone, "Europe/Paris") == datetime.fromisoformat(due).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("send_at", "zone", "reason"),
    [
        ("tomorrow", "", "“tomorrow” is not a date and a time"),
        ("2026-12-01", "", "is not a date and a time"),
        ("2026-13-01T09:00", "", "is not a date and a time"),
        ("9999-12-31T23:59:59", "", "the year must be from 2000"),
        ("0001-01-01T00:00+14:00", "", "the year must be from 2000"),
        ("2026-12-01T09:00", "CEST", "“CEST” is not a time zone"),
        ("", "Mars/Olympus", "is not a time zone"),
        ("", "../etc/passwd", "is not a time zone"),
    ],
)
def test_a_row_with_no_real_time_or_time_zone_is_refused(send_at: str, zone: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        due_of(send_at, zone, "Europe/Paris")


@given(st.text(max_size=30), st.text(max_size=12))
def test_no_text_is_anything_but_a_time_or_a_fault(send_at: str, zone: str) -> None:
    try:
        due = due_of(send_at, zone, "UTC")
    except ValueError:
        return
    assert due is None or (due.tzinfo is UTC and due.second == due.microsecond == 0)


LOCAL = '[schedule]\ncontact_date = {}\ntime_zone = "Europe/Paris"\nlocal_time = true\n'


@pytest.mark.parametrize(
    ("contact_date", "due"),
    [
        (
            "2026-12-01T09:00:00",
            {
                "": "2026-12-01T08:00",
                "Asia/Tokyo": "2026-12-01T00:00",
                "America/New_York": "2026-12-01T14:00",
                "Asia/Kathmandu": "2026-12-01T03:15",
                "Pacific/Kiritimati": "2026-11-30T19:00",
            },
        ),
        (
            "2026-03-29T02:30:00",  # not there in Paris and Berlin, an hour earlier in Lisbon's clock
            {
                "Europe/Paris": "2026-03-29T01:30",
                "Europe/Lisbon": "2026-03-29T01:30",
                "America/New_York": "2026-03-29T06:30",
                "Asia/Tokyo": "2026-03-28T17:30",
                "UTC": "2026-03-29T02:30",
            },
        ),
        (
            "2026-10-25T02:30:00",  # twice in Paris, once in Helsinki, where 03:30 is the doubled one
            {
                "Europe/Paris": "2026-10-25T00:30",
                "Europe/Helsinki": "2026-10-24T23:30",
                "America/New_York": "2026-10-25T06:30",
                "Asia/Tokyo": "2026-10-24T17:30",
                "Australia/Lord_Howe": "2026-10-24T15:30",
            },
        ),
    ],
)
def test_each_ones_own_clock_shows_the_contact_date(contact_date: str, due: dict[str, str]) -> None:
    when = timing(parse(LOCAL.format(contact_date)), ("address", "time_zone"))
    assert when.by_row
    found = {zone: when.due({"time_zone": f" {zone} "}) for zone in due}
    assert found == {z: datetime.fromisoformat(d).replace(tzinfo=UTC) for z, d in due.items()}
    with pytest.raises(ValueError, match="is not a time zone"):
        when.due({"time_zone": "Moon"})


def test_nobody_is_due_before_the_contact_date() -> None:
    when = timing(parse(DATE), ("address", "send_at"))
    nine = datetime(2026, 12, 1, 9, tzinfo=UTC)
    assert when.due({"send_at": "2026-11-30T09:00"}) == nine
    assert when.due({"send_at": ""}) == nine
    assert when.due({"send_at": "2026-12-01T10:00"}) == nine + timedelta(hours=1)
    assert timing(parse(""), ("address", "send_at")).due({"send_at": ""}) is None


def test_a_column_of_time_zones_alone_is_a_variable() -> None:
    when = timing(parse(DATE), ("address", "time_zone"))
    assert (when.by_row, when.due({"time_zone": "nonsense"})) == (False, None)


@pytest.mark.parametrize(
    ("rest", "columns", "reason"),
    [
        (waves_toml(("100%", "0h")), ("address", "send_at"), r"cannot be joined with \[\[waves\]\]"),
        (LOCAL.format("2026-12-01T09:00:00"), ("address", "send_at", "time_zone"), "local_time"),
        (LOCAL.format("2026-12-01T09:00:00"), ("address",), "needs a column “time_zone”"),
    ],
)
def test_columns_of_times_that_contradict_the_delivery_file_are_refused(
    rest: str, columns: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(TimingInvalid, match=reason):
        timing(parse(rest), columns)


def test_nobody_is_due_when_the_validity_is_over() -> None:
    nine = datetime(2026, 12, 1, 9, tzinfo=UTC)
    file = parse(DATE, "2h")
    check_span(file, nine, nine + timedelta(minutes=119))
    with pytest.raises(TimingInvalid, match=r"due at 2026-12-01 11:00 UTC.*now 2h, longer"):
        check_span(file, nine, nine + timedelta(hours=2))
    check_span(parse("", "2h"), nine, nine + timedelta(days=9))
    local = parse(LOCAL.format("2026-12-01T09:00:00"), "2h")
    check_span(local, nine - timedelta(hours=9), nine - timedelta(hours=8))
    with pytest.raises(TimingInvalid):
        check_span(local, nine - timedelta(hours=9), nine)


@pytest.mark.parametrize(
    ("messages_per_hour", "recipients"),
    [(1, 1), (1_199, 1), (36_000, 30), (1_200_000, 1_000), (10**8, 1_000)],
)
def test_a_page_of_a_delivery_with_a_limit_is_three_seconds_of_it(
    messages_per_hour: int, recipients: int
) -> None:
    assert page_size(1_000, messages_per_hour, 1_000) == recipients


@given(
    recipients=st.integers(1, 2**31 - 1),
    messages_per_hour=st.none() | st.integers(1, 10**9),
    usual=st.integers(1, 100_000),
)
def test_no_audience_and_no_limit_give_a_delivery_more_than_ten_thousand_full_pages(
    recipients: int, messages_per_hour: int | None, usual: int
) -> None:
    size = page_size(recipients, messages_per_hour, usual)
    assert -(-recipients // size) <= 10_000
    assert size == page_size(1, messages_per_hour, usual) or recipients > 10_000 * (size - 1)


def test_a_person_sees_the_waves_and_the_limits_before_the_ok() -> None:
    nine = datetime(2026, 12, 1, 8, tzinfo=UTC)
    seen = Summary(
        label="x",
        channel="null",
        to_deliver=1_000,
        excluded={},
        contact_date=nine,
        time_zone="Europe/Paris",
        preparation=1,
        wave_count=7,
        waves=(
            told.Wave(recipients=100, due_after=timedelta()),
            told.Wave(recipients=300, due_after=timedelta(minutes=90)),
            told.Wave(recipients=100, due_at=nine + timedelta(days=1)),
        ),
        late_limit=timedelta(hours=2),
        messages_per_hour=36_000,
    )
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(summary_table(seen))
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert lines[4:-1] == [
        "begins Tuesday 01 December 2026, 09:00:00 Europe/Paris",
        "if late skipped when it cannot start within 2h",
        "wave 1 100 recipients, at the start",
        "wave 2 300 recipients, 90m after the start",
        "wave 3 100 recipients, Wednesday 02 December 2026, 09:00:00 Europe/Paris",
        "and 4 more waves",
        "not faster than 36,000 messages an hour",
    ]


def test_a_start_is_too_late_when_later_than_the_limit() -> None:
    due = datetime(2026, 12, 1, 9, tzinfo=UTC)
    delivery = replace(CONFIRMED, contact_date=due, late_limit=timedelta(hours=2))
    assert delivery.too_late(due + timedelta(hours=2)) is None
    told = delivery.too_late(due + timedelta(hours=2, seconds=1))
    assert told is not None
    assert "may start 2h late at most" in told
