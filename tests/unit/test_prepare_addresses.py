"""Addresses and targets: what is kept, what is left out, and in which form."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from email_validator import EmailNotValidError, validate_email
from hypothesis import example, given
from hypothesis import strategies as st

from worker.channels.registry import address_rule
from worker.domain import audience
from worker.domain.audience import (
    AddressInvalid,
    Cause,
    Target,
    address_key,
    any_address,
    mail_address,
    targets,
)
from worker.domain.recipients_file import RecipientsFile

if TYPE_CHECKING:
    from collections.abc import Mapping

# Pieces that meet every rule of the expression for plain addresses, put together at random.
LETTERS = st.sampled_from("aZ09._+-@' éİ\u212a\"\\\n")
WORDS = st.sampled_from(["ana", "INFO", "postmaster", "..", "--", "xn--", "ab--c", "example"])
ENDS = st.sampled_from([".org", ".ORG", ".test", ".local", ".arpa", ".c0m", ".1"])
PIECES = st.one_of(LETTERS, WORDS, ENDS, st.sampled_from(["x" * 63, "x" * 64, "x" * 65]))
NEAR_ADDRESSES = st.one_of(
    st.lists(PIECES, max_size=8).map("".join),
    st.tuples(st.lists(PIECES, max_size=4).map("".join), st.lists(PIECES, max_size=5).map("".join)).map(
        "@".join
    ),
    st.tuples(st.sampled_from(["ana", "News", "aNA.b"]), st.lists(PIECES, max_size=3).map("".join)).map(
        lambda parts: f"{parts[0]}@{parts[1]}example.org"
    ),
)


@given(NEAR_ADDRESSES)
@example("\u212aate@example.org")
@example("ana@\u212aiel.example")
@example(f"{'a' * 64}@example.org")
@example(f"{'a' * 65}@example.org")
@example(f"{'a' * 240}@b.example.org")
@example(f"{'a' * 241}@b.example.org")
def test_the_fast_path_says_what_email_validator_says(text: str) -> None:
    try:
        expected = validate_email(text, check_deliverability=False, strict=True).normalized
    except EmailNotValidError:
        with pytest.raises(AddressInvalid):
            mail_address(text)
    else:
        assert mail_address(text) == expected


@given(st.emails())
def test_the_fast_path_agrees_on_addresses_of_all_kinds(text: str) -> None:
    try:
        expected = validate_email(text, check_deliverability=False, strict=True).normalized
    except EmailNotValidError:
        with pytest.raises(AddressInvalid):
            mail_address(text)
    else:
        assert mail_address(text) == expected


def test_plain_addresses_take_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(audience, "validate_email")
    for text in ("ana@example.org", "Ana.Maria+news@Mail.Example.ORG", "o'neil_1@a-b.example.co"):
        mail_address(text)


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("Ana@EXAMPLE.org", "Ana@example.org"),
        ("INFO@Example.org", "info@example.org"),
        ("π@παράδειγμα.gr", "π@παράδειγμα.gr"),
        ("ana@xn--hxajbheg2az3al.gr", "ana@παράδειγμα.gr"),
        ("ana@BÜCHER.example", "ana@bücher.example"),
        ("e\u0301@example.org", "\u00e9@example.org"),
    ],
)
def test_an_address_is_brought_into_its_normal_form(written: str, address: str) -> None:
    assert mail_address(written) == address


@pytest.mark.parametrize(
    "text", ["ana", "a@b", "a@b@example.org", "a b@example.org", "a@host.local", "@x.org"]
)
def test_what_is_no_public_address_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(AddressInvalid, match=r"\w+ \w+"):
        mail_address(text)


def test_addresses_that_differ_in_case_alone_share_a_key() -> None:
    assert address_key("Ana@Example.org") == address_key("aNA@example.ORG")


def test_only_mail_addresses_are_judged_as_such() -> None:
    assert address_rule("email") is address_rule("null") is mail_address
    assert address_rule("sms") is any_address


def judge(text: str, channel: str = "email") -> list[Target]:
    file = RecipientsFile(io.StringIO(text, newline="").readline)
    return list(targets(file, address_rule(channel), lambda _: None))


def test_a_row_becomes_a_target_with_its_columns_as_variables() -> None:
    (target,) = judge("profile_id,address,First name,note\n 7 ,Ana@Example.org,Ana,“é”\n")
    assert target[:4] == (2, "Ana@example.org", "ana@example.org", "7")
    assert target.variables is not None
    assert json.loads(target.variables) == {"profile_id": " 7 ", "First name": "Ana", "note": "“é”"}
    assert target.cause is None


@pytest.mark.parametrize(
    "blank", [" ", "\u00a0", "\u200b", "\ufeff", "\u2060", "\u202f", "\t", "\u200e", "\u3000"]
)
def test_white_space_and_zero_width_characters_around_an_address_are_cut_off(blank: str) -> None:
    (kept, empty) = judge(f"address,n\n{blank} {blank}ana@example.org{blank},1\n{blank}{blank},2\n")
    assert kept.address == "ana@example.org"
    assert empty.cause is Cause.EMPTY


def test_what_is_left_out_keeps_its_line_its_address_and_the_reason() -> None:
    kept, empty, invalid, malformed = judge("address,n\na@x.org,1\n,2\nnope,3\nb@x.org\n")
    assert kept.cause is None
    assert (empty.line, empty.cause, empty.address) == (3, Cause.EMPTY, "")
    assert (invalid.line, invalid.cause, invalid.address) == (4, Cause.INVALID, "nope")
    assert invalid.detail is not None
    assert "@-sign" in invalid.detail
    assert (malformed.line, malformed.cause, malformed.address) == (5, Cause.MALFORMED, None)
    assert all(t.variables is None and t.address_key is None for t in (empty, invalid, malformed))


def test_an_endless_address_is_cut_and_invalid() -> None:
    (target,) = judge("address\n" + "a" * 50_000 + "@example.org\n")
    assert target.cause is Cause.INVALID
    assert target.address is not None
    assert len(target.address) == 1_000


def test_a_row_that_is_left_out_ends_nothing() -> None:
    """Each way to be left out, and after it a row that is kept."""

    def due(row: Mapping[str, str]) -> None:
        if row["n"] == "late":
            raise ValueError("no such time")

    rows = "".join(f"{bad}\nb@x.org,2\n" for bad in ("only one field", ",1", "nope,1", "a@x.org,late"))
    file = RecipientsFile(io.StringIO("address,n\n" + rows, newline="").readline)
    judged = list(targets(file, mail_address, due))
    causes = [Cause.MALFORMED, Cause.EMPTY, Cause.INVALID, Cause.MISTIMED]
    assert [t.cause for t in judged[::2]] == causes
    assert [t.cause for t in judged[1::2]] == [None] * 4
    assert judged[6][1:] == ("a@x.org", None, None, None, Cause.MISTIMED, "no such time", None)


def test_a_row_without_a_profile_names_none() -> None:
    blank, absent = judge("profile_id,address\n ,a@x.org\n")[0], judge("address\na@x.org\n")[0]
    assert (blank.profile_id, absent.profile_id) == (None, None)
    assert (blank.variables, absent.variables) == ('{"profile_id":" "}', "{}")


def test_a_target_carries_when_it_is_due() -> None:
    file = RecipientsFile(io.StringIO("address\na@x.org\n", newline="").readline)
    at = datetime(2026, 12, 1, 9, tzinfo=UTC)
    (target,) = targets(file, mail_address, lambda _: at)
    assert target.due_at == at


def test_the_causes_that_dashboards_count_by_stay() -> None:
    assert [cause.value for cause in Cause] == [cause.name.lower() for cause in Cause]


def test_an_address_of_another_channel_is_kept_as_it_is() -> None:
    assert any_address(" +49 170 ") == " +49 170 "
