"""The links to the tracker, as the settings say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.domain.links import Keys, Links
from worker.settings import SettingsError
from worker.signing import read_key_setting

if TYPE_CHECKING:
    from worker.settings import Settings


def open_links(settings: Settings) -> Links | None:
    """Returns what writes links to the tracker; None if the installation has none.

    Raises:
        SettingsError: The file with the keys cannot be read, or holds none.
    """
    return Links(settings.tracker_url, open_keys(settings)) if settings.tracker_url else None


def open_keys(settings: Settings) -> Keys:
    """Returns the keys that sign links.

    Raises:
        SettingsError: There are none, or their file cannot be read or holds none.
    """
    keys = read_key_setting(settings, "tracker")
    if keys is None:
        raise SettingsError("The tracker needs keys: set SENDOFF_TRACKER_KEYS or SENDOFF_TRACKER_KEYS_FILE.")
    return Keys(keys)
