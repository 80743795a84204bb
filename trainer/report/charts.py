"""Charts as inline SVG, drawn by plain functions: bars and lines, in the colours of the page around
them.

Colours are CSS values (``var(--cam)``), so one drawing serves the light and the dark page. Nothing
here knows what the numbers mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 34


@dataclass(frozen=True)
class Line:
    """One curve: its name, CSS colour, points with ascending x, and whether it is the main one of
    its chart.
    """

    name: str
    colour: str
    points: Sequence[Point]
    main: bool = True


@dataclass(frozen=True)
class Mark:
    """A vertical rule at ``x`` with a text in line ``row`` from below, and dots on curves."""

    x: float
    text: str
    dots: Sequence[Point] = ()
    row: int = 0


def bars(
    rows: Sequence[tuple[str, float | None]], label: str, height: int = 7, gap: int = 2
) -> str:
    """Horizontal bars of full-width scale 0..1, one below the other.

    Args:
        rows: ``(CSS colour, value 0..1)``; None leaves the place empty.
        label: the chart in words.
        height: of one bar, in pixels.
        gap: between two bars.

    Returns:
        An ``<svg>`` as wide as its parent.
    """
    drawn = []
    for i, (colour, value) in enumerate(rows):
        if value is not None and math.isfinite(value):
            width = 100 * min(max(value, 0.0), 1.0)
            top = i * (height + gap)
            drawn.append(
                f'<rect x="0" y="{top}" width="{width:.2f}%" height="{height}" rx="1"'
                f' fill="{colour}"/>'
            )
    total = max(1, len(rows) * (height + gap) - gap)
    head = (
        f'<svg class="bars" width="100%" height="{total}" role="img" aria-label="{escape(label)}">'
    )
    return head + "".join(drawn) + "</svg>"


def line_chart(
    lines: Sequence[Line],
    label: str,
    x_name: str,
    y_name: str = "",
    marks: Sequence[Mark] = (),
    size: tuple[int, int] = (360, 220),
) -> str:
    """Curves over one pair of axes that begin at 0, or below where values are negative.

    Args:
        lines: the curves; points that are not finite are left out, long curves are averaged to 240
            points.
        label: the chart in words, for those who cannot see it.
        x_name: under the x axis.
        y_name: above the y axis.
        marks: vertical rules.
        size: drawing size in CSS pixels; the page may scale it down.

    Returns:
        An ``<svg>``, or a paragraph when no point is finite.
    """
    curves = [
        (line, thin([p for p in line.points if all(map(math.isfinite, p))])) for line in lines
    ]
    points = [p for _, curve in curves for p in curve]
    if not points:
        return '<p class="note">No finite value was logged.</p>'
    x_low, y_low = (min(0.0, *(p[axis] for p in points)) for axis in (0, 1))
    x_high, y_high = (max(p[axis] for p in points) for axis in (0, 1))
    x_ticks, y_ticks = ticks(x_low, x_high, 5), ticks(y_low, y_high, 4)
    x_ends = (x_low, x_high) if x_high > x_low else (x_low - 0.5, x_low + 0.5)
    frame = _Frame(x_ends, (y_ticks[0], y_ticks[-1]), size)
    body = [_grid(frame, x_ticks, y_ticks, x_name, y_name)]
    body += [_mark(frame, mark) for mark in marks]
    body += [
        _curve(frame, line, curve) for line, curve in sorted(curves, key=lambda pair: pair[0].main)
    ]
    body += [_dot(frame, dot) for mark in marks for dot in mark.dots]
    head = (
        f'<svg class="chart" viewBox="0 0 {size[0]} {size[1]}" role="img"'
        f' aria-label="{escape(label)}">'
    )
    return head + "".join(body) + "</svg>"


def histogram(
    values: Sequence[float],
    colour: str,
    label: str,
    bins: int = 20,
    size: tuple[int, int] = (360, 120),
) -> str:
    """How many of the values 0..1 fall into each of ``bins`` equal steps, with a rule at their
    median.

    Args:
        values: at least one; clipped to 0..1.
        colour: CSS value.
        label: the chart in words.
        bins: steps.
        size: drawing size in CSS pixels.
    """
    clipped = sorted(min(max(value, 0.0), 1.0) for value in values)
    counts = [0] * bins
    for value in clipped:
        counts[min(int(value * bins), bins - 1)] += 1
    middle = len(clipped) // 2
    median = clipped[middle] if len(clipped) % 2 else (clipped[middle - 1] + clipped[middle]) / 2
    width, floor = size[0] / bins, size[1] - 18
    body = ""
    for i, count in enumerate(counts):
        height = (floor - 4) * count / max(counts)
        place = (
            f'x="{i * width:.1f}" y="{floor - height:.1f}" width="{width - 1:.1f}"'
            f' height="{height:.1f}"'
        )
        body += (
            f'<rect {place} fill="{colour}"><title>{100 * i / bins:g} to {100 * (i + 1) / bins:g}:'
            f" {count}</title></rect>"
        )
    for share, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
        body += (
            f'<text x="{share * size[0]}" y="{size[1] - 4}"'
            f' text-anchor="{anchor}">{100 * share:g}</text>'
        )
    rule = (
        f'<line class="rule" x1="{median * size[0]:.1f}" x2="{median * size[0]:.1f}" y1="0"'
        f' y2="{floor}"/>'
    )
    axis = f'<line class="grid" x1="0" x2="{size[0]}" y1="{floor}" y2="{floor}"/>'
    head = (
        f'<svg class="chart" viewBox="0 0 {size[0]} {size[1]}" role="img"'
        f' aria-label="{escape(label)}">'
    )
    return f"{head}{axis}{body}{rule}</svg>"


def key(lines: Sequence[Line]) -> str:
    """Swatch and name of each curve."""
    items = "".join(
        f'<li><i style="background:{line.colour}"></i>{escape(line.name)}</li>' for line in lines
    )
    return f'<ul class="key">{items}</ul>'


def ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round numbers (steps 1, 2, 2.5, 5 x 10^n) whose range covers
    ``low..high``.
    """
    if high <= low:
        pad = abs(low) * 0.5 or 0.5
        low, high = low - pad if low else 0.0, high + pad
    raw = (high - low) / max(1, count)
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def thin(points: Sequence[Point], limit: int = 240) -> list[Point]:
    """At most ``limit`` points: means over runs of equal length, the last point kept."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(len(points) / (limit - 1))
    runs = [points[i : i + size] for i in range(0, len(points), size)]
    means = [(sum(p[0] for p in run) / len(run), sum(p[1] for p in run) / len(run)) for run in runs]
    return [*means, points[-1]] if means[-1][0] < points[-1][0] else means


def short(value: float) -> str:
    """An axis number: ``1500`` as ``1.5k``, ``0.0001`` as ``1e-4``, no trailing zeros."""
    size = abs(value)
    if size >= 1_000_000:
        return f"{value / 1_000_000:.3g}M"
    if size >= 1_000:
        return f"{value / 1_000:.3g}k"
    if 0 < size < 0.001:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}"


class _Frame:
    """Where data coordinates lie in the drawing."""

    def __init__(self, x_ends: Point, y_ends: Point, size: tuple[int, int]) -> None:
        self.x_ends, self.y_ends = x_ends, y_ends
        self.left, self.right = _LEFT, size[0] - _RIGHT
        self.top, self.bottom = _TOP, size[1] - _BOTTOM

    def x(self, value: float) -> float:
        low, high = self.x_ends
        return self.left + (self.right - self.left) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.y_ends
        return self.bottom - (self.bottom - self.top) * (value - low) / (high - low)


def _grid(
    frame: _Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], x_name: str, y_name: str
) -> str:
    parts = []
    for value in y_ticks:
        y = frame.y(value)
        parts.append(
            f'<line class="grid" x1="{frame.left}" x2="{frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(
            f'<text x="{frame.left - 7}" y="{y + 4:.1f}" text-anchor="end">{short(value)}</text>'
        )
    for value in x_ticks:
        if frame.x_ends[0] - 1e-9 <= value <= frame.x_ends[1] + 1e-9:
            x = frame.x(value)
            parts.append(
                f'<text x="{x:.1f}" y="{frame.bottom + 15}"'
                f' text-anchor="middle">{short(value)}</text>'
            )
    middle = (frame.left + frame.right) / 2
    parts.append(
        f'<text x="{middle:.1f}" y="{frame.bottom + 30}"'
        f' text-anchor="middle">{escape(x_name)}</text>'
    )
    if y_name:
        parts.append(f'<text x="{frame.left}" y="{frame.top - 3}">{escape(y_name)}</text>')
    return "".join(parts)


def _curve(frame: _Frame, line: Line, points: Sequence[Point]) -> str:
    title = f"<title>{escape(line.name)}</title>"
    if len(points) == 1:
        x, y = frame.x(points[0][0]), frame.y(points[0][1])
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{line.colour}">{title}</circle>'
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
    style = (
        f'fill="none" stroke="{line.colour}" stroke-width="{1.8 if line.main else 1.2}"'
        ' stroke-linejoin="round"'
    )
    return f'<polyline points="{path}" {style}>{title}</polyline>'


def _mark(frame: _Frame, mark: Mark) -> str:
    x = frame.x(min(max(mark.x, frame.x_ends[0]), frame.x_ends[1]))
    # The text stands on the side of the rule that has more room.
    anchor, shift = ("start", 6) if x < (frame.left + frame.right) / 2 else ("end", -6)
    place = f'x="{x + shift:.1f}" y="{frame.bottom - 8 - 15 * mark.row}" text-anchor="{anchor}"'
    rule = f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top}" y2="{frame.bottom}"/>'
    return f'{rule}<text class="mark" {place}>{escape(mark.text)}</text>'


def _dot(frame: _Frame, dot: Point) -> str:
    return f'<circle class="dot" cx="{frame.x(dot[0]):.1f}" cy="{frame.y(dot[1]):.1f}" r="3.5"/>'
