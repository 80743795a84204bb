"""Choose the images whose correction helps most: bad ones that stand for many others.

Each image counts as served by the chosen image that looks most like it. The choice maximises the
served shortfall one image at a time, which comes within 1 - 1/e of the best choice
(Nemhauser, Wolsey and Fisher, 1978). So a second image of the same problem adds little, and an
outlier that looks like nothing else adds little too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.floating]
MOST = 5000
"""Of so many images each is compared with each; of more, those with the largest shortfall."""
ALIKE = 0.5
"""From this cosine on, a chosen image stands for another one."""


@dataclass(frozen=True)
class Choice:
    """A chosen image: its position, and how many images it stands for, itself included."""

    position: int
    stands_for: int


def choose(
    shortfalls_N: Values, features_NC: Values, groups: Sequence[int], count: int
) -> list[Choice]:
    """The images to ask about, the most helpful first; never two of one group.

    Args:
        shortfalls_N: what a correction of each image may gain, at least 0.
        features_NC: what images look like; only their direction counts.
        groups: of the images.
        count: how many to choose; fewer where there are fewer groups.
    """
    order = np.argsort(-shortfalls_N, kind="stable")[:MOST]
    likeness = _likeness(features_NC[order])
    weights, group = shortfalls_N[order].astype(np.float64), np.asarray(groups)[order]
    cover, is_free = np.zeros(len(order)), np.ones(len(order), bool)
    places: list[int] = []
    while len(places) < count and is_free.any():
        gains = (np.maximum(likeness - cover, 0) @ weights) * is_free
        # Where nothing is left to gain, the free image with the largest shortfall.
        best = int(gains.argmax()) if gains.max() > 0 else int(is_free.argmax())
        places.append(best)
        cover = np.maximum(cover, likeness[best])
        is_free &= group != group[best]
    nearest = likeness[places]
    owners = np.where(nearest.max(0) >= ALIKE, nearest.argmax(0), -1)
    return [
        Choice(int(order[place]), int((owners == number).sum()))
        for number, place in enumerate(places)
    ]


def directions(features_NC: Values) -> npt.NDArray[np.float64]:
    """Features from the mean image, each of length 1; 0 for an image that equals it."""
    # Features after a ReLU all point the same way: their mean says nothing.
    offsets = features_NC.astype(np.float64) - features_NC.mean(0)
    length = np.linalg.norm(offsets, axis=1, keepdims=True)
    unit: npt.NDArray[np.float64] = offsets / np.maximum(length, 1e-12)
    return unit


def _likeness(features_NC: Values) -> npt.NDArray[np.float64]:
    """Cosine of every pair, 0 where it is negative."""
    unit = directions(features_NC)
    likeness: npt.NDArray[np.float64] = np.maximum(unit @ unit.T, 0)
    np.fill_diagonal(likeness, 1)
    return likeness
