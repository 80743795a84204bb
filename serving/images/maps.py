"""Class activation maps at the image's size: masks made from them, and pictures of them.

Both are made in bands of rows, so that memory never holds a map of the image's size. k maps of h by
w cells, for an image of H by W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# Rows per band.
BAND = 64
# Anchors of the colour map inferno (Smith and van der Walt, public domain), whose lightness rises
# evenly.
HEAT = np.array(
    [
        (0, 0, 4),
        (22, 11, 57),
        (66, 10, 104),
        (106, 23, 110),
        (147, 38, 103),
        (188, 55, 84),
        (221, 81, 58),
        (243, 120, 25),
        (252, 165, 10),
        (246, 215, 70),
        (252, 255, 164),
    ],
    np.float32,
)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def bands(maps_khw: Floats, height: int, width: int) -> Iterator[tuple[slice, Floats]]:
    """Bilinear upsampling to float32 [k,H,W], like torch with ``align_corners=False``, by bands of
    rows.
    """
    left, right, share = _taps(maps_khw.shape[2], width)
    top, bottom, below = _taps(maps_khw.shape[1], height)
    for first in range(0, height, BAND):
        rows = slice(first, min(first + BAND, height))
        # Widen only the cells behind these rows: there are fewer cells than rows.
        cells = slice(top[rows][0], bottom[rows][-1] + 1)
        wide: Floats = maps_khw[:, cells, left] * (1 - share) + maps_khw[:, cells, right] * share
        part = below[rows, None]
        full: Floats = (
            wide[:, top[rows] - cells.start] * (1 - part)
            + wide[:, bottom[rows] - cells.start] * part
        )
        yield rows, full


def _taps(source: int, target: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
    """For every target position, its two source positions and the weight of the second."""
    # Half-pixel centres, clamped at the borders as torch does it.
    centre = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0)
    first = np.minimum(centre.astype(np.int64), source - 1)
    return first, np.minimum(first + 1, source - 1), (centre - first).astype(np.float32)


def to_mask(
    maps_khw: Floats, labels: Sequence[int], threshold: float, height: int, width: int
) -> tuple[Pixels, Pixels]:
    """The mask of maps and its confidence, both uint8 [H,W].

    A pixel is background where no map exceeds ``threshold``, otherwise the strongest map wins. The
    confidence is the winner's share in the sum of threshold and maps, as in the trainer's
    refinement without a CRF.

    Args:
        maps_khw: 0..1.
        labels: of the k maps.
        threshold: 0..1.
    """
    mask, confidence = np.zeros((height, width), np.uint8), np.full((height, width), 255, np.uint8)
    if not len(labels):
        return mask, confidence
    table = np.asarray(labels, np.uint8)
    ground = np.float32(threshold)
    for rows, full in bands(maps_khw, height, width):
        best = full.max(axis=0)
        mask[rows] = np.where(best > ground, table[full.argmax(axis=0)], 0)
        share = np.maximum(best, ground) / np.maximum(ground + full.sum(axis=0), np.float32(1e-5))
        confidence[rows] = np.rint(255 * np.clip(share, 0, 1))
    return mask, confidence


def overlay(pixels: Pixels, map_hw: Floats) -> Pixels:
    """A map over its image in grey, uint8 [H,W,3]: stronger activations are brighter and more
    opaque.
    """
    height, width = pixels.shape[:2]
    picture = np.empty_like(pixels)
    for rows, full in bands(map_hw[None], height, width):
        cam = np.clip(full[0], 0, 1)
        grey = (pixels[rows] @ (LUMA * np.float32(0.75)))[..., None]
        alpha = (np.float32(0.85) * (np.float32(0.25) + np.float32(0.75) * np.sqrt(cam)))[..., None]
        picture[rows] = np.rint(grey + alpha * (_heat(cam) - grey))
    return picture


def _heat(values: Floats) -> Floats:
    position = values * np.float32(len(HEAT) - 1)
    low = np.minimum(position.astype(np.intp), len(HEAT) - 2)
    share = (position - low)[..., None]
    colours: Floats = HEAT[low] * (1 - share) + HEAT[low + 1] * share
    return colours
