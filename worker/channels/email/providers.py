"""Which domains belong to one provider of mailboxes, and how many connections it may have."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from contracts.base import explain
from worker.domain.mailbox import MailboxInvalid, mailbox
from worker.settings import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


class Provider(BaseModel):
    """One provider of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    domains: Annotated[tuple[str, ...], Field(min_length=1)]
    """The domains of its addresses."""
    connections: Annotated[int, Field(ge=1)] | None = None
    """The most connections at a time, of all processes together; None for no limit."""
    messages_per_minute: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """The most messages a minute, of all processes together; None for no limit."""

    @field_validator("domains")
    @classmethod
    def _are_domains(cls, domains: tuple[str, ...]) -> tuple[str, ...]:
        for domain in domains:
            try:
                named = mailbox(f"a@{domain}").address.count("@") == 1
            except MailboxInvalid:
                named = False
            if not named:
                raise ValueError(f"{domain!r} is not a domain such as example.org")
        return tuple(map(_normal, domains))


_File = TypeAdapter(dict[Annotated[str, Field(min_length=1)], Provider])


class Limit(NamedTuple):
    """What one provider, or one domain, may have; None for no limit."""

    name: str
    connections: int | None = None
    per_minute: int | None = None


class Providers:
    """The providers of an installation. A domain that belongs to none is a provider by itself."""

    def __init__(self, providers: Mapping[str, Provider]) -> None:
        """Takes them by name."""
        self._by_domain = {
            domain: Limit(name, provider.connections, provider.messages_per_minute)
            for name, provider in providers.items()
            for domain in provider.domains
        }

    def of(self, domain: str) -> Limit:
        """Returns the limits of a domain's provider, or of the domain by its own name."""
        normal = _normal(domain)
        return self._by_domain.get(normal) or Limit(normal)


def read_providers(path: Path | None = None) -> Providers:
    """Reads the providers.

    Args:
        path: A file whose providers win over ours: one with the same name replaces ours, and a domain
            belongs to the provider of the file. None for ours alone.

    Raises:
        SettingsError: The file cannot be used; the message says why.
    """
    ours = _File.validate_python(
        tomllib.loads(files(__package__).joinpath("providers.toml").read_text(encoding="utf-8"))
    )
    if path is None:
        return Providers(ours)
    where = f"SENDOFF_PROVIDERS_FILE: {path}"
    try:
        theirs = _File.validate_python(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise SettingsError(f"{where} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{where} is not UTF-8: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{where} is not TOML: {error}") from error
    except ValidationError as error:
        raise SettingsError(f"{where}: {explain(error)}") from error
    _check_once(where, theirs.items())
    return Providers({name: one for name, one in ours.items() if name not in theirs} | theirs)


def _check_once(where: str, providers: Iterable[tuple[str, Provider]]) -> None:
    seen: dict[str, str] = {}
    for name, provider in providers:
        for domain in provider.domains:
            if seen.setdefault(domain, name) != name:
                raise SettingsError(f"{where}: {domain} belongs to {seen[domain]!r} and to {name!r}")


def _normal(domain: str) -> str:
    """Returns a domain as the envelope has it: in A-labels and lower case."""
    if domain.isascii():
        return domain.lower()
    try:
        return mailbox(f"a@{domain}").domain.lower()
    except MailboxInvalid:  # the message will fail for it
        return domain.lower()
