"""Signed tokens (JSON Web Tokens, RFC 7519). Only this module verifies them and reads their keys."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, Protocol

import jwt
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from worker.domain.authority import Bearer
from worker.domain.operators import Role
from worker.settings import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from worker.settings import Settings

log = structlog.get_logger(__name__)

LEEWAY: Final = 10
"""Seconds by which the clocks of the issuer and of this machine may differ."""

_LONGEST: Final = 16_384
_LONGEST_NAME: Final = 200
_LEAST_RSA_BITS: Final = 2048

# Stricter than PyJWT, which accepts padding: there is one way to write a token, and no byte can change.
_COMPACT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")

_RSA: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}

_SENTENCES: Final[dict[type[Exception], str]] = {
    jwt.ExpiredSignatureError: "The token has expired: sign in again, and send a new command with a new one.",
    jwt.ImmatureSignatureError: "The token is not valid yet.",
    jwt.InvalidIssuerError: "The token comes from another issuer than SENDOFF_AUTH_ISSUER.",
    jwt.InvalidAudienceError: "The token is meant for another audience than SENDOFF_AUTH_AUDIENCE.",
    jwt.InvalidAlgorithmError: "The token is signed with an algorithm that is not allowed here.",
    jwt.InvalidSignatureError: "The token's signature is wrong.",
}


class TokenRefused(Exception):
    """A token is refused; the message says why and never quotes the token."""


class Keys(Protocol):
    """Finds keys."""

    def find(self, kid: str | None) -> tuple[Any, frozenset[str]]:
        """Returns a key by its identifier, with the algorithms that may use it: at least one.

        Raises:
            TokenRefused: there is no such key.
        """


class OneKey:
    """A shared secret or a public key. It is used for every key identifier."""

    def __init__(self, key: Any, algorithms: frozenset[str]) -> None:  # noqa: ANN401 - bytes or a public key
        """Takes the key and the algorithms that may use it."""
        self._found = (key, algorithms)

    def find(self, kid: str | None) -> tuple[Any, frozenset[str]]:  # noqa: ARG002 - see the class
        """Returns the key."""
        return self._found


class JwksFile:
    """The public keys of a JSON Web Key Set (RFC 7517) in a file. The file is read again when it changes."""

    def __init__(self, path: Path, algorithms: frozenset[str]) -> None:
        """Reads the file.

        Raises:
            SettingsError: it cannot be read, or none of its keys can verify signatures.
        """
        self._path = path
        self._algorithms = algorithms
        self._version = self._stat()
        self._keys = self._read()

    def find(self, kid: str | None) -> tuple[Any, frozenset[str]]:
        """Returns a key; first reads the file again if it has changed.

        A file that cannot be read does not change the keys: half a file must not prevent an operator from
        stopping a delivery.

        Raises:
            TokenRefused: there is no such key.
        """
        try:
            version = self._stat()
            if version != self._version:
                self._keys, self._version = self._read(), version
                log.info("keys read again", file=str(self._path), keys=sorted(self._keys))
        except SettingsError as error:
            log.error("keys not read again, the old ones stand", because=str(error))  # noqa: TRY400
        if kid is None:
            raise TokenRefused("The token does not say which key it was signed with: its header has no kid.")
        if kid not in self._keys:
            raise TokenRefused("The token was signed with a key that is not in SENDOFF_AUTH_JWKS_FILE.")
        return self._keys[kid]

    def _stat(self) -> tuple[int, int, int]:
        try:
            found = self._path.stat()
        except OSError as error:
            raise _unreadable("SENDOFF_AUTH_JWKS_FILE", self._path, error) from error
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> dict[str, tuple[Any, frozenset[str]]]:
        try:
            read = json.loads(self._path.read_bytes())
            entries = [dict(entry) for entry in read["keys"]]
        except OSError as error:
            raise _unreadable("SENDOFF_AUTH_JWKS_FILE", self._path, error) from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise SettingsError(
                f"SENDOFF_AUTH_JWKS_FILE: {self._path} is not a JSON Web Key Set: an object with “keys”."
            ) from error
        try:
            return usable_keys(entries, self._algorithms)
        except ValueError as error:
            raise SettingsError(f"SENDOFF_AUTH_JWKS_FILE: {self._path} {error}") from error


class KeySet:
    """The public keys of a JSON Web Key Set that somebody else has read."""

    def __init__(self, entries: Iterable[Mapping[str, Any]], algorithms: frozenset[str]) -> None:
        """Takes the entries.

        Raises:
            ValueError: none of the keys can verify signatures; the message goes on after a name.
        """
        self._keys = usable_keys(entries, algorithms)

    def find(self, kid: str | None) -> tuple[Any, frozenset[str]]:
        """Returns a key; raises as `Keys.find`."""
        if kid not in self._keys:
            raise TokenRefused("The token was signed with a key that its issuer does not publish.")
        return self._keys[kid]


def usable_keys(
    entries: Iterable[Mapping[str, Any]], algorithms: frozenset[str]
) -> dict[str, tuple[Any, frozenset[str]]]:
    """Returns the keys of a set that can verify signatures, by their identifiers, with their algorithms.

    Raises:
        ValueError: there is none, or two have the same identifier; the message goes on after a name.
    """
    usable: dict[str, tuple[Any, frozenset[str]]] = {}
    for entry in entries:
        kid, fitting = entry.get("kid"), _parsed(entry)
        if isinstance(kid, str) and fitting is not None and fitting[1] & algorithms:
            if kid in usable:
                raise ValueError(f"has two keys “{kid}”.")
            usable[kid] = (fitting[0], fitting[1] & algorithms)
    if not usable:
        named = ", ".join(sorted(algorithms))
        raise ValueError(f"has no public key with a kid for {named}; see SENDOFF_AUTH_ALGORITHMS.")
    return usable


class Verifier:
    """Verifies tokens: signature, algorithm, issuer, audience, expiry, and the claims that Sendoff needs."""

    def __init__(
        self,
        keys: Keys,
        *,
        issuer: str,
        audience: str,
        operator_claim: str = "sub",
        roles_claim: str = "roles",
    ) -> None:
        """Takes the keys, and what a token must say.

        Args:
            keys: Finds keys.
            issuer: The value that `iss` must have.
            audience: The value that `aud` must be or contain.
            operator_claim: The token claim with the operator's name.
            roles_claim: The token claim with the list of their roles.
        """
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._operator_claim = operator_claim
        self._roles_claim = roles_claim

    def verify(self, header: object) -> Bearer:
        """Verifies the token in the header `authorization`.

        Args:
            header: The token in its compact form, with or without `Bearer ` before it (RFC 6750, 2.1).

        Returns:
            The operator, and those of the token's roles that Sendoff knows.

        Raises:
            TokenRefused: it is missing, or a part of it is wrong.
        """
        return self.bearer(self.claims(header))

    def claims(self, header: object) -> dict[str, Any]:
        """Verifies a token as `verify` does, and returns all that it says."""
        token = _compact(header)
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key, algorithms = self._keys.find(kid)
            payload: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=sorted(algorithms),
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY,
                options={"require": ["exp", "iss", "aud", self._operator_claim]},
            )
        except jwt.MissingRequiredClaimError as error:
            raise TokenRefused(f"The token lacks the claim “{error.claim}”.") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            sentence = _SENTENCES.get(type(error), "The token is not a signed JSON Web Token.")
            raise TokenRefused(sentence) from None
        return payload

    def bearer(self, payload: Mapping[str, Any]) -> Bearer:
        """Returns the operator and the roles that verified claims name; raises as `verify`."""
        operator, roles = payload[self._operator_claim], payload.get(self._roles_claim, [])
        if not isinstance(operator, str) or not 0 < len(operator) <= _LONGEST_NAME or "\x00" in operator:
            raise TokenRefused(f"The token's claim “{self._operator_claim}” is no operator's name.")
        if not isinstance(roles, list):
            raise TokenRefused(f"The token's claim “{self._roles_claim}” is not a list of roles.")
        return Bearer(operator, frozenset(role for role in Role if role.value in roles))


def open_verifier(settings: Settings) -> Verifier | None:
    """Returns the verifier of tokens by the settings; None if `SENDOFF_AUTH` is `none`.

    Raises:
        SettingsError: the key's file cannot be read, or its key does not fit the algorithms.
    """
    if settings.auth == "none":
        return None
    algorithms = frozenset(settings.pinned_algorithms)
    keys: Keys
    if settings.auth_key is not None:
        keys = OneKey(settings.auth_key.get_secret_value().encode(), algorithms)
    elif settings.auth_key_file is not None:
        keys = OneKey(_read_pem(settings.auth_key_file, algorithms), algorithms)
    elif settings.auth_jwks_file is not None:
        keys = JwksFile(settings.auth_jwks_file, algorithms)
    else:
        raise AssertionError("the settings are checked")
    return Verifier(
        keys,
        issuer=settings.auth_issuer,
        audience=settings.auth_audience,
        operator_claim=settings.auth_operator_claim,
        roles_claim=settings.auth_roles_claim,
    )


def _compact(header: object) -> str:
    if isinstance(header, bytes):
        header = header.decode("ascii", "replace")
    if not isinstance(header, str) or not header:
        raise TokenRefused("The command carries no token: put one into the header authorization.")
    scheme, space, rest = header.partition(" ")
    token = rest if space and scheme.lower() == "bearer" else header
    if len(token) > _LONGEST or not _COMPACT.fullmatch(token):
        raise TokenRefused("The header authorization is not a signed JSON Web Token.")
    return token


def _read_pem(path: Path, algorithms: frozenset[str]) -> Any:  # noqa: ANN401 - one of many kinds
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise _unreadable("SENDOFF_AUTH_KEY_FILE", path, error) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SettingsError(
            f"SENDOFF_AUTH_KEY_FILE: {path} is not a public key in PEM (-----BEGIN PUBLIC KEY-----)."
        ) from error
    unfit = algorithms - _fitting(key)
    if unfit:
        usable = ", ".join(sorted(_fitting(key))) or "nothing that is safe"
        raise SettingsError(
            f"SENDOFF_AUTH_ALGORITHMS: the key in {path} is for {usable}, not for {', '.join(sorted(unfit))}."
        )
    return key


def _parsed(entry: Mapping[str, Any]) -> tuple[Any, frozenset[str]] | None:
    """Reads one key of a set, with its algorithms; None if it has another use or kind."""
    if entry.get("use", "sig") != "sig":
        return None
    try:
        key = jwt.PyJWK.from_dict(dict(entry)).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, UnsupportedAlgorithm):
        return None
    declared = entry.get("alg")
    return key, _fitting(key) if declared is None else _fitting(key) & {declared}


def _fitting(key: object) -> frozenset[str]:
    """Returns the algorithms that may use a public key: never those of a shared secret."""
    match key:
        case RSAPublicKey(key_size=bits) if bits >= _LEAST_RSA_BITS:
            return _RSA
        case EllipticCurvePublicKey(curve=curve) if curve.name in _CURVES:
            return frozenset({_CURVES[curve.name]})
        case Ed25519PublicKey():
            return frozenset({"EdDSA"})
    return frozenset()


def _unreadable(variable: str, path: Path, error: OSError) -> SettingsError:
    return SettingsError(f"{variable}: {path} cannot be read: {error.strerror}.")
