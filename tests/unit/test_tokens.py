"""What a token must be to be believed, whatever is altered in it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import time
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from worker.auth.tokens import LEEWAY, TokenRefused, open_verifier
from worker.domain.authority import Bearer
from worker.domain.operators import Role
from worker.settings import Settings, SettingsError, read_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from worker.auth.tokens import Verifier

SECRET = "a secret that is long enough, at 32+"  # noqa: S105 - made for this test
DAY = 86_400
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
WEAK_KEY = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - must be refused
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
SHARED = {"auth": "token", "auth_issuer": "https://id.example.org", "auth_audience": "sendoff"}
BY_SECRET = {**SHARED, "auth_key": SECRET}


def settings(**given: Any) -> Settings:
    return Settings(_env_file=None, **given)


def verifier(**given: Any) -> Verifier:
    made = open_verifier(settings(**given))
    assert made is not None
    return made


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    own = {
        "iss": "https://id.example.org",
        "aud": "sendoff",
        "sub": "ana",
        "iat": now,
        "exp": now + DAY,  # made when tests are collected, used when their turn comes
        "roles": ["start_deliveries"],
    }
    return {k: v for k, v in (own | changes).items() if v is not None}


def signed(key: Any = SECRET, algorithm: str = "HS256", kid: str | None = None, **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm=algorithm, headers={"kid": kid} if kid else None)


def pem(key: Any) -> bytes:
    public: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return public


def jwk(key: Any, **more: Any) -> dict[str, Any]:
    kinds: dict[Any, Any] = {
        rsa.RSAPrivateKey: jwt.algorithms.RSAAlgorithm,
        ec.EllipticCurvePrivateKey: jwt.algorithms.ECAlgorithm,
        ed25519.Ed25519PrivateKey: jwt.algorithms.OKPAlgorithm,
    }
    (algorithm,) = (a for kind, a in kinds.items() if isinstance(key, kind))
    public: dict[str, Any] = algorithm.to_jwk(key.public_key(), as_dict=True)
    return public | more


def segment(content: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


def test_a_good_token_names_the_operator_and_the_roles() -> None:
    expected = Bearer("ana", frozenset({Role.START_DELIVERIES}))
    own = verifier(**BY_SECRET)
    token = signed(roles=["start_deliveries", "of another system", 7])
    for header in (token, f"Bearer {token}", f"bearer {token}", token.encode()):
        assert own.verify(header) == expected
    assert own.verify(signed(aud=["other", "sendoff"])) == expected
    assert own.verify(signed(roles=None)) == Bearer("ana", frozenset())
    assert own.verify(signed(exp=int(time.time()) - LEEWAY + 5)) == expected
    named = verifier(**BY_SECRET, auth_operator_claim="login", auth_roles_claim="https://x/roles")
    assert (
        named.verify(signed(sub=None, login="ana", **{"https://x/roles": ["start_deliveries"]})) == expected
    )


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (None, "carries no token"),
        ("", "carries no token"),
        (17, "carries no token"),
        ("Basic YTpi", "not a signed JSON Web Token"),
        ("Bearer", "not a signed JSON Web Token"),
        ("a.b.c", "not a signed JSON Web Token"),
        (b"\xff.\xff.\xff", "not a signed JSON Web Token"),
        (f"Bearer  {signed()}", "not a signed JSON Web Token"),
        (signed() + "=", "not a signed JSON Web Token"),
        (f"{signed()}.x", "not a signed JSON Web Token"),
        ("x" * 20_000 + ".y.z", "not a signed JSON Web Token"),
        ("[" * 9_000 + ".y.z", "not a signed JSON Web Token"),
        (f"{base64.urlsafe_b64encode(b'[' * 9000).decode()}.e30.AAAA", "not a signed JSON Web Token"),
        (f"{segment({'alg': 'HS256', 'kid': 7})}.e30.AAAA", "not a signed JSON Web Token"),
        (f"{segment({'alg': 'HS256', 'crit': ['x'], 'x': 1})}.e30.AAAA", "not a signed JSON Web Token"),
        (signed(key=SECRET + "!"), "signature is wrong"),
        (signed(exp=1), "has expired"),
        (signed(exp=int(time.time()) - LEEWAY - 1), "has expired"),
        (signed(nbf=int(time.time()) + DAY), "not valid yet"),
        (signed(iat=int(time.time()) + DAY), "not valid yet"),
        (signed(exp=None), "lacks the claim “exp”"),
        (signed(exp="soon"), "not a signed JSON Web Token"),
        (signed(exp=float("inf")), "not a signed JSON Web Token"),
        (signed(iss=None), "lacks the claim “iss”"),
        (signed(iss="https://id.example.org/"), "another issuer"),
        (signed(aud=None), "lacks the claim “aud”"),
        (signed(aud="sendoff2"), "another audience"),
        (signed(aud=["other"]), "another audience"),
        (signed(sub=None), "lacks the claim “sub”"),
        (signed(sub=""), "no operator's name"),
        (signed(sub="a" * 201), "no operator's name"),
        (signed(sub="a\x00"), "no operator's name"),
        (signed(roles="start_deliveries"), "not a list of roles"),
        (signed(roles={"start_deliveries": True}), "not a list of roles"),
        (signed(SECRET.ljust(64), "HS512"), "algorithm that is not allowed"),
        (signed(RSA_KEY, "RS256"), "algorithm that is not allowed"),
        (jwt.encode(claims(), None, algorithm="none"), "not a signed JSON Web Token"),
        (f"{segment({'alg': 'none'})}.{segment(claims())}.AAAA", "algorithm that is not allowed"),
        (f"{segment({'alg': 'None'})}.{segment(claims())}.AAAA", "algorithm that is not allowed"),
    ],
)
def test_whatever_is_not_as_it_must_be_is_refused_in_a_sentence_without_the_token(
    header: Any, sentence: str
) -> None:
    with pytest.raises(TokenRefused, match=sentence) as raised:
        verifier(**BY_SECRET).verify(header)
    assert "eyJ" not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


@given(data=st.data(), key=st.sampled_from(["secret", "rsa", "ec", "ed"]))
def test_any_altered_byte_is_refused(
    data: st.DataObject, key: str, tampered: dict[str, tuple[Verifier, bytes]]
) -> None:
    own, token = tampered[key]
    assert own.verify(token).operator == "ana"
    at = data.draw(st.integers(0, len(token) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != token[at]))
    with pytest.raises(TokenRefused):
        own.verify(token[:at] + bytes([byte]) + token[at + 1 :])


@given(data=st.data(), key=st.sampled_from(["secret", "rsa", "ec", "ed"]))
def test_any_byte_more_or_less_is_refused(
    data: st.DataObject, key: str, tampered: dict[str, tuple[Verifier, bytes]]
) -> None:
    own, token = tampered[key]
    at = data.draw(st.integers(0, len(token) - 1))
    more = data.draw(st.binary(max_size=3))
    less = 0 if more else data.draw(st.integers(1, 3))
    changed = token[:at] + more + token[at + less :]
    if changed != token:
        with pytest.raises(TokenRefused):
            own.verify(changed)


@pytest.fixture(scope="module")
def tampered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Verifier, bytes]]:
    """A verifier of each kind, with a token that it takes."""
    made = {"secret": (verifier(**BY_SECRET), signed().encode())}
    for name, key, algorithm in (("rsa", RSA_KEY, "RS256"), ("ec", EC_KEY, "ES256"), ("ed", ED_KEY, "EdDSA")):
        path = tmp_path_factory.mktemp(name) / "key.pem"
        path.write_bytes(pem(key))
        own = verifier(**SHARED, auth_key_file=path, auth_algorithms=algorithm)
        made[name] = (own, signed(key, algorithm).encode())
    return made


def test_a_public_key_is_no_secret_to_sign_with(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(pem(RSA_KEY))
    own = verifier(**SHARED, auth_key_file=path)
    assert own.verify(signed(RSA_KEY, "RS256")).operator == "ana"
    signing = f"{segment({'alg': 'HS256', 'typ': 'JWT'})}.{segment(claims())}"
    forged = hmac.new(pem(RSA_KEY), signing.encode(), hashlib.sha256).digest()
    confused = f"{signing}.{base64.urlsafe_b64encode(forged).rstrip(b'=').decode()}"
    with pytest.raises(TokenRefused, match="algorithm that is not allowed"):
        own.verify(confused)
    with pytest.raises(TokenRefused, match="algorithm that is not allowed"):
        own.verify(signed(RSA_KEY, "PS256"))


def test_the_key_set_is_read_again_when_it_changes(tmp_path: Path, jwks: Callable[..., None]) -> None:
    path = tmp_path / "jwks.json"
    jwks(jwk(RSA_KEY, kid="one"), jwk(EC_KEY, kid="curve"), jwk(RSA_KEY, kid="enc", use="enc"))
    own = verifier(**SHARED, auth_jwks_file=path, auth_algorithms="RS256,ES256")
    assert own.verify(signed(RSA_KEY, "RS256", "one")).operator == "ana"
    assert own.verify(signed(EC_KEY, "ES256", "curve")).operator == "ana"
    for key, algorithm, kid, sentence in (
        (RSA_KEY, "RS256", "two", "not in SENDOFF_AUTH_JWKS_FILE"),
        (RSA_KEY, "RS256", "enc", "not in SENDOFF_AUTH_JWKS_FILE"),
        (RSA_KEY, "RS256", None, "no kid"),
        (RSA_KEY, "RS256", "curve", "algorithm that is not allowed"),
        (SECRET, "HS256", "one", "algorithm that is not allowed"),
    ):
        with pytest.raises(TokenRefused, match=sentence):
            own.verify(signed(key, algorithm, kid))

    jwks(jwk(RSA_KEY, kid="two"))
    assert own.verify(signed(RSA_KEY, "RS256", "two")).operator == "ana"
    with pytest.raises(TokenRefused, match="not in"):
        own.verify(signed(RSA_KEY, "RS256", "one"))

    for broken in ('{"keys": [', '{"keys": []}', "[]", "{}", '{"keys": 1}', '{"keys": ["x"]}'):
        path.write_text(broken)
        assert own.verify(signed(RSA_KEY, "RS256", "two")).operator == "ana"
        with pytest.raises(SettingsError, match="SENDOFF_AUTH_JWKS_FILE: "):
            verifier(**SHARED, auth_jwks_file=path)
    path.unlink()
    assert own.verify(signed(RSA_KEY, "RS256", "two")).operator == "ana"
    jwks(jwk(ED_KEY, kid="two"))  # not for the pinned algorithms: as good as no file
    assert own.verify(signed(RSA_KEY, "RS256", "two")).operator == "ana"


def test_a_key_set_gives_no_key_that_could_be_forged_with(tmp_path: Path, jwks: Callable[..., None]) -> None:
    secret = base64.urlsafe_b64encode(SECRET.encode()).rstrip(b"=").decode()
    private = jwt.algorithms.RSAAlgorithm.to_jwk(RSA_KEY, as_dict=True)
    path = tmp_path / "jwks.json"
    for entry in (
        {"kty": "oct", "k": secret, "kid": "one"},
        private | {"kid": "one"},
        jwk(WEAK_KEY, kid="one"),
        jwk(RSA_KEY),
        jwk(RSA_KEY, kid="one", alg="PS256"),
        jwk(RSA_KEY, kid=7),
        {"kty": "new", "kid": "one"},
    ):
        jwks(entry)
        with pytest.raises(SettingsError, match="no public key with a kid for RS256"):
            verifier(**SHARED, auth_jwks_file=path)
    jwks(jwk(RSA_KEY, kid="one"), jwk(WEAK_KEY, kid="weak"), jwk(RSA_KEY, kid="one"))
    with pytest.raises(SettingsError, match="two keys “one”"):
        verifier(**SHARED, auth_jwks_file=path)


@pytest.fixture
def jwks(tmp_path: Path) -> Callable[..., None]:
    """Writes the key set as a rotation does: a new file, moved over the old one."""

    def write(*keys: dict[str, Any]) -> None:
        (tmp_path / "new").write_text(json.dumps({"keys": keys}))
        (tmp_path / "new").replace(tmp_path / "jwks.json")

    return write


@pytest.mark.parametrize(
    ("content", "algorithms", "sentence"),
    [
        (None, "", "cannot be read: No such file"),
        (b"nonsense", "", "not a public key in PEM"),
        (
            RSA_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            "",
            "not a public key in PEM",
        ),
        (pem(WEAK_KEY), "", "for nothing that is safe, not for RS256"),
        (pem(EC_KEY), "", "for ES256, not for RS256"),
        (pem(EC_KEY), "ES256,ES384", "for ES256, not for ES384"),
        (pem(ED_KEY), "ES256", "for EdDSA, not for ES256"),
    ],
)
def test_a_key_that_does_not_fit_stops_the_start(
    tmp_path: Path, content: bytes | None, algorithms: str, sentence: str
) -> None:
    path = tmp_path / "key.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=sentence):
        verifier(**SHARED, auth_key_file=path, auth_algorithms=algorithms)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (SHARED, "SENDOFF_AUTH=token needs a key"),
        (
            {**BY_SECRET, "auth_jwks_file": "x"},
            "leave out all but one of SENDOFF_AUTH_KEY, SENDOFF_AUTH_JWKS",
        ),
        ({**BY_SECRET, "auth_issuer": " "}, "needs SENDOFF_AUTH_ISSUER"),
        ({**BY_SECRET, "auth_audience": ""}, "needs SENDOFF_AUTH_AUDIENCE"),
        ({**BY_SECRET, "auth_algorithms": "RS256"}, "with the secret SENDOFF_AUTH_KEY it is HS256"),
        ({**BY_SECRET, "auth_algorithms": "HS256,RS256"}, "with the secret SENDOFF_AUTH_KEY it is HS256"),
        ({**BY_SECRET, "auth_algorithms": "none"}, "Input should be 'HS256'"),
        ({**BY_SECRET, "auth_algorithms": "HS512"}, "too short: HS512 needs 64 bytes"),
        ({**BY_SECRET, "auth_key": "short"}, "too short: HS256 needs 32 bytes"),
        ({**BY_SECRET, "auth_key": pem(RSA_KEY).decode()}, "put it into SENDOFF_AUTH_KEY_FILE"),
        ({**SHARED, "auth_jwks_file": "x", "auth_algorithms": "HS256"}, "HS256 is for a shared secret"),
        ({"auth_key": SECRET}, "SENDOFF_AUTH_KEY is set and no token is asked for"),
        ({"auth": "tokens"}, "Input should be 'none' or 'token'"),
        ({"publishers": "a,,b"}, "one of its items is empty"),
        ({"publishers": ","}, "one of its items is empty"),
        ({"publishers": '["a"'}, "begins as a JSON list"),
        ({"publishers": "[7]"}, "valid string"),
    ],
)
def test_settings_that_do_not_fit_together_are_a_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        settings(**given)


def test_the_settings_are_read_from_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("SENDOFF_AUTH")]:
        monkeypatch.delenv(name)
    for written, names in (
        ("", ()),
        ("[]", ()),
        ("shop", ("shop",)),
        (" shop , crm", ("shop", "crm")),
        ('["shop", "a,b"]', ("shop", "a,b")),
    ):
        monkeypatch.setenv("SENDOFF_PUBLISHERS", written)
        assert read_settings().publishers == names
    monkeypatch.setenv("SENDOFF_AUTH_KEY", "")
    monkeypatch.setenv("SENDOFF_AUTH_JWKS_FILE", "")
    assert open_verifier(read_settings()) is None
    monkeypatch.setenv("SENDOFF_AUTH", "token")
    monkeypatch.setenv("SENDOFF_AUTH_KEY", "hush")
    with pytest.raises(SettingsError) as raised:
        read_settings()
    assert "SENDOFF_AUTH_ISSUER" in str(raised.value)
    assert "too short" in str(raised.value)
    assert "hush" not in str(raised.value)
