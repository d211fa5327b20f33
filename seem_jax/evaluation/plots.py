"""Small line charts as SVG text."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 430, 210, 56, 10, 22  # pixels of a chart and of its margins
COLOURS = ("#1668b8", "#d1495b", "#2e8b57", "#c77c02", "#7b5ea7", "#555555", "#0aa2a2")
DOT = 7  # pixels, radius of the largest dot
Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Line:
    """Points (x, y) in the order of x; a name where there are several lines. counts: how many values
    stand behind each point, drawn as the area of a dot; () draws none."""

    points: Sequence[Point]
    name: str = ""
    counts: Sequence[float] = ()

    def finite(self) -> Line:
        """The line without the points that are not."""
        kept = [k for k, point in enumerate(self.points) if all(map(math.isfinite, point))]
        counts = [self.counts[k] for k in kept] if len(self.counts) else ()
        return dataclasses.replace(
            self, points=[tuple(self.points[k]) for k in kept], counts=counts
        )


@dataclasses.dataclass(frozen=True)
class Axes:
    """What the frame spans; None: just the points. diagonal: a line y = x for comparison."""

    x: tuple[float, float] | None = None
    y: tuple[float, float] | None = None
    diagonal: bool = False


def figure(lines: Sequence[Line], caption: str, axes: Axes | None = None) -> str:
    """The chart with its caption as HTML; "" where no line has two points."""
    drawn = [line.finite() for line in lines]
    drawn = [line for line in drawn if len(line.points) >= 2]
    if not drawn:
        return ""
    chart = svg(drawn, axes or Axes())
    return f"<figure>{chart}<figcaption>{html.escape(caption)}</figcaption></figure>"


def svg(lines: Sequence[Line], axes: Axes) -> str:
    """An SVG chart of lines of two or more finite points, with the ends of both axes written on."""
    xs, ys = ([point[k] for line in lines for point in line.points] for k in (0, 1))
    (left, right), (low, high) = axes.x or (min(xs), max(xs)), axes.y or (min(ys), max(ys))
    width, height = WIDTH - LEFT - 10, HEIGHT - TOP - BOTTOM
    floor = TOP + height

    def place(point: Point) -> str:
        x = LEFT + (point[0] - left) / ((right - left) or 1) * width
        y = TOP + (high - point[1]) / ((high - low) or 1) * height
        return f"{x:.1f},{y:.1f}"

    parts = [f'<path d="M{LEFT} {TOP}V{floor}H{LEFT + width}" fill="none" stroke="#bbb"/>']
    if axes.diagonal:
        ends = " L".join(place((end, end)) for end in (max(left, low), min(right, high)))
        parts.append(f'<path d="M{ends}" fill="none" stroke="#bbb" stroke-dasharray="4 3"/>')
    for line, colour in zip(lines, COLOURS * len(lines), strict=False):
        points = " ".join(map(place, line.points))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.7"/>'
        )
        for point, count in zip(line.points, line.counts, strict=False):
            x, y = place(point).split(",")
            radius = DOT * math.sqrt(count / max(line.counts))
            parts.append(
                f'<circle cx="{x}" cy="{y}" r="{radius:.1f}" fill="{colour}" fill-opacity="0.5"/>'
            )
    # The names stand in the corner that fewer points lie in.
    middle = (left + right) / 2, (low + high) / 2
    lower_right = sum(x > middle[0] and y < middle[1] for x, y in zip(xs, ys, strict=True))
    upper_left = sum(x < middle[0] and y > middle[1] for x, y in zip(xs, ys, strict=True))
    parts += _legend([line.name for line in lines], floor, upper_left < lower_right)
    for y, value in ((TOP + 4, high), (floor, low)):
        parts.append(f'<text x="{LEFT - 4}" y="{y}" text-anchor="end">{value:.4g}</text>')
    for x, anchor, value in ((LEFT, "start", left), (LEFT + width, "end", right)):
        parts.append(f'<text x="{x}" y="{HEIGHT - 6}" text-anchor="{anchor}">{value:g}</text>')
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f"<svg {size}>{''.join(parts)}</svg>"


def _legend(names: Sequence[str], floor: int, upper_left: bool) -> list[str]:
    """The names in the colours of their lines, in the upper left or else the lower right corner."""
    named = [
        (name, colour) for name, colour in zip(names, COLOURS * len(names), strict=False) if name
    ]
    x, anchor = (LEFT + 8, "start") if upper_left else (WIDTH - 16, "end")
    first = TOP + 12 if upper_left else floor - 8 - 14 * (len(named) - 1)
    return [
        f'<text x="{x}" y="{first + 14 * row}" text-anchor="{anchor}" '
        f'style="fill:{colour}">{html.escape(name)}</text>'
        for row, (name, colour) in enumerate(named)
    ]
