"""Drawings as SVG, made on the server: the bar of an account and the curve of a delivery. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

BAR_WIDTH: Final = 1_000
_LEAST: Final = 4
"""The least width of a part that is not empty: one bounce of a million recipients must be seen."""

_WIDTH, _HEIGHT = 1_000, 170
"""The plot, which is stretched to the width of the page. Its height is in pixels."""
_TOP, _BOTTOM = 18, 24
"""Pixels above and below the plot, for labels: they are not stretched."""
_MOST_BINS: Final = 240
_LINES: Final = 4


class Minute(NamedTuple):
    """What happened in one minute, or in several that are drawn as one point."""

    at: datetime
    sent: int
    bounced: int
    opened: int


def widths(counts: Sequence[int]) -> list[int]:
    """Returns the widths of the parts of a bar, which add up to `BAR_WIDTH` unless all are empty."""
    total = sum(counts)
    if total <= 0:
        return [0] * len(counts)
    drawn = [max(_LEAST, round(BAR_WIDTH * count / total)) if count > 0 else 0 for count in counts]
    largest = max(range(len(counts)), key=counts.__getitem__)
    drawn[largest] += BAR_WIDTH - sum(drawn)
    return drawn


def bar(parts: Iterable[tuple[str, str, int]], label: str) -> Markup:
    """Draws parts of a whole side by side.

    Args:
        parts: The class, the name for people, and the count of each.
        label: What a screen reader says.
    """
    listed = list(parts)
    rects, x = [], 0
    for (kind, name, count), width in zip(listed, widths([c for *_, c in listed]), strict=True):
        if width:
            rects.append(
                Markup(
                    '<rect class="p-{}" x="{}" y="0" width="{}" height="10">'
                    '<title data-of="{}: " data-value="{}">{}</title></rect>'
                ).format(kind, x, width, name, count, f"{name}: {count:,}")
            )
            x += width
    return Markup(
        '<svg class="bar" role="img" aria-label="{}" viewBox="0 0 {} 10" preserveAspectRatio="none">{}</svg>'
    ).format(label, BAR_WIDTH, Markup("").join(rects))


def gathered(minutes: Sequence[Minute], most: int = _MOST_BINS) -> tuple[list[Minute], int]:
    """Returns at most `most` points without a gap, and how many minutes each has.

    Args:
        minutes: In their order, without those in which nothing happened.
        most: The most points.
    """
    if not minutes:
        return [], 1
    first, last = minutes[0].at, minutes[-1].at
    if last - first < timedelta(minutes=2):  # a line needs something before and after it
        first, last = first - timedelta(minutes=1), last + timedelta(minutes=1)
    span = int((last - first) / timedelta(minutes=1)) + 1
    step = -(-span // most)
    sums = [[0, 0, 0] for _ in range(-(-span // step))]
    for one in minutes:
        into = sums[int((one.at - first) / timedelta(minutes=1)) // step]
        into[0] += one.sent
        into[1] += one.bounced
        into[2] += one.opened
    return [Minute(first + timedelta(minutes=i * step), *s) for i, s in enumerate(sums)], step


def curve(minutes: Sequence[Minute]) -> Markup | None:
    """Draws how many were sent, bounced and opened a minute; None if nothing happened yet."""
    points, step = gathered(minutes)
    if not points:
        return None
    top = rounded_up(max(max(p.sent, p.bounced, p.opened) for p in points) / step)
    plot = Markup(
        '<svg y="{}" width="100%" height="{}" viewBox="0 0 {} {}" preserveAspectRatio="none">'
    ).format(_TOP, _HEIGHT, _WIDTH, _HEIGHT)
    labels = [*_heights(top), *_hours(points)]
    lines = [*_grid(), *_series(points, step, top)]
    drawn = Markup("").join([plot, *lines, Markup("</svg>"), *labels])
    told = f"Per minute, from {_clock(points[0].at)} to {_clock(points[-1].at)} UTC; at most {top:,}."
    return Markup('<svg class="curve" role="img" aria-label="{}" height="{}">{}</svg>').format(
        told, _TOP + _HEIGHT + _BOTTOM, drawn
    )


def rounded_up(value: float) -> int:
    """Returns the next number of 4, 8, 20, 40, 80, 200, …: a quarter of it is a whole number."""
    power = 1
    while True:
        for digit in (4, 8, 20):
            if digit * power >= value:
                return digit * power
        power *= 10


def _grid() -> Iterable[Markup]:
    for line in range(_LINES + 1):
        y = _y(line, _LINES)
        yield Markup('<line class="grid" x1="0" x2="{}" y1="{}" y2="{}"/>').format(_WIDTH, y, y)


def _heights(top: int) -> Iterable[Markup]:
    for line in range(1, _LINES + 1):
        value, y = top * line // _LINES, _TOP + _y(line, _LINES) - 4
        yield Markup('<text class="axis" x="0" y="{}" data-of="" data-value="{}">{}</text>').format(
            y, value, f"{value:,}"
        )


def _hours(points: Sequence[Minute]) -> Iterable[Markup]:
    # Of an odd number of points, as of the three of a single minute, there is one in the middle.
    middle = len(points) // 2
    for at, x, anchor in (
        (points[0].at, "0", "start"),
        (points[middle].at, "50%", "middle" if len(points) % 2 else "start"),
        (points[-1].at, "100%", "end"),
    ):
        yield Markup('<text class="axis" x="{}" y="{}" text-anchor="{}" data-at="{}">{}</text>').format(
            x, _TOP + _HEIGHT + 18, anchor, at.isoformat(), _clock(at)
        )


def _series(points: Sequence[Minute], step: int, top: int) -> Iterable[Markup]:
    for name in ("sent", "opened", "bounced"):
        values = [getattr(p, name) / step for p in points]
        if any(values):
            line = " ".join(f"{_x(i, len(points))},{_y(v, top)}" for i, v in enumerate(values))
            if name == "sent":
                area = f"0,{_HEIGHT} {line} {_WIDTH},{_HEIGHT}"
                yield Markup('<polygon class="a-sent" points="{}"/>').format(area)
            yield Markup('<polyline class="l-{}" points="{}"/>').format(name, line)


def _x(place: int, of: int) -> float:
    return round(_WIDTH * place / (of - 1), 1)


def _y(value: float, top: int) -> float:
    return round(_HEIGHT - _HEIGHT * value / top, 1)


def _clock(at: datetime) -> str:
    return f"{at:%H:%M}"


PARTS: Final = (
    ("sent", "sent"),
    ("bounced", "bounced"),
    ("errors", "errors"),
    ("unknown", "unknown"),
    ("excluded_late", "left out late"),
    ("cancelled", "cancelled"),
    ("retrying", "retrying"),
    ("sending", "sending"),
    ("pending", "pending"),
)
"""The parts of the account of a delivery, which add up to `to_deliver`, and their names for people."""


def account(row: Mapping[str, int]) -> Markup:
    """Draws the account of a delivery.

    Args:
        row: The row of the view `deployment`.
    """
    told = ", ".join(f"{row[name]:,} {shown}" for name, shown in PARTS if row[name])
    return bar([(name, shown, row[name]) for name, shown in PARTS], str(escape(told)) or "Nobody.")
