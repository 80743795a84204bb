"""Anti-aliased shapes with shading. Coordinates are in pixels, x to the right, y down."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.float64]
Colour = Numbers | tuple[float, float, float]
"""Red, green and blue in 0..1."""
Area = tuple[slice, slice]
"""Rows and columns of the image."""
# Drawn this many times as large and then averaged, which makes the edges smooth.
SUPERSAMPLE = 3
BLACK, WHITE = (0.06, 0.06, 0.07), (0.93, 0.92, 0.89)
_ANGLES = np.linspace(0, 2 * np.pi, 28)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


@dataclass
class Layer:
    """A cut-out at ``area``: ``rgb`` float32 [h,w,3], multiplied by ``alpha`` float32 [h,w]."""

    rgb: Floats
    alpha: Floats
    area: Area


class Pen:
    """Draws in an object's own coordinates onto one layer.

    Args:
        area: rows and columns that the layer covers.
        matrix: 2x2 map from object units to pixels.
        origin: x and y of the object's (0, 0) in the image.
    """

    def __init__(self, area: Area, matrix: Numbers, origin: tuple[float, float]) -> None:
        rows, columns = self.area = area
        corner = np.array([columns.start, rows.start], np.float64)
        self.matrix, self.origin = matrix * SUPERSAMPLE, (origin - corner) * SUPERSAMPLE
        size = (columns.stop - columns.start, rows.stop - rows.start)
        # One drawing fills colour and cover. In RGBX the fourth band is a band like the others;
        # reducing RGBA would divide the colours by it.
        self._image = Image.new("RGBX", (size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE))
        self._brush = ImageDraw.Draw(self._image)

    def at(self, x: float, y: float, scale: float, turn: float) -> Pen:
        """The same layer in coordinates moved to (x, y), scaled, turned by ``turn`` radians."""
        # A shallow copy, so that both draw on one image.
        child = copy.copy(self)
        child.origin = self.origin + self.matrix @ (x, y)
        child.matrix = self.matrix @ rotation(turn) * scale
        return child

    def polygon(self, colour: Colour, *coordinates: float) -> None:
        """Fill a polygon through x, y, x, y, ..."""
        self._fill(colour, np.reshape(coordinates, (-1, 2)))

    def ellipse(
        self, colour: Colour, x: float, y: float, rx: float, ry: float, turn: float = 0.0
    ) -> None:
        """Fill an ellipse turned by ``turn`` radians."""
        points = _CIRCLE * (rx, ry)
        self._fill(colour, (points @ rotation(turn).T if turn else points) + (x, y))

    def limb(
        self, colour: Colour, x0: float, y0: float, x1: float, y1: float, r0: float, r1: float
    ) -> None:
        """Fill a tapered bar with round ends."""
        length = math.hypot(x1 - x0, y1 - y0) or 1.0
        dx, dy = (y0 - y1) / length, (x1 - x0) / length
        start = x0 - dx * r0, y0 - dy * r0, x0 + dx * r0, y0 + dy * r0
        end = x1 + dx * r1, y1 + dy * r1, x1 - dx * r1, y1 - dy * r1
        self.polygon(colour, *start, *end)
        self.ellipse(colour, x0, y0, r0, r0)
        self.ellipse(colour, x1, y1, r1, r1)

    def layer(self) -> Layer:
        """The drawing, reduced to the resolution of the image."""
        pixels = np.asarray(self._image.reduce(SUPERSAMPLE), np.float32) / np.float32(255)
        return Layer(pixels[..., :3], pixels[..., 3], self.area)

    def _fill(self, colour: Colour, points: Numbers) -> None:
        red, green, blue = (round(float(value) * 255) for value in colour)
        corners = points @ self.matrix.T + self.origin
        self._brush.polygon(corners.ravel().tolist(), fill=(red, green, blue, 255))


def rotation(turn: float) -> Numbers:
    """The matrix [2,2] that turns by ``turn`` radians."""
    cosine, sine = math.cos(turn), math.sin(turn)
    return np.array([[cosine, -sine], [sine, cosine]])


def shade(layer: Layer, light: tuple[float, float], depth: float, texture: Floats) -> Layer:
    """Make a flat layer look round: lit from ``light``, darker at its rim, times ``texture`` [h,w].

    Args:
        depth: blur radius in pixels that stands for the thickness of the object.
    """
    height = blur(layer.alpha, depth)
    down, right = np.gradient(height)
    lit = (right * light[0] + down * light[1]) * depth
    factor = np.clip(0.62 + 0.42 * height - 0.75 * lit, 0.3, 1.45) * texture
    return Layer(layer.rgb * factor.astype(np.float32)[..., None], layer.alpha, layer.area)


def blur(field: Floats, radius: float) -> Floats:
    """Gaussian blur of a 0..1 field, to 1/255."""
    # Pillow blurs 8-bit images only.
    image = Image.fromarray((np.clip(field, 0, 1) * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) / np.float32(255)


def paste(canvas: Floats, layer: Layer) -> None:
    """Lay ``layer`` over ``canvas`` [H,W,3] in place."""
    canvas[layer.area] = canvas[layer.area] * (1 - layer.alpha[..., None]) + layer.rgb


def noise(
    shape: tuple[int, ...], cell: float, rng: np.random.Generator, stretch: float = 1.0
) -> Floats:
    """Smooth noise [H,W], mean 0, about -1..1.

    Args:
        cell: size of its features in pixels.
        stretch: how many times longer they are in x.
    """
    height, width = shape
    total = np.zeros(shape, np.float32)
    gain, reach = 1.0, max(cell, 1.0)
    for _ in range(4):
        grid = max(2, round(height / reach)), max(2, round(width / reach / stretch))
        coarse = Image.fromarray(rng.standard_normal(grid, np.float32))
        total += gain * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
        # Each octave is finer and fainter than the one before.
        gain, reach = gain * 0.55, reach / 2
        if reach < 1:
            break
    return total / np.float32(2.2)


def mix(a: Colour, b: Colour, share: float) -> Numbers:
    """Colour between ``a`` and ``b``."""
    return np.asarray(a) + np.subtract(b, a) * share


def vary(colour: Colour, amount: float, rng: np.random.Generator) -> Numbers:
    """``colour`` with another brightness and a slightly different hue."""
    gain = 1 + rng.uniform(-amount, amount)
    return np.clip(np.multiply(colour, gain) + rng.normal(0, amount * 0.12, 3), 0.02, 0.98)
