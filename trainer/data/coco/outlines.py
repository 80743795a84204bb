"""Outlines of COCO annotations: polygons and run lengths, checked when they are read and painted
when a mask is asked for.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.pixels import MAX_PIXELS

Size = tuple[int, int]
"""Height and width."""
Ring = list[float]
"""``x, y, x, y, ...`` of a polygon."""
Piece = Ring | dict[str, Any]
"""A polygon, or run lengths: ``{"size": [height, width], "counts": ...}``."""
WHOLE = re.compile(r"([+-]?\d{1,18})(\.0*)?")
FAR = 1e6
"""No picture has a pixel as far from its corner as this."""
UPSAMPLING = 5
"""pycocotools walks along a polygon in fifths of a pixel."""
MAX_STEPS = 10_000_000
"""Steps along one polygon: pycocotools takes about 24 bytes for each."""
MAX_STROKES = 1000
"""How many times an image may be painted over."""


@dataclass(frozen=True)
class Shape:
    """What the mask of one image is painted from.

    Attributes:
        size: height and width that the JSON says, None where it does not say.
        outlines: compressed JSON, a list of pieces for each annotation; compressed because the
            600,000 outlines of COCO as Python lists would take gigabytes in every worker.
        values: what each annotation paints, in painting order; None leaves it out.
        relative: whether polygons are in fractions of width and height.
    """

    size: Size | None
    outlines: bytes
    values: tuple[int | None, ...]
    relative: bool = False

    def draw(self, height: int, width: int) -> npt.NDArray[np.uint8]:
        """Label map ``uint8 [H,W]``, later annotations on top.

        Raises:
            ValueError: run lengths of another size, or outlines that would take far more time or
            memory than such an image can need.
        """
        # Run lengths go down the columns, so the map is kept column by column.
        label_WH = np.zeros((width, height), np.uint8)
        budget = _Budget(height * width)
        outlines = json.loads(zlib.decompress(self.outlines))
        for value, pieces in zip(self.values, outlines, strict=True):
            if value is None:
                continue
            for counts in _runs(pieces, height, width, self.relative, budget):
                _paint(label_WH.reshape(-1), counts, value, budget)
        return np.ascontiguousarray(label_WH.T)


def compress(outlines: Sequence[Sequence[Piece]]) -> bytes:
    """``Shape.outlines`` of one image."""
    return zlib.compress(json.dumps(outlines).encode(), 1)


def whole(value: object) -> int | None:
    """A whole number, also written as ``160.0`` or as text; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str):
        digits = WHOLE.fullmatch(value.strip())
        return int(digits[1]) if digits else None
    return value if isinstance(value, int) else None


def pieces_of(segmentation: object, size: Size | None) -> list[Piece]:
    """Polygons and run lengths of a ``segmentation``; empty without an outline.

    A polygon is accepted as a flat list, as pairs, or as points with ``x`` and ``y``; a single one
    also without the list around it. Polygons of less than three points are left out.

    Args:
        size: of the image, where it is known: run lengths must fit.

    Raises:
        ValueError: coordinates that are not numbers, run lengths that do not fill the image, or
        another kind of shape.
    """
    if segmentation is None or segmentation in ("", [], {}):
        return []
    if isinstance(segmentation, dict):
        return [_checked_runs(segmentation, size)]
    if not isinstance(segmentation, list):
        raise ValueError(f"a {type(segmentation).__name__} is no outline")
    if all(isinstance(item, dict) and "counts" in item for item in segmentation):
        return [_checked_runs(item, size) for item in segmentation]
    if _is_matrix(segmentation, size):
        raise ValueError("a mask of 0 and 1 in place of an outline; SAM: output_mode='coco_rle'")
    flat = not isinstance(segmentation[0], (list, dict))
    single = flat or _is_point(segmentation[0])
    rings = [_ring(item) for item in ([segmentation] if single else segmentation)]
    return [ring for ring in rings if len(ring) >= 6]


def _is_matrix(segmentation: list[Any], size: Size | None) -> bool:
    """Whether this is a mask, row by row: polygons could be drawn of it, in one corner."""
    if not isinstance(segmentation[0], list):
        return False
    sides = (len(segmentation), len(segmentation[0]))
    of_bools = bool(segmentation[0]) and isinstance(segmentation[0][0], bool)
    return of_bools or (sides == size and all(value in (0, 1) for value in segmentation[0]))


def is_relative(rings: Iterator[Ring]) -> bool:
    """Whether polygons are in fractions of width and height. Then all coordinates lie within 0 to
    1, with some tolerance, and some are not whole numbers.
    """
    between = False
    for ring in rings:
        if min(ring) < -0.1 or max(ring) > 1.1:
            return False
        between = between or not all(float(value).is_integer() for value in ring)
    return between


def _is_point(item: object) -> bool:
    if isinstance(item, dict):
        return {"x", "y"} <= item.keys()
    return isinstance(item, list) and len(item) == 2 and not isinstance(item[0], (list, dict))


def _ring(item: object) -> Ring:
    """Coordinates of one polygon, checked."""
    if not isinstance(item, list):
        raise ValueError(f"a {type(item).__name__} is no polygon")
    if item and _is_point(item[0]):
        if not all(_is_point(point) for point in item):
            raise ValueError("a polygon mixes points with other things")
        item = [
            value
            for point in item
            for value in ((point["x"], point["y"]) if isinstance(point, dict) else point)
        ]
    if len(item) % 2:
        raise ValueError(f"a polygon has {len(item)} coordinates, an odd number")
    if not item:
        return []
    try:
        low, high = min(item), max(item)
        if isinstance(low, str):
            raise TypeError
    except TypeError:
        item = [_number(value) for value in item]
        low, high = min(item), max(item)
    if not -FAR <= low <= high <= FAR:
        raise ValueError(f"a polygon has the coordinate {high if high > FAR else low}")
    return item


def _number(value: object) -> float:
    try:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            number = float(value)
            if math.isfinite(number):
                return number
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"a polygon has the coordinate {str(value)[:40]!r}")


def _checked_runs(runs: dict[str, Any], size: Size | None) -> dict[str, Any]:
    """``size`` and ``counts`` of run lengths as whole numbers.

    Raises:
        ValueError: see ``pieces_of``.
    """
    sides_entry = runs.get("size")
    sides = [whole(side) for side in sides_entry] if isinstance(sides_entry, list) else []
    if len(sides) != 2 or not all(side and side > 0 for side in sides):
        raise ValueError(f"run lengths of the size {str(sides_entry)[:40]}")
    height, width = (int(side or 0) for side in sides)
    if size is not None and size != (height, width):
        raise ValueError(f"run lengths of a {[height, width]} picture in one of {list(size)}")
    counts = runs.get("counts")
    if isinstance(counts, list):
        counts = [whole(count) for count in counts]
        if None in counts:
            raise ValueError("run lengths that are no whole numbers")
    elif not isinstance(counts, str):
        raise ValueError("run lengths without counts")
    result = {"size": [height, width], "counts": counts}
    _counts(result)
    return result


def _counts(runs: dict[str, Any]) -> npt.NDArray[np.int64]:
    """Lengths of background and object by turns, down the columns, which fill the picture.

    Raises:
        ValueError: they do not, or the text of compressed lengths is damaged.
    """
    height, width = runs["size"]
    if height * width > MAX_PIXELS:
        raise ValueError(f"run lengths of {height * width:,} pixels")
    counts = runs["counts"]
    if isinstance(counts, str):
        lengths = _decompressed(counts)
    else:
        # Larger numbers than any picture's would not fit into 64 bits.
        lengths = np.array([min(max(n, -1), MAX_PIXELS + 1) for n in counts], np.int64)
    if (lengths < 0).any() or lengths.sum() != height * width:
        raise ValueError(
            f"run lengths that do not fill {height * width} pixels"
            if not (lengths < 0).any()
            else "a negative run length"
        )
    return lengths


def _decompressed(text: str) -> npt.NDArray[np.int64]:
    """Run lengths of COCO's text form: groups of five bits from the lowest up, each with a bit that
    says whether more follow; from the fourth on, each number is the difference to the last but one.

    Raises:
        ValueError: other characters, a number of more than 30 bits, or a last number that is cut.
    """
    codes = np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int64) - 48
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("damaged text of run lengths")
    last = (codes & 32) == 0
    ends = np.flatnonzero(last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    if (ends - starts).max() > 5:
        raise ValueError("a run length of more than 30 bits")
    group = np.cumsum(last) - last
    place = 5 * (np.arange(len(codes)) - starts[group])
    numbers = np.zeros(len(ends), np.int64)
    np.add.at(numbers, group, (codes & 31) << place)
    # The highest bit of the last group is the sign.
    negative = (codes[ends] & 16) != 0
    numbers[negative] -= np.int64(1) << (5 * (ends - starts + 1)[negative])
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


class _Budget:
    """The work that one image may still cost. Work is subtracted before it is done."""

    def __init__(self, pixels: int) -> None:
        self.strokes = MAX_STROKES * pixels
        self.steps = MAX_STEPS + pixels

    def walk(self, steps: float) -> None:
        """Subtract the steps along one polygon.

        Raises:
            ValueError: there are too many.
        """
        self.steps -= int(steps)
        if steps > MAX_STEPS or self.steps < 0:
            raise ValueError(f"polygons of more than {MAX_STEPS // UPSAMPLING:,} pixels of outline")

    def paint(self, pixels: int) -> None:
        """Subtract pixels to paint.

        Raises:
            ValueError: there are too many.
        """
        self.strokes -= pixels
        if self.strokes < 0:
            raise ValueError(f"annotations paint the image more than {MAX_STROKES} times over")


def _runs(
    pieces: Sequence[Piece], height: int, width: int, relative: bool, budget: _Budget
) -> Iterator[npt.NDArray[np.int64]]:
    """Run lengths of each piece."""
    for piece in pieces:
        if isinstance(piece, dict):
            if piece["size"] != [height, width]:
                raise ValueError(f"run lengths of a {piece['size']} picture")
            yield _counts(piece)
        else:
            scale = (width, height) if relative else (1, 1)
            points_N2 = np.asarray(piece, np.float64).reshape(-1, 2) * scale
            yield from _rasterise(points_N2, height, width, budget)


def _rasterise(
    points_N2: npt.NDArray[np.float64], height: int, width: int, budget: _Budget
) -> Iterator[npt.NDArray[np.int64]]:
    """Run lengths of a polygon, as pycocotools draws it."""
    from pycocotools import mask as rle

    for axis, side in ((0, width), (1, height)):
        # A polygon that reaches beyond the image by no more than its size stays as it is.
        points_N2 = _clipped(points_N2, axis, -side, 1)
        points_N2 = _clipped(points_N2, axis, 2 * side, -1)
    if len(points_N2) < 3:
        return
    along = np.abs(points_N2 - np.roll(points_N2, -1, axis=0)).max(axis=1)
    budget.walk(UPSAMPLING * along.sum() + len(points_N2))
    (runs,) = rle.frPyObjects([points_N2.ravel().tolist()], height, width)
    yield _decompressed(runs["counts"].decode("ascii"))


def _clipped(
    points_N2: npt.NDArray[np.float64], axis: int, bound: float, sign: int
) -> npt.NDArray[np.float64]:
    """The part of a polygon where ``sign * (x - bound) >= 0`` (Sutherland and Hodgman's
    algorithm for one edge).
    """
    inside = sign * (points_N2[:, axis] - bound) >= 0
    if inside.all():
        return points_N2
    after = np.roll(points_N2, -1, axis=0)
    crosses = inside != np.roll(inside, -1)
    span = np.where(crosses, after[:, axis] - points_N2[:, axis], 1)
    share = (bound - points_N2[:, axis]) / span
    crossing = points_N2 + share[:, None] * (after - points_N2)
    both = np.stack((points_N2, crossing), axis=1)
    corners: npt.NDArray[np.float64] = both[np.stack((inside, crosses), axis=1)]
    return corners


def _paint(
    label: npt.NDArray[np.uint8], counts: npt.NDArray[np.int64], value: int, budget: _Budget
) -> None:
    """Set the object's runs of a flat label map."""
    budget.paint(int(counts[1::2].sum()))
    ends = np.cumsum(counts)
    for start, end in zip(ends[0::2].tolist(), ends[1::2].tolist(), strict=False):
        label[start:end] = value
