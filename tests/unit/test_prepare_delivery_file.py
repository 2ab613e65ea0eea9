"""The delivery file: what it says, and every way in which it can be wrong, by its key."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from worker.channels import registry
from worker.domain.content import EmailContent
from worker.domain.delivery_file import DeliveryFile, DeliveryFileInvalid, parse_delivery_file

CHANNELS = {name: kind.content for name, kind in registry.CHANNELS.items()}

FULL = """
label = "November newsletter"
channel = "email"
valid_for = "3d"
[schedule]
contact_date = 2026-12-01T09:00:00
time_zone = "Europe/Paris"
[email]
from = "News <news@example.org>"
subject = "Hello {{ first_name }}"
text = "…"
html = "…"
"""


def parse(text: str) -> DeliveryFile:
    return parse_delivery_file(text.encode(), CHANNELS)


def refusal(text: str) -> str:
    with pytest.raises(DeliveryFileInvalid) as caught:
        parse(text)
    return str(caught.value)


def test_a_full_file_is_read() -> None:
    file = parse(FULL)
    assert (file.label, file.channel, file.valid_for) == ("November newsletter", "email", timedelta(days=3))
    assert file.schedule.instant == datetime(2026, 12, 1, 8, tzinfo=UTC)
    assert file.schedule.zone == "Europe/Paris"
    assert EmailContent.model_validate_json(file.content_json) == file.content


def test_what_a_content_leaves_out_is_not_kept() -> None:
    kept = json.loads(parse(FULL.replace('html = "…"\n', "")).content_json)
    assert kept.keys() == {"from", "subject", "text", "headers", "attachments"}


def test_a_byte_order_mark_is_no_part_of_it() -> None:
    assert parse("\ufeff" + FULL) == parse(FULL)


def test_a_rehearsal_needs_no_content_and_has_defaults() -> None:
    file = parse('label = "x"\nchannel = "null"')
    assert file.content is None
    assert file.content_json == "{}"
    assert (file.schedule.instant, file.schedule.zone) == (None, None)
    assert file.valid_for == timedelta(days=3)


@pytest.mark.parametrize(
    ("written", "duration"),
    [
        ("90m", timedelta(minutes=90)),
        ("12h", timedelta(hours=12)),
        ("1m", timedelta(minutes=1)),
        ("90d", timedelta(days=90)),
    ],
)
def test_a_duration_is_a_number_of_minutes_hours_or_days(written: str, duration: timedelta) -> None:
    assert parse(FULL.replace('"3d"', f'"{written}"')).valid_for == duration


@pytest.mark.parametrize(
    ("date", "zone", "instant"),
    [
        ("2026-12-01T09:00:00", None, "2026-12-01T09:00:00"),
        ("2026-12-01T09:00:00+05:30", None, "2026-12-01T03:30:00"),
        ("2026-12-01T09:00:00Z", "America/New_York", "2026-12-01T09:00:00"),
        ("2026-12-01T09:00:00", "America/New_York", "2026-12-01T14:00:00"),
        # The clocks go forward from 02:00 to 03:00: 02:30 is not there, and 03:30 summer time is meant.
        ("2026-03-29T02:30:00", "Europe/Paris", "2026-03-29T01:30:00"),
        # The clocks go back from 03:00 to 02:00: 02:30 comes twice, and the first is meant.
        ("2026-10-25T02:30:00", "Europe/Paris", "2026-10-25T00:30:00"),
    ],
)
def test_the_contact_date_is_one_instant(date: str, zone: str | None, instant: str) -> None:
    text = FULL.replace("2026-12-01T09:00:00", date)
    text = text.replace('time_zone = "Europe/Paris"', f'time_zone = "{zone}"' if zone else "")
    schedule = parse(text).schedule
    assert schedule.instant == datetime.fromisoformat(instant).replace(tzinfo=UTC)
    assert schedule.zone == (zone or "UTC")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("label", "lable", "the key “label” is missing"),
        ("label", "lable", "there is no key “lable”"),
        ("html", "htlm", "there is no key “email.htlm”"),
        ("time_zone", "timezone", "there is no key “schedule.timezone”"),
        ('"November newsletter"', "42", "label: Input should be a valid string"),
        ('"November newsletter"', '" "', "label: it must be one line that is not blank"),
        ('"November newsletter"', '"a\\u0000b"', "label: it must be one line"),
        ('"November newsletter"', '"' + "x" * 201 + '"', "label: String should have at most 200"),
        ('"email"', '"sms"', "channel: “sms” is not a channel of this installation, which has email, null"),
        ('"3d"', '"3w"', "valid_for: give a number with m, h or d"),
        ('"3d"', "3", "valid_for: give a number with m, h or d"),
        ('"3d"', '"0m"', "valid_for: it must be at least 1m and at most 90d"),
        ('"3d"', '"91d"', "valid_for: it must be at least 1m and at most 90d"),
        ("2026-12-01T09:00:00", "2026-12-01", "schedule.contact_date: give a date and a time"),
        ("2026-12-01T09:00:00", '"2026-12-01T09:00:00"', "schedule.contact_date: give a date and a time"),
        ("2026-12-01T09:00:00", "9999-12-31T23:59:59", "schedule.contact_date: the year must be from 2000"),
        ("Europe/Paris", "Mars/Olympus", "schedule.time_zone: “Mars/Olympus” is not a time zone"),
        ("Europe/Paris", "../etc/passwd", "schedule.time_zone: “../etc/passwd” is not a time zone"),
        ("News <news@example.org>", "News", "email.from: "),
        ('text = "…"', 'text = "a\\u0000b"', "email.text: it holds a NUL character"),
        ("[email]", "[emial]", "there is no key “emial”"),
        ("[schedule]", "[schedule", "^it is not TOML: .*line 5"),
    ],
)
def test_what_is_wrong_is_told_by_its_key(old: str, new: str, reason: str) -> None:
    assert old in FULL
    with pytest.raises(DeliveryFileInvalid, match=reason):
        parse(FULL.replace(old, new, 1))


def test_everything_that_is_wrong_is_told_at_once() -> None:
    told = refusal(FULL.replace("label", "lable").replace('"3d"', '"never"'))
    assert "“label”" in told
    assert "“lable”" in told
    assert "valid_for" in told


def test_mail_needs_a_content() -> None:
    assert refusal('label = "x"\nchannel = "email"') == "the [email] table with the content is missing"


def test_bytes_that_are_not_utf_8_are_told_by_their_line() -> None:
    with pytest.raises(DeliveryFileInvalid, match=r"^line 2 is not UTF-8 text$"):
        parse_delivery_file(b'label = "x"\nchannel = "\xe9"\n', CHANNELS)
    with pytest.raises(DeliveryFileInvalid, match=r"^line 2 is not UTF-8 text$"):
        parse_delivery_file(b"\n\xe9", CHANNELS)


def test_each_fault_is_told_on_its_own_and_the_content_among_them() -> None:
    told = refusal(FULL.replace("label", "lable").replace("html", "htlm") + "[limits]\nerror_pct = 101")
    assert told == (
        "the key “label” is missing; limits.error_pct: Input should be less than or equal to 100;"
        " there is no key “lable”; there is no key “email.htlm”"
    )


def test_a_file_that_is_not_toml_is_told_as_such() -> None:
    assert refusal("label").startswith("it is not TOML: ")


def test_the_content_is_given_in_the_table_of_the_channel_alone() -> None:
    rehearsal = parse(FULL.replace('channel = "email"', 'channel = "null"'))
    assert rehearsal.content == parse(FULL).content
    assert refusal('label = "x"\nchannel = "null"\ncontent = {}') == "there is no key “content”"


def test_where_the_channel_is_wrong_its_table_is_not_told_as_well() -> None:
    for channel in ('"sms"', "7"):
        told = refusal(FULL.replace('channel = "email"', f"channel = {channel}"))
        assert told.startswith("channel: ")
        assert "email." not in told
        assert "“email”" not in told


def test_a_label_of_200_characters_is_the_longest() -> None:
    assert len(parse(FULL.replace("November newsletter", "x" * 200)).label) == 200


def test_a_hundred_waves_are_the_most() -> None:
    def file(count: int) -> str:
        each = '[[waves]]\nshare = "{}"\nafter = "{}m"\n'
        return FULL + "".join(each.format("rest" if i == count else "0.5%", i) for i in range(1, count + 1))

    assert len(parse(file(100)).waves) == 100
    assert "waves: Tuple should have at most 100 items" in refusal(file(101))


def test_a_content_that_is_neither_needed_nor_given_is_none() -> None:
    table = CHANNELS["email"]
    assert table is not None
    optional = {"email": replace(table, required=False)}
    assert parse_delivery_file(b'label = "x"\nchannel = "email"', optional).content is None


def test_the_channels_of_the_installation_are_named_where_it_has_none_such() -> None:
    for text in ('label = "x"\nchannel = "sms"', 'label = "x"\nchannel = "sms"\n[email]\nx = 1'):
        has = ", ".join(CHANNELS)
        assert refusal(text) == f"channel: “sms” is not a channel of this installation, which has {has}"


def test_a_delivery_file_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        parse(FULL).label = "other"  # type: ignore[misc]
