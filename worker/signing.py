"""The keys of the settings, and what is signed with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.domain.keys import KeysInvalid, read_keys
from worker.domain.return_path import ReturnPath
from worker.settings import SettingsError

if TYPE_CHECKING:
    from worker.settings import Settings


def open_return_path(settings: Settings) -> ReturnPath | None:
    """Returns what signs envelope senders and Message-IDs; None if the installation has no keys for that.

    Raises:
        SettingsError: The file with the keys cannot be read, or holds none.
    """
    path = settings.bounce_keys_file
    try:
        if settings.bounce_keys is not None:
            text = settings.bounce_keys.get_secret_value()
        elif path is not None:
            text = path.read_text("utf-8")
        else:
            return None
        return ReturnPath(read_keys(text), settings.bounce_domain)
    except OSError as error:
        raise SettingsError(f"SENDOFF_BOUNCE_KEYS_FILE: {path} cannot be read: {error.strerror}.") from error
    except (KeysInvalid, UnicodeDecodeError) as error:
        raise SettingsError(f"SENDOFF_BOUNCE_KEYS_FILE: {path} holds no keys: {error}.") from error
