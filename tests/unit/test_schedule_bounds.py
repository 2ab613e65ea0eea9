"""The bounds of `[schedule]`, `[[waves]]` and `[limits]`: what is just within, and what is told beyond."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from worker.channels.registry import content_table
from worker.domain.delivery_file import DeliveryFile, DeliveryFileInvalid, parse_delivery_file
from worker.domain.schedule import Schedule, due_of, duration_text, instant_of, known_zone, round_up
from worker.domain.timing import TimingInvalid, check_span, timing

NINE = datetime(2026, 12, 1, 9, tzinfo=UTC)
DATE = "[schedule]\ncontact_date = 2026-12-01T09:00:00\n"
GIVE_DURATION = 'give a number with m, h or d for minutes, hours or days, such as "90m" or "3d"'
GIVE_SHARE = 'give a share such as "10%" or "0.5%", or "rest" for the last one'


def parse(rest: str, valid_for: str = "3d") -> DeliveryFile:
    head = f'label = "x"\nchannel = "null"\nvalid_for = "{valid_for}"\n'
    return parse_delivery_file((head + rest).encode(), {"null": content_table("null")})


def refusal(rest: str, valid_for: str = "3d") -> str:
    with pytest.raises(DeliveryFileInvalid) as caught:
        parse(rest, valid_for)
    return str(caught.value)


def waves(*shares: tuple[str, str]) -> str:
    return "".join(f'[[waves]]\nshare = "{share}"\nafter = "{after}"\n' for share, after in shares)


@pytest.mark.parametrize(
    ("key", "least", "most"),
    [
        ("messages_per_hour", 1, 1_000_000_000),
        ("breaker_minimum", 0, 2**31 - 1),
        ("hard_bounce_pct", 0, 100),
        ("error_pct", 0, 100),
        ("refused_pct", 0, 100),
        ("max_attempts", 1, 100),
    ],
)
def test_a_limit_goes_from_its_least_to_its_most_and_is_the_settings_own_if_not_given(
    key: str, least: int, most: int
) -> None:
    for within in (least, most):
        assert getattr(parse(f"[limits]\n{key} = {within}").limits, key) == within
    for beyond in (least - 1, most + 1):
        assert refusal(f"[limits]\n{key} = {beyond}").startswith(f"limits.{key}: Input should be ")
    assert getattr(parse("").limits, key) is None


@pytest.mark.parametrize("year", [1999, 2100])
def test_a_year_that_is_a_slip_of_the_keyboard_is_refused(year: int) -> None:
    sentence = "the year must be from 2000 to 2099"
    assert (
        refusal(f"[schedule]\ncontact_date = {year}-12-31T09:00:00") == f"schedule.contact_date: {sentence}"
    )
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        due_of(f"{year}-12-31T09:00", "", "UTC")


@pytest.mark.parametrize("year", [2000, 2099])
def test_the_first_and_the_last_year_are_taken(year: int) -> None:
    assert parse(f"[schedule]\ncontact_date = {year}-12-31T09:00:00").schedule.instant == datetime(
        year, 12, 31, 9, tzinfo=UTC
    )


@pytest.mark.parametrize(
    ("valid_for", "told"),
    [
        ("0m", "it must be at least 1m and at most 90d"),
        ("2161h", "it must be at least 1m and at most 90d"),
        ("1234567m", GIVE_DURATION),
        ("m", GIVE_DURATION),
        ("1.5h", GIVE_DURATION),
        ("3 d", GIVE_DURATION),
        ("3D", GIVE_DURATION),
    ],
)
def test_a_duration_out_of_its_bounds_or_its_form_is_told(valid_for: str, told: str) -> None:
    assert refusal("", valid_for) == f"valid_for: {told}"


def test_a_duration_is_written_in_the_largest_unit_that_holds_it_whole() -> None:
    lengths = [timedelta(hours=48), timedelta(minutes=120), timedelta(minutes=61), timedelta(seconds=119)]
    assert [duration_text(length) for length in lengths] == ["2d", "2h", "61m", "1m"]
    assert duration_text(timedelta()) == "0m"


@pytest.mark.parametrize("share", ["0%", "0.0%", "100.1%", "1000%", "0.00001%", "10", "%", "Rest", "-1%"])
def test_a_share_that_is_none_is_told(share: str) -> None:
    assert refusal(waves((share, "0h"), ("rest", "1h"))) == f"waves.0.share: {GIVE_SHARE}"


@pytest.mark.parametrize("share", ["0.0001%", "99.9999%", "1%", "100%"])
def test_a_share_is_more_than_nothing_and_at_most_the_whole(share: str) -> None:
    rest = () if share == "100%" else (("rest", "1h"),)
    assert parse(waves((share, "0h"), *rest)).waves[0].share is not None


@pytest.mark.parametrize(
    ("rest", "told"),
    [
        (
            waves(("50%", "1h"), ("50%", "1h")),
            "waves: each must come after the one before; give it a longer “after”",
        ),
        (
            waves(("100%", "72h")),
            (
                "waves: the last is due 3d after the start, when the delivery is no longer valid;"
                " make valid_for, now 3d, longer"
            ),
        ),
        (waves(("rest", "0h"), ("rest", "1h")), "waves: only the last share may be “rest”"),
        (
            waves(("10%", "0h"), ("80.5%", "1h")),
            "waves: the shares come to 90.5%; make them 100%, or the last “rest”",
        ),
        (
            waves(("60%", "0h"), ("40%", "1h"), ("rest", "2h")),
            "waves: the shares come to 100%; leave out the last",
        ),
        (
            DATE + "local_time = true\n" + waves(("100%", "0h")),
            "waves: they cannot be joined with schedule.local_time; leave out one of them",
        ),
        (DATE + 'late = "skip"', 'schedule: late = "skip" needs late_limit, such as late_limit = "2h"'),
        (DATE + 'late_limit = "2h"', 'schedule: late_limit goes with late = "skip" only'),
        (
            '[schedule]\nlate = "skip"\nlate_limit = "2h"',
            'schedule: local_time and late = "skip" need a contact_date',
        ),
        (
            "[schedule]\ncontact_date = 2026-12-01T09:00:00Z\nlocal_time = true",
            "schedule: local_time needs a contact_date without an offset from UTC: it is each one's own",
        ),
        (
            "[schedule]\ncontact_date = 2026-12-01",
            "schedule.contact_date: give a date and a time without quotes, such as 2026-12-01T09:00:00",
        ),
        (
            DATE + 'time_zone = "CEST"',
            "schedule.time_zone: “CEST” is not a time zone of the IANA database, such as Europe/Paris",
        ),
    ],
)
def test_a_schedule_that_is_refused_is_told_in_a_sentence(rest: str, told: str) -> None:
    assert refusal(rest) == told


@pytest.mark.parametrize("rest", ['[limits]\nmax_attempts = "5"', DATE + 'local_time = "true"'])
def test_a_value_of_another_type_is_not_taken_for_what_it_looks_like(rest: str) -> None:
    assert "Input should be a valid" in refusal(rest)


def test_what_was_read_from_a_file_does_not_change() -> None:
    file = parse("[limits]\nmax_attempts = 5\n" + waves(("100%", "0h")))
    for part, key in ((file.limits, "max_attempts"), (file.schedule, "late"), (file.waves[0], "after")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, key, getattr(part, key))


def test_waves_are_taken_up_to_the_last_moment_of_the_validity() -> None:
    file = parse(waves(("60%", "0m"), ("rest", "4319m")))
    assert [duration_text(wave.after) for wave in file.waves] == ["0m", "4319m"]


def test_a_delivery_is_sent_late_unless_it_says_how_late_at_most() -> None:
    assert (parse(DATE).schedule.late, parse(DATE).schedule.late_limit) == ("send", None)
    skipped = parse(DATE + 'late = "skip"\nlate_limit = "1m"').schedule
    assert (skipped.late, skipped.late_limit) == ("skip", timedelta(minutes=1))


def test_a_date_without_a_zone_is_shown_in_utc_and_no_date_in_none() -> None:
    assert (Schedule().zone, Schedule().instant) == (None, None)
    assert parse(DATE).schedule.zone == "UTC"
    assert parse('[schedule]\ntime_zone = "Asia/Tokyo"').schedule.zone == "Asia/Tokyo"
    assert known_zone("Asia/Tokyo") == "Asia/Tokyo"
    assert instant_of(datetime(2026, 12, 1, 9), "Asia/Tokyo") == datetime(2026, 12, 1, tzinfo=UTC)  # noqa: DTZ001 - local


def test_a_moment_is_rounded_up_to_its_minute() -> None:
    assert round_up(NINE) == NINE
    for within in (timedelta(microseconds=1), timedelta(seconds=59, microseconds=999_999)):
        assert round_up(NINE + within) == NINE + timedelta(minutes=1)


def test_a_row_with_no_real_time_is_told_by_its_text() -> None:
    for text in ("2026-12-01", "soon"):
        with pytest.raises(ValueError, match=r"^send_at: “") as told:
            due_of(text, "", "UTC")
        assert str(told.value) == (
            f"send_at: “{text}” is not a date and a time in ISO 8601, such as 2026-12-01T09:00"
        )
    assert due_of("", "Asia/Tokyo", "UTC") is None


def test_times_of_rows_are_trimmed_and_an_endless_one_is_cut_where_it_is_told() -> None:
    due = timing(parse(""), ("address", "send_at")).due
    assert due({"send_at": "\u00a02026-12-01T09:00Z\u200b"}) == NINE
    with pytest.raises(ValueError, match=r"“x{100}”"):
        due({"send_at": "x" * 500})


@pytest.mark.parametrize(
    ("rest", "columns", "told"),
    [
        (
            waves(("100%", "0h")),
            ("send_at",),
            "the column “send_at” cannot be joined with [[waves]]; leave out one of them",
        ),
        (
            DATE + "local_time = true",
            ("send_at", "time_zone"),
            "the column “send_at” cannot be joined with [schedule] local_time; leave out one of them",
        ),
        (
            DATE + "local_time = true",
            (),
            "[schedule] local_time needs a column “time_zone”; add it, or leave that out",
        ),
    ],
)
def test_columns_that_are_refused_are_told_in_a_sentence(
    rest: str, columns: tuple[str, ...], told: str
) -> None:
    with pytest.raises(TimingInvalid) as caught:
        timing(parse(rest), ("address", *columns))
    assert str(caught.value) == told


def test_rows_have_times_of_their_own_by_the_columns_and_local_time() -> None:
    local = parse(DATE + "local_time = true")
    assert timing(local, ("address", "time_zone")).by_row
    assert timing(local, ("address", "time_zone")).due({}) == NINE
    assert timing(parse(""), ("address", "send_at")).by_row
    assert not timing(parse(DATE), ("address", "time_zone")).by_row


def test_who_is_due_when_the_validity_is_over_is_told_with_the_time_and_what_to_do() -> None:
    with pytest.raises(TimingInvalid) as caught:
        check_span(parse(DATE, "2h"), NINE, NINE + timedelta(hours=2))
    assert str(caught.value) == (
        "somebody is due at 2026-12-01 11:00 UTC, when the delivery is no longer valid;"
        " make valid_for, now 2h, longer, or change that time"
    )
    check_span(parse(DATE, "2h"), None, None)
