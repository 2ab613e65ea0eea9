"""Tokens and URLs of the tracker: what was signed is read, and nothing else is."""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.domain.keys import Key, read_keys
from worker.domain.links import MOST_LINKS, Keys, Links, Named, Purpose, base_url, web_address

if TYPE_CHECKING:
    from hypothesis.strategies import DataObject

KEYS = Keys(read_keys(f"2:{'n' * 32},1:{'o' * 40}"))
OTHERS = Keys(read_keys(f"2:{'x' * 32}"))

deliveries = st.integers(1, 2**63 - 1)
recipients = st.integers(1, 2**31 - 1)
numbers = st.integers(0, MOST_LINKS)
purposes = st.sampled_from(list(Purpose))


def token(delivery_id: int = 42, recipient: int = 17, link: int = 3) -> str:
    return KEYS.tokens(Purpose.CLICK, delivery_id, recipient, [link])[0]


@given(purposes, deliveries, recipients, st.lists(numbers, min_size=1, max_size=5))
def test_a_token_names_what_was_signed_and_is_no_other_purposes(
    purpose: Purpose, delivery_id: int, recipient: int, links: list[int]
) -> None:
    tokens = KEYS.tokens(purpose, delivery_id, recipient, links)
    assert [KEYS.read(purpose, t) for t in tokens] == [Named(delivery_id, recipient, n) for n in links]
    for other in set(Purpose) - {purpose}:
        assert all(KEYS.read(other, t) is None for t in tokens)
    assert all(OTHERS.read(purpose, t) is None for t in tokens)


@given(st.binary(min_size=1, max_size=200), purposes, deliveries, recipients, numbers)
def test_the_tag_is_the_hmac_of_the_standard_library(
    secret: bytes, purpose: Purpose, delivery_id: int, recipient: int, link: int
) -> None:
    (made,) = Keys([Key(1, secret)]).tokens(purpose, delivery_id, recipient, [link])
    octets = urlsafe_b64decode(made + "=" * (-len(made) % 4))
    text = b"sendoff " + purpose.encode() + b"\0" + octets[:-12]
    assert octets[-12:] == hmac.digest(secret, text, "sha256")[:12]


@given(st.data())
def test_any_other_spelling_of_a_token_is_refused(data: DataObject) -> None:
    made = token()
    at = data.draw(st.integers(0, len(made) - 1))
    letter = data.draw(st.characters())
    for changed in (
        made[:at] + letter + made[at + 1 :],
        made[:at] + letter + made[at:],
        made[:at],
        made[at:],
    ):
        assert (KEYS.read(Purpose.CLICK, changed) is None) == (changed != made)
    octets = bytearray(urlsafe_b64decode(made + "=" * (-len(made) % 4)))
    octets[data.draw(st.integers(0, len(octets) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert KEYS.read(Purpose.CLICK, urlsafe_b64encode(octets).rstrip(b"=").decode()) is None


@given(
    st.one_of(
        st.text(),
        st.text("ABCabc019_-=", max_size=60),
        st.binary().map(lambda b: urlsafe_b64encode(b).decode()),
    )
)
def test_any_text_is_read_without_an_error(text: str) -> None:
    assert KEYS.read(Purpose.CLICK, text) is None


@given(st.binary(max_size=30))
def test_any_signed_octets_are_read_without_an_error(signed: bytes) -> None:
    # As if somebody had a key: the numbers are still bounded.
    tag = hmac.digest(b"n" * 32, b"sendoff c\0" + signed, "sha256")[:12]
    named = KEYS.read(Purpose.CLICK, urlsafe_b64encode(signed + tag).rstrip(b"=").decode())
    assert named is None or named.link <= MOST_LINKS


@pytest.mark.parametrize(
    "change", [lambda t: t * 2, lambda t: t + t[-1], lambda t: t + "=", lambda t: f" {t}", str.lower]
)
def test_a_token_that_was_doubled_or_bent_is_refused(change: object) -> None:
    assert KEYS.read(Purpose.CLICK, change(token())) is None  # type: ignore[operator]


def test_a_token_of_an_older_key_is_read_and_the_newest_signs() -> None:
    (old,) = Keys(read_keys(f"1:{'o' * 40}")).tokens(Purpose.OPEN, 1, 2)
    assert KEYS.read(Purpose.OPEN, old) == Named(1, 2, 0)
    (new,) = KEYS.tokens(Purpose.OPEN, 1, 2)
    assert Keys(read_keys(f"2:{'n' * 32}")).read(Purpose.OPEN, new) == Named(1, 2, 0)


def test_a_proofs_token_is_read_and_told_apart() -> None:
    links = Links("https://t.example.org", KEYS)
    mine, proofs = (one.optout(42, 17).rpartition("/")[2] for one in (links, links.of_proofs()))
    assert KEYS.read(Purpose.OPTOUT, mine) == Named(42, 17, 0)
    assert KEYS.read(Purpose.OPTOUT, proofs) == Named(42, 17, 0, proof=True)
    assert KEYS.read(Purpose.OPEN, proofs) is None


def test_a_token_is_short() -> None:
    assert len(token(delivery_id=42, recipient=17)) == 22
    assert len(token(delivery_id=2**63 - 1, recipient=2**31 - 1, link=MOST_LINKS)) <= 48


@pytest.mark.parametrize(
    ("text", "base"),
    [
        ("https://news.example.org", "https://news.example.org"),
        ("https://news.example.org/", "https://news.example.org"),
        ("http://127.0.0.1:8025/t/", "http://127.0.0.1:8025/t"),
    ],
)
def test_a_base_is_kept_without_its_last_slash(text: str, base: str) -> None:
    assert base_url(text) == base


@pytest.mark.parametrize(
    "text",
    [
        "news.example.org",
        "ftp://news.example.org",
        "https://",
        "https:///t",
        "https://u:p@news.example.org",
        "https://news.example.org/?a=1",
        "https://news.example.org/#a",
        "https://news.example.org/a b",
        'https://news.example.org/"',
        "https://news.example.org/&",
        "https://nëws.example.org",
        "javascript:alert(1)",
    ],
)
def test_what_is_no_base_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="it "):
        base_url(text)


def test_the_urls_of_a_recipient() -> None:
    links = Links("https://t.example.org", KEYS)
    (click,) = links.clicks(42, 17, [3])
    assert click == f"https://t.example.org/c/{token()}"
    for url, purpose, tail in (
        (links.pixel(42, 17), Purpose.OPEN, ".gif"),
        (links.mirror(42, 17), Purpose.MIRROR, ""),
        (links.optout(42, 17), Purpose.OPTOUT, ""),
    ):
        head, _, rest = url.rpartition("/")
        assert head == f"https://t.example.org/{purpose}"
        assert KEYS.read(purpose, rest.removesuffix(tail)) == Named(42, 17, 0)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (" https://a.org/x y?q=é#ü\n", "https://a.org/x%20y?q=%C3%A9#%C3%BC"),
        ("HTTP://A.org", "http://a.org"),
        ("https://bücher.org:8080/", "https://xn--bcher-kva.org:8080/"),
        ("http://[::1]:80/", "http://[::1]:80/"),
        ("https://a.org/%20?a=%C3%A9&b=[1]", "https://a.org/%20?a=%C3%A9&b=[1]"),
        ("https://a.org/\\@b.org", "https://a.org/%5C@b.org"),
        ("https://a.org\\@b.org", None),
        ("https://a@b.org", None),
        ("https:///x", None),
        ("https://a.org/\nSet-Cookie: x", None),
        ("https://a b.org/", None),
        ("https://a.org:99999/", None),
        ("https://ü..org/", None),
        ("//a.org", None),
        ("javascript:alert(1)", None),
        ("data:text/html,https://a.org", None),
        ("", None),
    ],
)
def test_only_addresses_of_web_sites_are_led_to(text: str, address: str | None) -> None:
    assert web_address(text) == address


@given(st.text())
def test_an_address_can_stand_in_a_header(text: str) -> None:
    for tried in (text, f"https://a.org/{text}", f"https://{text}"):
        address = web_address(tried)
        if address is not None:
            assert address.isascii()
            assert address.isprintable()
            assert " " not in address
            assert address.startswith(("https://", "http://"))
