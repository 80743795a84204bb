"""Charts as inline SVG: bars, lines, histograms and intervals.

Colours are CSS values (``var(--cam)``), so one drawing serves the light and the dark page.
``templates/charts.html`` has the markup.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from trainer.report.html import draw

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One curve: its name, CSS colour and points with ascending x. The main curve is on top."""

    name: str
    colour: str
    points: Sequence[Point]
    main: bool = True


@dataclass(frozen=True)
class Mark:
    """A vertical rule at ``x`` with a text, ``row`` lines from below, and dots on curves."""

    x: float
    text: str
    dots: Sequence[Point] = ()
    row: int = 0


def bars(
    rows: Sequence[tuple[str, float | None]], label: str, height: int = 7, gap: int = 2
) -> Markup:
    """Horizontal bars, one below the other, in an ``<svg>`` as wide as its parent.

    Args:
        rows: ``(CSS colour, value 0..1)``; None leaves the place empty.
        label: the chart in words, for those who cannot see it.
        height: of one bar, in pixels.
        gap: between two bars.
    """
    rects = [
        {"x": 0, "y": i * (height + gap), "width": _share(value), "colour": colour, "opacity": 1}
        for i, (colour, value) in enumerate(rows)
        if value is not None and math.isfinite(value)
    ]
    total = max(1, len(rows) * (height + gap) - gap)
    return draw("bars", rects=rects, label=label, total=total, height=height)


def strip(sizes: Sequence[int], colour: str, label: str) -> Markup:
    """One bar of full width, cut into parts in proportion to ``sizes``."""
    shares = [size / max(sum(sizes), 1) for size in sizes]
    # Neighbouring parts share a colour, and alternate in opacity to stay apart.
    rects = [
        {"x": _share(sum(shares[:i])), "y": 0, "width": _share(share), "colour": colour}
        | {"opacity": 0.55 if i % 2 else 1}
        for i, share in enumerate(shares)
    ]
    return draw("bars", rects=rects, label=label, total=10, height=10)


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
        label: the chart in words.
        x_name: under the x axis.
        y_name: above the y axis.
        marks: vertical rules.
        size: drawing size in CSS pixels; the page may scale it down.

    Returns:
        An ``<svg>``, or None when no point is finite.
    """
    curves = [
        (line, thin([p for p in line.points if all(map(math.isfinite, p))]))
        for line in sorted(lines, key=lambda line: line.main)
    ]
    curves = [(line, points) for line, points in curves if points]
    if not curves:
        return None
    xs, ys = ([p[axis] for _, points in curves for p in points] for axis in (0, 1))
    x_ends, y_steps = (min(0.0, *xs), max(xs)), ticks(min(0.0, *ys), max(ys), 4)
    frame = Frame(x_ends, (y_steps[0], y_steps[-1]), size)
    x_steps = [x for x in ticks(*x_ends, 5) if x_ends[0] - 1e-9 <= x <= x_ends[1] + 1e-9]
    x_ticks, y_ticks = ([(v, short(v)) for v in steps] for steps in (x_steps, y_steps))
    values = {"curves": curves, "marks": marks, "x_ticks": x_ticks, "y_ticks": y_ticks}
    return draw("lines", frame=frame, label=label, x_name=x_name, y_name=y_name, **values)


@dataclass(frozen=True)
class Dot:
    """A place in a plane, its CSS colour and name; ``large`` ones lie on top."""

    x: float
    y: float
    colour: str
    name: str
    large: bool = False


def scatter(dots: Sequence[Dot], label: str, size: tuple[int, int] = (560, 420)) -> Markup:
    """Dots in a plane whose axes have no meaning, so that none are drawn.

    Args:
        dots: at least one.
        label: the chart in words.
        size: drawing size in CSS pixels.
    """
    xs, ys = [dot.x for dot in dots], [dot.y for dot in dots]
    frame = Frame((min(xs), max(xs)), (min(ys), max(ys)), size)
    top = sorted(dots, key=lambda dot: dot.large)
    return draw("scatter", frame=frame, dots=top, label=label)


def histogram(
    values: Sequence[float],
    colour: str,
    label: str,
    bins: int = 20,
    size: tuple[int, int] = (360, 120),
) -> Markup:
    """Histogram of values in 0..1, at least one, with a rule at their median.

    Args:
        values: clipped to 0..1.
        colour: CSS value.
        label: the chart in words.
        bins: number of equal steps.
        size: drawing size in CSS pixels.
    """
    inside = np.clip(values, 0, 1)
    counts = np.bincount(np.minimum(inside * bins, bins - 1).astype(int), minlength=bins).tolist()
    median = statistics.median(inside.tolist()) * size[0]
    width, floor = size[0] / bins, size[1] - 18
    rects = []
    for i, count in enumerate(counts):
        text = f"{100 * i / bins:g} to {100 * (i + 1) / bins:g}: {count}"
        rects.append((i * width, width - 1, (floor - 4) * count / max(counts), text))
    place = {"rects": rects, "floor": floor, "median": median}
    return draw("histogram", size=size, label=label, colour=colour, **place)


def forest(low: float, middle: float, high: float, scale: float, label: str) -> Markup | None:
    """An interval in a drawing from ``-scale`` to ``scale``; None where it is undefined."""
    if not all(map(math.isfinite, (low, middle, high))):
        return None
    # Grey where the interval holds 0, as then the sign of the difference is open.
    colour = "var(--segment)" if low > 0 else "var(--warn)" if high < 0 else "var(--soft)"
    left, dot, right = (90 * (1 + value / scale) for value in (low, middle, high))
    return draw("forest", label=label, colour=colour, low=left, middle=dot, high=right)


def ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round numbers (steps 1, 2, 2.5, 5 x 10^n) that cover ``low..high``."""
    if high <= low:
        pad = abs(low) * 0.5 or 0.5
        low, high = low - pad if low else 0.0, high + pad
    raw = (high - low) / max(1, count)
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * (1 - 1e-9))
    # Without the tolerance, a quotient such as 0.3 / 0.1 = 2.9999999999999996 would add a step.
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def thin(points: Sequence[Point], limit: int = 240) -> list[Point]:
    """At most ``limit`` points: means over runs of equal length, and the last point."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(len(points) / (limit - 1))
    runs = [points[i : i + size] for i in range(0, len(points), size)]
    # Means, since single values of a noisy loss would mislead.
    means = [(sum(p[0] for p in run) / len(run), sum(p[1] for p in run) / len(run)) for run in runs]
    return [*means, points[-1]] if means[-1][0] < points[-1][0] else means


def short(value: float) -> str:
    """A number for an axis: ``1500`` as ``1.5k``, ``0.0001`` as ``1e-4``, no trailing zeros."""
    size = abs(value)
    if size >= 1_000_000:
        return f"{value / 1_000_000:.3g}M"
    if size >= 1_000:
        return f"{value / 1_000:.3g}k"
    if 0 < size < 0.001:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}"


class Frame:
    """The places of data coordinates in a drawing."""

    def __init__(self, x_ends: Point, y_ends: Point, size: tuple[int, int]) -> None:
        low, high = x_ends
        self.x_ends = (low, high) if high > low else (low - 0.5, low + 0.5)
        self.y_ends = y_ends if y_ends[1] > y_ends[0] else (y_ends[0] - 0.5, y_ends[0] + 0.5)
        self.width, self.height = size
        self.left, self.right, self.top, self.bottom = 46, size[0] - 14, 12, size[1] - 34
        self.middle = (self.left + self.right) / 2

    def x(self, value: float) -> float:
        """Place of a value on the x axis."""
        low, high = self.x_ends
        return self.left + (self.right - self.left) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        """Place of a value on the y axis."""
        low, high = self.y_ends
        # The y axis of SVG points down.
        return self.bottom - (self.bottom - self.top) * (value - low) / (high - low)

    def clamped(self, value: float) -> float:
        """Place of a value on the x axis, or the nearer end of the axis."""
        return self.x(min(max(value, self.x_ends[0]), self.x_ends[1]))

    def path(self, points: Sequence[Point]) -> str:
        """Places of points, in the syntax of an SVG path."""
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)


def _share(value: float) -> str:
    return f"{100 * min(max(value, 0.0), 1.0):.2f}"
