"""Anti-aliased shapes with shading, for the synthetic scenes. Coordinates are in pixels, x to the
right, y down.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Floats = npt.NDArray[np.float32]
Colour = tuple[float, float, float]
Point = tuple[float, float]
SUPERSAMPLE = 3
BLACK, WHITE = (0.06, 0.06, 0.07), (0.93, 0.92, 0.89)
_CIRCLE = np.stack(
    [np.cos(np.linspace(0, 2 * np.pi, 28)), np.sin(np.linspace(0, 2 * np.pi, 28))], axis=1
)


@dataclass
class Layer:
    """A shaded cut-out: ``rgb`` float32 [h,w,3] multiplied by ``alpha`` float32 [h,w], its corner
    at ``left, top``.
    """

    rgb: Floats
    alpha: Floats
    left: int
    top: int


class Pen:
    """Draws in an object's own coordinates onto one layer.

    Args:
        box: left, top, right, bottom of the layer in image pixels.
        matrix: 2x2 map from object units to pixels.
        origin: where the object's (0, 0) lies in the image.
    """

    def __init__(
        self, box: tuple[int, int, int, int], matrix: npt.NDArray[np.float64], origin: Point
    ) -> None:
        self.box, self.matrix, self.origin = box, matrix, np.asarray(origin, np.float64)
        side = ((box[2] - box[0]) * SUPERSAMPLE, (box[3] - box[1]) * SUPERSAMPLE)
        self._colour = Image.new("RGB", side)
        self._mask = Image.new("L", side)
        self._brushes = ImageDraw.Draw(self._colour), ImageDraw.Draw(self._mask)

    def at(
        self, x: float, y: float, scale: float = 1.0, turn: float = 0.0, flip: bool = False
    ) -> Pen:
        """The same layer in coordinates moved to (x, y), scaled, turned by ``turn`` radians,
        perhaps mirrored.
        """
        child = copy.copy(self)
        child.origin = self.origin + self.matrix @ np.array([x, y])
        turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        child.matrix = self.matrix @ turned @ np.diag([-scale if flip else scale, scale])
        return child

    def polygon(self, points: Sequence[Point] | npt.NDArray[np.float64], colour: Colour) -> None:
        """Fill a polygon."""
        corner = np.array(self.box[:2], np.float64)
        placed = (
            np.asarray(points, np.float64) @ self.matrix.T + self.origin - corner
        ) * SUPERSAMPLE
        flat = placed.ravel().tolist()
        self._brushes[0].polygon(flat, fill=to_bytes(colour))
        self._brushes[1].polygon(flat, fill=255)

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, colour: Colour, turn: float = 0.0
    ) -> None:
        """Fill an ellipse turned by ``turn`` radians."""
        c, s = np.cos(turn), np.sin(turn)
        self.polygon(_CIRCLE * (rx, ry) @ np.array([[c, s], [-s, c]]) + (x, y), colour)

    def limb(
        self, start: Point, end: Point, width: float, end_width: float, colour: Colour
    ) -> None:
        """Fill a tapered bar with round ends."""
        a, b = np.asarray(start, np.float64), np.asarray(end, np.float64)
        along = (b - a) / (float(np.hypot(*(b - a))) or 1.0)
        side = np.array([-along[1], along[0]])
        corners = [a + side * width, b + side * end_width, b - side * end_width, a - side * width]
        self.polygon(np.stack(corners), colour)
        self.ellipse(*start, width, width, colour)
        self.ellipse(*end, end_width, end_width, colour)

    def layer(self) -> Layer:
        """What was drawn, reduced to image resolution."""
        rgb = np.asarray(self._colour.reduce(SUPERSAMPLE), np.float32) / np.float32(255)
        alpha = np.asarray(self._mask.reduce(SUPERSAMPLE), np.float32) / np.float32(255)
        return Layer(rgb, alpha, self.box[0], self.box[1])


def shade(layer: Layer, light: Point, depth: float, texture: Floats | None = None) -> Layer:
    """Make a flat layer look round: lit from ``light``, darker towards its rim, times ``texture``
    [h,w] or [h,w,3].

    Args:
        depth: blur radius in pixels that stands for the thickness of the object.
    """
    height = blur(layer.alpha, depth)
    down, right = np.gradient(height)
    lit = (right * np.float32(light[0]) + down * np.float32(light[1])) * np.float32(depth)
    factor = np.clip(0.62 + 0.42 * height - 0.75 * lit, 0.3, 1.45)[..., None]
    if texture is not None:
        factor = factor * (texture if texture.ndim == 3 else texture[..., None])
    return Layer(layer.rgb * factor.astype(np.float32), layer.alpha, layer.left, layer.top)


def blur(field: Floats, radius: float) -> Floats:
    """Gaussian blur of a 0..1 field, to 1/255."""
    image = Image.fromarray((np.clip(field, 0, 1) * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) / np.float32(255)


def paste(canvas: Floats, layer: Layer) -> tuple[slice, slice]:
    """Lay ``layer`` over ``canvas`` [H,W,3] in place; returns the rows and columns that it
    covers.
    """
    h, w = layer.alpha.shape
    rows, columns = slice(layer.top, layer.top + h), slice(layer.left, layer.left + w)
    canvas[rows, columns] = canvas[rows, columns] * (1 - layer.alpha[..., None]) + layer.rgb
    return rows, columns


def clip_box(
    x0: float, y0: float, x1: float, y1: float, width: int, height: int
) -> tuple[int, int, int, int]:
    """The part of a box inside the image, at least one pixel."""
    left, top = min(max(int(x0), 0), width - 1), min(max(int(y0), 0), height - 1)
    return left, top, max(min(int(x1) + 1, width), left + 1), max(min(int(y1) + 1, height), top + 1)


def noise(
    shape: tuple[int, int], cell: float, rng: np.random.Generator, stretch: float = 1.0
) -> Floats:
    """Smooth noise [H,W], mean 0, about -1..1, with features of ``cell`` pixels, ``stretch`` times
    longer in x.
    """
    total = np.zeros(shape, np.float32)
    gain, reach = 1.0, max(cell, 1.0)
    for _ in range(4):
        grid = max(2, round(shape[0] / reach)), max(2, round(shape[1] / reach / stretch))
        coarse = Image.fromarray(rng.standard_normal(grid, np.float32))
        total += np.float32(gain) * np.asarray(
            coarse.resize(shape[::-1], Image.Resampling.BICUBIC), np.float32
        )
        gain, reach = gain * 0.55, reach / 2
        if reach < 1:
            break
    return np.asarray(total / np.float32(2.2), np.float32)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Colour between ``a`` and ``b``."""
    return tuple(p + (q - p) * share for p, q in zip(a, b, strict=True))  # type: ignore[return-value]


def vary(colour: Colour, amount: float, rng: np.random.Generator) -> Colour:
    """``colour`` with another brightness and a slight shift of hue."""
    gain = 1 + rng.uniform(-amount, amount)
    return tuple(
        float(np.clip(v * gain + rng.normal(0, amount * 0.12), 0.02, 0.98)) for v in colour
    )  # type: ignore[return-value]


def to_bytes(colour: Colour) -> tuple[int, int, int]:
    """Colour of 0..1 as 0..255."""
    r, g, b = (round(float(np.clip(v, 0, 1)) * 255) for v in colour)
    return r, g, b
