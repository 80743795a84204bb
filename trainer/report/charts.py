"""Charts as inline SVG: bars, lines, histograms and intervals.

Colours are CSS values (``var(--cam)``), so one drawing serves the light and the dark page. Nothing
here knows what the numbers mean. ``element`` escapes every text and every attribute.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

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


def element(name: str, content: Iterable[str] | str = "", /, **attributes: object) -> Markup:
    """An SVG element. Floats are written with one decimal; ``class_`` stands for ``class`` and
    ``stroke_width`` for ``stroke-width``.
    """
    values = (
        (key.rstrip("_").replace("_", "-"), f"{v:.1f}" if isinstance(v, float) else v)
        for key, v in attributes.items()
    )
    start = Markup("<{}{}>").format(
        name, Markup("").join(Markup(' {}="{}"').format(key, v) for key, v in values)
    )
    inner = [content] if isinstance(content, str) else content
    return start + Markup("").join(map(escape, inner)) + Markup("</{}>").format(name)


def bars(
    rows: Sequence[tuple[str, float | None]], label: str, height: int = 7, gap: int = 2
) -> Markup:
    """Horizontal bars of full-width scale 0..1, one below the other.

    Args:
        rows: ``(CSS colour, value 0..1)``; None leaves the place empty.
        label: the chart in words.
        height: of one bar, in pixels.
        gap: between two bars.

    Returns:
        An ``<svg>`` as wide as its parent.
    """
    drawn = [
        element(
            "rect",
            x=0,
            y=i * (height + gap),
            width=f"{100 * min(max(value, 0.0), 1.0):.2f}%",
            height=height,
            rx=1,
            fill=colour,
        )
        for i, (colour, value) in enumerate(rows)
        if value is not None and math.isfinite(value)
    ]
    return _bars(drawn, label, max(1, len(rows) * (height + gap) - gap))


def strip(sizes: Sequence[int], colour: str, label: str) -> Markup:
    """One bar of full width, cut into parts in proportion to ``sizes``."""
    total, left, drawn = max(sum(sizes), 1), 0, []
    for i, size in enumerate(sizes):
        drawn.append(
            element(
                "rect",
                x=f"{100 * left / total:.2f}%",
                width=f"{100 * size / total:.2f}%",
                height=10,
                fill=colour,
                fill_opacity="0.55" if i % 2 else "1",
            )
        )
        left += size
    return _bars(drawn, label, 10)


def line_chart(
    lines: Sequence[Line],
    label: str,
    x_name: str,
    y_name: str = "",
    marks: Sequence[Mark] = (),
    size: tuple[int, int] = (360, 220),
) -> Markup | None:
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
        An ``<svg>``, or None when no point is finite.
    """
    curves = [
        (line, thin([p for p in line.points if all(map(math.isfinite, p))])) for line in lines
    ]
    points = [p for _, curve in curves for p in curve]
    if not points:
        return None
    x_low, y_low = (min(0.0, *(p[axis] for p in points)) for axis in (0, 1))
    x_high, y_high = (max(p[axis] for p in points) for axis in (0, 1))
    x_ticks, y_ticks = ticks(x_low, x_high, 5), ticks(y_low, y_high, 4)
    x_ends = (x_low, x_high) if x_high > x_low else (x_low - 0.5, x_low + 0.5)
    frame = _Frame(x_ends, (y_ticks[0], y_ticks[-1]), size)
    body = _grid(frame, x_ticks, y_ticks, x_name, y_name)
    for mark in marks:
        body += _mark(frame, mark)
    body += [_curve(frame, *pair) for pair in sorted(curves, key=lambda pair: pair[0].main)]
    body += [
        element("circle", class_="dot", cx=float(frame.x(x)), cy=float(frame.y(y)), r=3.5)
        for mark in marks
        for x, y in mark.dots
    ]
    return _chart(body, label, size)


def histogram(
    values: Sequence[float],
    colour: str,
    label: str,
    bins: int = 20,
    size: tuple[int, int] = (360, 120),
) -> Markup:
    """How many of the values 0..1 fall into each of ``bins`` equal steps, with a rule at their
    median.

    Args:
        values: at least one; clipped to 0..1.
        colour: CSS value.
        label: the chart in words.
        bins: steps.
        size: drawing size in CSS pixels.
    """
    clipped = np.clip(values, 0, 1)
    counts = np.bincount(np.minimum(clipped * bins, bins - 1).astype(int), minlength=bins).tolist()
    median = statistics.median(clipped.tolist()) * size[0]
    width, floor = size[0] / bins, size[1] - 18
    body = [element("line", class_="grid", x1=0, x2=size[0], y1=floor, y2=floor)]
    for i, count in enumerate(counts):
        height = (floor - 4) * count / max(counts)
        words = f"{100 * i / bins:g} to {100 * (i + 1) / bins:g}: {count}"
        place = {"x": i * width, "y": floor - height, "width": width - 1, "height": height}
        body.append(element("rect", element("title", words), **place, fill=colour))
    for share, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
        place = {"x": share * size[0], "y": size[1] - 4}
        body.append(element("text", f"{100 * share:g}", **place, text_anchor=anchor))
    body.append(element("line", class_="rule", x1=median, x2=median, y1=0, y2=floor))
    return _chart(body, label, size)


def forest(low: float, middle: float, high: float, scale: float, label: str) -> Markup | None:
    """An interval around 0 that reaches from ``-scale`` to ``scale``; None where it is
    undefined.
    """
    if not all(map(math.isfinite, (low, middle, high))):
        return None
    width = 180
    colour = "var(--segment)" if low > 0 else "var(--warn)" if high < 0 else "var(--soft)"
    left, dot, right = (width / 2 * (1 + value / scale) for value in (low, middle, high))
    rule = {"stroke": colour, "stroke_width": 4, "stroke_linecap": "round", "opacity": ".55"}
    body = [
        element("line", x1=width / 2, x2=width / 2, y1=0, y2=16, stroke="var(--line)"),
        element("line", x1=left, x2=right, y1=8, y2=8, **rule),
        element("circle", cx=dot, cy=8, r=4, fill=colour),
    ]
    return element(
        "svg", body, class_="forest", width=width, height=16, role="img", aria_label=label
    )


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
        self.middle = (self.left + self.right) / 2

    def x(self, value: float) -> float:
        low, high = self.x_ends
        return self.left + (self.right - self.left) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.y_ends
        return self.bottom - (self.bottom - self.top) * (value - low) / (high - low)


def _bars(body: Sequence[Markup], label: str, height: int) -> Markup:
    return element(
        "svg", body, class_="bars", width="100%", height=height, role="img", aria_label=label
    )


def _chart(body: Sequence[Markup], label: str, size: tuple[int, int]) -> Markup:
    box = f"0 0 {size[0]} {size[1]}"
    return element("svg", body, class_="chart", viewBox=box, role="img", aria_label=label)


def _grid(
    frame: _Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], x_name: str, y_name: str
) -> list[Markup]:
    parts = []
    for value in y_ticks:
        y = frame.y(value)
        parts.append(element("line", class_="grid", x1=frame.left, x2=frame.right, y1=y, y2=y))
        parts.append(element("text", short(value), x=frame.left - 7, y=y + 4, text_anchor="end"))
    below = [
        (frame.x(value), frame.bottom + 15, short(value))
        for value in x_ticks
        if frame.x_ends[0] - 1e-9 <= value <= frame.x_ends[1] + 1e-9
    ]
    for x, y, text in [*below, (frame.middle, frame.bottom + 30, x_name)]:
        parts.append(element("text", text, x=x, y=y, text_anchor="middle"))
    return parts + ([element("text", y_name, x=frame.left, y=frame.top - 3)] if y_name else [])


def _curve(frame: _Frame, line: Line, points: Sequence[Point]) -> Markup:
    title = element("title", line.name)
    places = [(frame.x(x), frame.y(y)) for x, y in points]
    if len(places) == 1:
        return element("circle", title, cx=places[0][0], cy=places[0][1], r=3, fill=line.colour)
    return element(
        "polyline",
        title,
        points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places),
        fill="none",
        stroke=line.colour,
        stroke_width=1.8 if line.main else 1.2,
        stroke_linejoin="round",
    )


def _mark(frame: _Frame, mark: Mark) -> list[Markup]:
    x = frame.x(min(max(mark.x, frame.x_ends[0]), frame.x_ends[1]))
    # The text stands on the side of the rule that has more room.
    anchor, shift = ("start", 6) if x < frame.middle else ("end", -6)
    place = {"x": x + shift, "y": frame.bottom - 8 - 15 * mark.row, "text_anchor": anchor}
    rule = element("line", class_="rule", x1=x, x2=x, y1=frame.top, y2=frame.bottom)
    return [rule, element("text", mark.text, class_="mark", **place)]
