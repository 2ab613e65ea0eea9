"""Turns templates into pages: how numbers, times and names are written."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from worker.domain.schedule import duration_text
from worker.domain.text import plain, words
from worker.web.console import drawing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta
    from decimal import Decimal

    from worker.domain.sentences import Part
    from worker.web.console.assets import Assets

NOTHING: Final = "–"
"""Shown for a percentage of nothing and for a date that is not set."""


def number(value: float | Decimal | None) -> Markup | str:
    """Writes a count; a script of the page writes it in the viewer's language."""
    if value is None:
        return NOTHING
    return Markup('<data value="{}">{}</data>').format(int(value), f"{int(value):,}")


def rate(value: float | None) -> Markup | str:
    """Writes recipients a second: slow ones with a decimal."""
    if value is None:
        return NOTHING
    shown = f"{value:,.1f}" if value < 10 else f"{value:,.0f}"  # noqa: PLR2004 - one digit
    return Markup('<span><data value="{}" class="rate">{}</data>/s</span>').format(
        shown.replace(",", ""), shown
    )


def percent(value: float | Decimal | None) -> Markup | str:
    """Writes a percentage with two decimals; a dash for a percentage of nothing."""
    if value is None:
        return NOTHING
    return Markup('<data value="{}" class="pct">{} %</data>').format(f"{value:.2f}", f"{value:,.2f}")


def moment(value: datetime | None) -> Markup | str:
    """Writes a moment in UTC; a script of the page writes it in the viewer's zone, with UTC as title."""
    if value is None:
        return NOTHING
    at = value.astimezone(UTC)
    text = f"{at:%Y-%m-%d %H:%M:%S}"
    return Markup('<time datetime="{}" title="{} UTC">{} UTC</time>').format(
        f"{at:%Y-%m-%dT%H:%M:%SZ}", text, text
    )


def span(value: timedelta) -> str:
    """Writes how long something takes, in its two largest units: “2 h 5 min”."""
    seconds = max(round(value.total_seconds()), 1)
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, seconds = divmod(seconds, length)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
        if len(parts) == 2:  # noqa: PLR2004
            break
    return " ".join(filter(None, parts))


def clock(value: datetime) -> Markup:
    """Writes the time of the day of a moment."""
    at = value.astimezone(UTC)
    return Markup('<time class="clock" datetime="{}" title="{} UTC">{} UTC</time>').format(
        f"{at:%Y-%m-%dT%H:%M:%SZ}", f"{at:%Y-%m-%d %H:%M:%S}", f"{at:%H:%M:%S}"
    )


def foreign(value: object) -> Markup:
    """Writes text of others: without control characters, and with a direction of its own."""
    return Markup("<bdi>{}</bdi>").format(plain(str(value))) if value not in (None, "") else Markup("")


def sentence(parts: Sequence[Part]) -> Markup:
    """Writes a sentence of texts, counts and moments."""
    return Markup("").join(
        moment(part)
        if isinstance(part, datetime)
        else number(part)
        if isinstance(part, int)
        else escape(plain(part))
        for part in parts
    )


def query(**values: object) -> str:
    """Writes the query of an address; leaves out what is empty."""
    return urlencode({name: value for name, value in values.items() if value not in (None, "")})


class Pages:
    """The templates."""

    def __init__(self, assets: Assets) -> None:
        """Reads the templates of the package as they are asked for."""
        self._environment = Environment(
            loader=PackageLoader("worker.web.console"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.filters.update(
            number=number,
            rate=rate,
            percent=percent,
            moment=moment,
            clock=clock,
            span=span,
            foreign=foreign,
            sentence=sentence,
            words=words,
            duration=duration_text,
            quoted=lambda text: quote(str(text), safe=""),
        )
        self._environment.globals.update(
            asset=assets.address, query=query, account=drawing.account, PARTS=drawing.PARTS
        )

    def render(self, template: str, **values: Any) -> str:  # noqa: ANN401 - what the template asks for
        """Returns a page, or a part of one."""
        return self._environment.get_template(template).render(**values)
