"""Polygons filled as OpenCV fills them."""

from __future__ import annotations

import numpy as np


def fill_as_opencv(line: list[tuple[int, int]], height: int, width: int) -> np.ndarray:
    """``cv2.fillPoly`` of a line of upright and level edges: what is on it and, by the even-odd
    rule, inside of it.
    """
    drawn, flips = np.zeros((height, width), bool), np.zeros((height, width + 1), bool)
    for (x, y), (to_x, to_y) in zip(line, [*line[1:], line[0]]):
        assert x == to_x or y == to_y
        low, high = sorted((y, to_y))
        left, right = sorted((x, to_x))
        drawn[low : high + 1, left : right + 1] = True
        flips[low:high, x] ^= True
    return drawn | np.logical_xor.accumulate(flips, axis=1)[:, :width]
