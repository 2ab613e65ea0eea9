"""What of the settings does not fit together, and what they say in other words than ours."""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from worker.domain.servers import files

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from worker.settings import Settings

LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
"""The addresses that only this machine reaches, and their name."""

_SECRET_BYTES: Final = {"HS256": 32, "HS384": 48, "HS512": 64}
"""The least length of a shared secret (RFC 7518, 3.2)."""
_KEY_BYTES: Final = 32
"""The least length of a key of ours."""


def variable(field: str) -> str:
    """Returns the environment variable of a setting."""
    return f"SENDOFF_{field.upper()}"


def from_files(given: Mapping[str, Any]) -> dict[str, Any]:
    """Puts into each URL or secret what its file says.

    Args:
        given: The settings that were given, by their names.

    Raises:
        ValueError: one and its file are both given, or the file cannot be read; the message says which.
    """
    read = dict(given)
    urls = ("amqp_url", "management_url", "database_url", "smtp_url")
    for name in (*urls, "webhook_url", "webhook_secret"):
        file = read.get(f"{name}_file")
        if not file:
            read.pop(f"{name}_file", None)
            continue
        if read.get(name):
            raise ValueError(f"{variable(name)} and {variable(name)}_FILE are both set: leave one out")
        try:
            read[name] = Path(file).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ValueError(f"{variable(name)}_FILE: {file} cannot be read: {why}") from None
        if not read[name]:
            raise ValueError(f"{variable(name)}_FILE: {file} is empty")
    return read


def read_list(value: object) -> object:
    """Returns the items of a setting that is written as a JSON list or separated by commas.

    Raises:
        ValueError: It begins as a JSON list and is none, or an item is empty.
    """
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            items = json.loads(value)
        except ValueError as error:
            raise ValueError(f"it begins as a JSON list and is none ({error})") from error
    else:
        items = [item.strip() for item in value.split(",")] if value.strip() else []
    if "" in items:
        raise ValueError("one of its items is empty")
    return items


def misspelt(names: Iterable[str], fields: Collection[str]) -> Iterator[str]:
    """Yields a sentence for each variable that begins as ours do and is no setting.

    Args:
        names: The names of all variables.
        fields: The names of the settings.
    """
    known = [variable(field) for field in fields]
    for name in sorted(names):
        ours = name.upper().startswith("SENDOFF_") and not name.upper().startswith("SENDOFF_DEV_")
        if ours and name.upper() not in known:
            near = get_close_matches(name.upper(), known, 1, 0.8)
            yield f"there is no setting {name}" + (f"; do you mean {near[0]}?" if near else "")


def conflicts(s: Settings) -> Iterator[str]:
    """Yields a sentence for each of the times that do not fit. The process works, but worse than it could."""
    slowest = s.smtp_data_timeout + s.smtp_block_timeout + s.smtp_dot_timeout
    if "email" in s.channels and s.result_lease < slowest:
        yield (
            f"SENDOFF_RESULT_LEASE ({s.result_lease:g} s) is shorter than the {slowest:g} s that a"
            " relay may take for a mail (SENDOFF_SMTP_DATA_TIMEOUT, _BLOCK_TIMEOUT and _DOT_TIMEOUT"
            " together): mail that it accepts late becomes unknown"
        )
    if "webhook" in s.channels and s.result_lease < s.webhook_timeout:
        yield (
            f"SENDOFF_RESULT_LEASE ({s.result_lease:g} s) is shorter than SENDOFF_WEBHOOK_TIMEOUT"
            f" ({s.webhook_timeout:g} s): a message that a gateway accepts late becomes unknown"
        )
    for name in ("claim_lease", "page_lease"):
        lease = getattr(s, name)
        if lease <= s.command_timeout:
            yield (
                f"{variable(name)} ({lease:g} s) must be longer than SENDOFF_COMMAND_TIMEOUT"
                f" ({s.command_timeout:g} s): a slow answer of the database uses it up"
            )


def faults(s: Settings) -> Iterator[str]:
    """Yields a sentence for each fault that must stop the start. Looks whether files are there."""
    yield from _of_files(s)
    if s.management_url and not s.management_url.startswith(("http://", "https://")):
        yield "SENDOFF_MANAGEMENT_URL: it must begin with http:// or https://"
    keys = [name for name in ("auth_key", "auth_key_file", "auth_jwks_file") if getattr(s, name)]
    if s.auth == "token":
        yield from _of_tokens(s, keys)
    elif keys:
        yield f"{variable(keys[0])} is set and no token is asked for: set SENDOFF_AUTH=token, or unset it"
    if s.fingerprint_key and len(s.fingerprint_key.get_secret_value().encode()) < _KEY_BYTES:
        yield f"SENDOFF_FINGERPRINT_KEY is too short: it needs {_KEY_BYTES} bytes or more"
    for name, *needing in (("bounce", "bounce_domain", "relay_provider"), ("tracker", "tracker_url")):
        own = (f"{name}_keys", f"{name}_keys_file")
        signing = [key for key in own if getattr(s, key)]
        if len(signing) > 1:
            yield f"{' and '.join(map(variable, signing))} are both set: leave one out"
        for needed in needing:
            if getattr(s, needed) and not signing:
                yield f"{variable(needed)} needs keys: set {', or '.join(map(variable, own))}"
    yield from _of_the_console(s)


def _of_files(s: Settings) -> Iterator[str]:
    for name in ("amqp_url", "database_url"):
        for option, path in files(getattr(s, name)):
            try:
                Path(path).open("rb").close()
            except OSError as error:
                yield f"{variable(name)}: {path}, the file of {option}, cannot be read: {error.strerror}"


def _of_the_console(s: Settings) -> Iterator[str]:
    if s.console_auth == "local" and s.console_host not in LOOPBACK:
        yield (
            "SENDOFF_CONSOLE_HOST is not this machine's own address, 127.0.0.1 or ::1: for others set"
            " SENDOFF_CONSOLE_AUTH=proxy"
        )
    if s.console_auth == "proxy" and s.auth != "token":
        yield "SENDOFF_CONSOLE_AUTH=proxy needs SENDOFF_AUTH=token and a key to verify tokens"
    if s.console_auth != "oidc":
        return
    if not s.console_url.startswith("https://"):
        yield "SENDOFF_CONSOLE_AUTH=oidc needs SENDOFF_CONSOLE_URL, which begins with https://"
    if s.console_key is None or len(s.console_key.get_secret_value().encode()) < _KEY_BYTES:
        yield f"SENDOFF_CONSOLE_AUTH=oidc needs SENDOFF_CONSOLE_KEY of {_KEY_BYTES} bytes or more"
    for name in ("auth_issuer", "auth_audience"):
        if not getattr(s, name).strip():
            yield f"SENDOFF_CONSOLE_AUTH=oidc needs {variable(name)}: the issuer, and our name there"


def _of_tokens(s: Settings, keys: list[str]) -> Iterator[str]:
    if not keys:
        yield (
            "SENDOFF_AUTH=token needs a key: set SENDOFF_AUTH_KEY to a shared secret,"
            " SENDOFF_AUTH_KEY_FILE to a file with a public key, or SENDOFF_AUTH_JWKS_FILE to a JWKS"
        )
    if len(keys) > 1:
        yield f"only one key can be used: leave out all but one of {', '.join(map(variable, keys))}"
    for name in ("auth_issuer", "auth_audience"):
        if not getattr(s, name).strip():
            yield f"SENDOFF_AUTH=token needs {variable(name)}: a token for others must not count here"
    shared = [name for name in s.pinned_algorithms if name in _SECRET_BYTES]
    if s.auth_key is None:
        if shared:
            yield (
                f"SENDOFF_AUTH_ALGORITHMS: {', '.join(shared)} is for a shared secret, SENDOFF_AUTH_KEY;"
                " with public keys name RS256, PS256, ES256 or EdDSA, or others of their kind"
            )
        return
    if len(shared) < len(s.pinned_algorithms):
        yield "SENDOFF_AUTH_ALGORITHMS: with the secret SENDOFF_AUTH_KEY it is HS256, HS384 or HS512"
    secret = s.auth_key.get_secret_value()
    least = max((_SECRET_BYTES[name] for name in shared), default=0)
    if secret.lstrip().startswith("-----BEGIN"):
        yield "SENDOFF_AUTH_KEY is a key in PEM and no shared secret: put it into SENDOFF_AUTH_KEY_FILE"
    elif len(secret.encode()) < least:
        yield f"SENDOFF_AUTH_KEY is too short: {', '.join(shared)} needs {least} bytes or more"
