"""The variables of templates that stand for the tracker's links, and their values for one recipient."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Collection

    from worker.domain.links import Links

OPTOUT_URL: Final = "unsubscribe_url"
MIRROR_URL: Final = "mirror_url"
FOR_AUTHORS: Final = (MIRROR_URL, OPTOUT_URL)
"""The variables that an author may write."""
PIXEL: Final = "sendoff_pixel"
"""The variable of the whole element of the pixel."""
_LINK: Final = re.compile(r"sendoff_link_(\d{1,4})")


def link_name(number: int) -> str:
    """Returns the variable that stands for a link."""
    return f"sendoff_link_{number}"


class LinkValues:
    """The variables with links that one content uses."""

    def __init__(self, names: Collection[str], needed: Collection[str]) -> None:
        """Takes the names of all variables that the content reads, and of those that it cannot do without."""
        self._numbers = sorted(int(match[1]) for match in map(_LINK.fullmatch, names) if match)
        self._names = [link_name(number) for number in self._numbers]
        self.names: Final = {PIXEL, *FOR_AUTHORS, *self._names} & set(names)
        """The variables by name."""
        self.needed: Final = self.names & set(needed)
        """Those without which there is no message."""
        self._has_pixel = PIXEL in names
        self._has_mirror = MIRROR_URL in names
        self._has_optout = OPTOUT_URL in names

    def __bool__(self) -> bool:
        """Returns whether there are any."""
        return bool(self.names)

    def of(self, links: Links, delivery_id: int, recipient: int, *, pixel: bool = True) -> dict[str, str]:
        """Returns the values for one recipient.

        No character of the URLs needs an escape in HTML; the pixel is marked as HTML.

        Args:
            links: Writes the links.
            delivery_id: The delivery.
            recipient: The recipient's number.
            pixel: Whether to put the pixel in: a mirror page goes without.
        """
        values: dict[str, str] = {}
        if self._numbers:
            urls = links.clicks(delivery_id, recipient, self._numbers)
            values = dict(zip(self._names, urls, strict=True))
        if self._has_pixel:
            values[PIXEL] = _pixel(links.pixel(delivery_id, recipient)) if pixel else ""
        if self._has_mirror:
            values[MIRROR_URL] = links.mirror(delivery_id, recipient)
        if self._has_optout:
            values[OPTOUT_URL] = links.optout(delivery_id, recipient)
        return values

    def examples(self) -> dict[str, str]:
        """Returns values as long as real ones, for a content that is tried out before it has a delivery."""
        url = f"https://tracker.example.org/c/{'x' * 40}"
        values = dict.fromkeys(self.names, url)
        return values | {PIXEL: _pixel(url)} if self._has_pixel else values


def _pixel(url: str) -> str:
    # Our own URL: it holds no character that HTML gives a meaning.
    return Markup(f'<img src="{url}" alt="" width="1" height="1" style="border:0">')  # noqa: S704
