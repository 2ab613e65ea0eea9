"""The keys of the settings, and what is signed with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from worker.domain.keys import KeysInvalid, read_keys
from worker.domain.return_path import ReturnPath
from worker.settings import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import SecretStr

    from worker.domain.keys import Key
    from worker.settings import Settings


def read_key_setting(settings: Settings, what: Literal["bounce", "tracker"]) -> tuple[Key, ...] | None:
    """Returns the keys of a purpose; None if there are none.

    Raises:
        SettingsError: The file with the keys cannot be read, or holds none.
    """
    path: Path | None = getattr(settings, f"{what}_keys_file")
    secret: SecretStr | None = getattr(settings, f"{what}_keys")
    named = f"SENDOFF_{what.upper()}_KEYS_FILE"
    try:
        if secret is not None:
            return read_keys(secret.get_secret_value())
        return read_keys(path.read_text("utf-8")) if path is not None else None
    except OSError as error:
        raise SettingsError(f"{named}: {path} cannot be read: {error.strerror}.") from error
    except (KeysInvalid, UnicodeDecodeError) as error:
        raise SettingsError(f"{named}: {path} holds no keys: {error}.") from error


def open_return_path(settings: Settings) -> ReturnPath | None:
    """Returns what signs envelope senders and Message-IDs; None if the installation has no keys for that.

    Raises:
        SettingsError: The file with the keys cannot be read, or holds none.
    """
    keys = read_key_setting(settings, "bounce")
    return ReturnPath(keys, settings.bounce_domain) if keys is not None else None
