"""The names of an attempt: nobody can make one without a key, and every name is read again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.domain.keys import Key, KeysInvalid, read_keys
from worker.domain.return_path import Reference, ReturnPath, looks_like_ours

KEY = Key(1, b"k" * 32)
OTHER = Key(2, b"o" * 32)
OURS = ReturnPath([KEY], "news.example.org")
REFERENCES = st.builds(
    Reference, st.integers(1, 2**63 - 1), st.integers(1, 2**31 - 1), st.integers(1, 2**15 - 1)
)


def message_id(path: ReturnPath, reference: Reference) -> str:
    return f"<{'-'.join(map(str, reference))}.0123456789ab.{path.tag(reference)}@example.org>"


@given(REFERENCES)
def test_every_name_is_read_again_in_any_case(reference: Reference) -> None:
    sender = OURS.sender(reference)
    assert sender is not None
    assert len(sender.partition("@")[0]) <= 64
    names = (sender, f"<{sender}>", f"prvs=0123={sender}", message_id(OURS, reference), OURS.token(reference))
    for name in names:
        assert OURS.read(name) == OURS.read(name.upper()) == reference


@given(REFERENCES, st.integers(0, 200), st.sampled_from("abcxyz234567+@-.<"))
def test_a_changed_letter_is_nobody(reference: Reference, place: int, letter: str) -> None:
    sender = OURS.sender(reference)
    assert sender is not None
    signed = message_id(OURS, reference).replace("0123456789ab", "ffffffffffff")  # the content is not signed
    for name in (sender, signed):
        at = place % name.index("@")
        changed = f"{name[:at]}{letter}{name[at + 1 :]}"
        unsigned = name[at] in "f<"
        assert unsigned or changed == name or OURS.read(changed) is None


@given(REFERENCES, REFERENCES)
def test_a_tag_of_another_attempt_is_nobody(one: Reference, other: Reference) -> None:
    forged = message_id(OURS, one).replace(OURS.tag(one), OURS.tag(other))
    assert (OURS.read(forged) == one) is (one == other)


@given(st.text(max_size=80) | st.from_regex(r"bounces\+[a-z2-7]{20,52}@x", fullmatch=True))
def test_any_text_is_read(text: str) -> None:
    assert OURS.read(text) is None


@given(REFERENCES)
def test_keys_are_changed_without_losing_what_is_under_way(reference: Reference) -> None:
    before, after = ReturnPath([KEY], "e.example"), ReturnPath([OTHER, KEY], "e.example")
    for name in (before.sender(reference), message_id(before, reference)):
        assert name is not None
        assert after.read(name) == reference
    sender = after.sender(reference)
    assert sender is not None
    assert before.read(sender) is None
    assert before.read(message_id(after, reference)) is None


def test_a_token_is_no_tag() -> None:
    """What is signed for one purpose fits no other."""
    reference = Reference(42, 17, 1)
    sender = OURS.sender(reference)
    assert sender is not None
    token = sender.removeprefix("bounces+").partition("@")[0]
    assert OURS.tag(reference) not in token


def test_without_a_domain_the_envelope_sender_stays() -> None:
    assert ReturnPath([KEY]).sender(Reference(1, 1, 1)) is None


def test_what_claims_to_be_ours() -> None:
    assert looks_like_ours("<BOUNCES+abc@x.example>")
    assert not looks_like_ours("abuse@x.example")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "there is no key"),
        ("secret", "key 1 is not written as number:secret"),
        ("1:short", "the secret of key 1 is too short: it needs 32 bytes"),
        ("0:" + "a" * 32, "key 1 has the number 0; numbers are from 1 to 65535"),
        ("1:" + "a" * 32 + ",1:" + "b" * 32, "there are two keys with the number 1"),
    ],
)
def test_keys_that_cannot_be_used(text: str, sentence: str) -> None:
    with pytest.raises(KeysInvalid, match=sentence):
        read_keys(text)


def test_keys_are_read_in_their_order() -> None:
    assert read_keys(f"2:{'o' * 32},\n1:{'k' * 32}\n") == (OTHER, KEY)
    assert "ooo" not in repr(OTHER)
