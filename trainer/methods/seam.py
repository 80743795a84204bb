"""Class activation maps that agree between two sizes of an image, refined by the likeness of their
pixels.

Wang et al., "Self-supervised Equivariant Attention Mechanism for Weakly Supervised Semantic
Segmentation" ("SEAM"), CVPR 2020; with ``prcm`` SEAM* of Zhang et al., "Complementary Patch for
Weakly Supervised Semantic Segmentation" ("CPN"), ICCV 2021.

Maps: refined = e A (PCM) [+ P e (PRCM)] with e the normalised class map. Training: view 1 is the
image, view 2 the image at 0.3 of its size; L = L_cls + R + L_ER + L_ECR (SEAM, eqs. 7 to 10).

Deviations: the term R (adaptive min pooling) is in the released code only and a knob. PRCM follows
the released code, see ``correlation``. The features of other backbones than ResNet-38 and the size
of the second view of small maps are ours. SEAM* has no released training code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch

from trainer.config import Range
from trainer.data.loader import Batch
from trainer.methods.correlation import (
    Correlated,
    NetworkConfig,
    classification,
    hardest,
    mean,
    present_channels,
    resized,
    select,
    strongest_foreground,
    with_background,
)
from trainer.methods.declaration import Changes, Declaration, Lesson
from trainer.methods.pooling import gap
from trainer.methods.regularizers import adaptive_min_pooling, normalise_cam

PROTOCOL = "seam"
TRAINING: dict[str, dict[str, Any]] = {
    "psa": {"lr": 0.01, "batch": 8, "epochs": 8, "resize": (448, 768)}
}
RELEASED_SCALES: dict[str, Any] = {"method.prcm_spread": 0.0, "cams.min_cells": 0}
"""Changes of a preset that follows papers or their code on small maps too."""
RELEASED: dict[str, Any] = {"method.second_scale": 0.3, **RELEASED_SCALES}
PRESETS: dict[str, dict[str, Any]] = {
    "code": RELEASED,
    "paper": {**RELEASED, "method.min_pooling": False},
}
SPREAD = 1.0
"""Deviation of PRCM's scores where the released scale would leave a single cell of a class."""
PUBLISHED_SCALE, LARGER_SCALE = 0.3, 0.6
LEAST_CELLS = 12
"""Cells along a side of the second view's map below which the view is made larger. The published
one has 17. With 5, the refined maps learn to be as coarse.
"""


@dataclass(frozen=True)
class Config(NetworkConfig):
    """Knobs of ``seam``, besides those of ``NetworkConfig``.

    Attributes:
        second_scale: size of the second view, as a share of the first. ``auto`` is 0.3, as
            published, and 0.6 where a view of 0.3 would have a map of fewer than 12 cells along a
            side: refined maps learn to be as coarse as those of the second view.
    """

    second_scale: Annotated[float | Literal["auto"], Range(0, 1, above=True)] = "auto"


class Seam(Correlated):
    """The correlation network trained on two sizes of each image."""

    config: Config

    def loss(self, batch: Batch, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Terms ``cls``, ``min`` (if on), ``er`` and ``ecr`` of ``seam_loss``."""
        images, tags = batch["image"], batch["tags"]
        cells = images.shape[2] / self.backbone.strides[self.backbone.top]
        scale = second_scale(self.config, cells)
        # Whole pixels, cut off as released: 0.3 of 448 is 134.
        size = tuple(max(1, int(side * scale)) for side in images.shape[2:])
        channels, label = present_channels(tags)
        views = [
            self.compared(view, channels) for view in (images, resized(images, (size[0], size[1])))
        ]
        maps = [x for _, cam, rv in views for x in (cam, rv)]
        terms = consistency(
            maps, label, self.num_classes, self.config.min_pooling, self.config.ohem
        )
        return {"cls": classification([logits for logits, _, _ in views], tags), **terms}


def seam_loss(
    cam1: torch.Tensor,
    rv1: torch.Tensor,
    cam2: torch.Tensor,
    rv2: torch.Tensor,
    tags: torch.Tensor,
    min_pooling: bool = True,
    ohem: float = 4.2,
) -> dict[str, torch.Tensor]:
    """Terms of SEAM's loss (eqs. 7 to 10 and R); their sum is L.

    Args:
        cam1: class map of view 1 before the ReLU, ``[B,K+1,H,W]``, background first.
        rv1: refined map of view 1, alike.
        cam2: class map of view 2, ``[B,K+1,H2,W2]``.
        rv2: refined map of view 2, alike.
        tags: 0/1 ``[B,K]``, NaN where unknown.
        min_pooling: with the term ``min``.
        ohem: how many of the hardest entries of each image ``ecr`` counts, in maps of ``[H2,W2]``.
    """
    channels, label = present_channels(tags)
    maps = [select(x, channels) for x in (cam1, rv1, cam2, rv2)]
    logits = [gap(x[:, 1:]) for x in (cam1, cam2)]
    return {
        "cls": classification(logits, tags),
        **consistency(maps, label, tags.shape[1], min_pooling, ohem),
    }


def consistency(
    maps: Sequence[torch.Tensor],
    label: torch.Tensor,
    num_classes: int,
    min_pooling: bool,
    ohem: float,
) -> dict[str, torch.Tensor]:
    """Terms ``min``, ``er`` and ``ecr`` of ``seam_loss`` from its four maps ``[B,P+1,...]`` of
    present classes.

    This is exact: channels of absent classes are 0 in every term and only count in the means.
    """
    cam1, rv1, cam2, rv2 = maps
    size = (cam2.shape[2], cam2.shape[3])
    label = label.to(cam1.dtype)[:, :, None, None]
    c1, q1 = (resized(normalise_cam(x), size) * label for x in (cam1, rv1))
    c2, q2 = (normalise_cam(x) * label for x in (cam2, rv2))
    terms = {}
    if min_pooling:
        terms["min"] = mean([adaptive_min_pooling((x * label)[:, 1:]) for x in (rv1, rv2)])
    pixels = len(cam2) * size[0] * size[1]
    # As released, classes absent from an image count in the mean.
    terms["er"] = (c1[:, 1:] - c2[:, 1:]).abs().sum() / (num_classes * pixels)
    # Each view is a fixed target for the other: this term trains the refinement only.
    first, second = (strongest_foreground(with_background(c.detach())) for c in (c1, c2))
    terms["ecr"] = hardest(second - q1, ohem, 1) + hardest(first - q2, ohem, 1)
    return terms


def second_scale(config: Config, cells: float) -> float:
    """Size of the second view, as a share of the first, whose map has ``cells`` along a side."""
    if config.second_scale != "auto":
        return config.second_scale
    return PUBLISHED_SCALE if cells * PUBLISHED_SCALE >= LEAST_CELLS else LARGER_SCALE


def advice(config: Config, lesson: Lesson) -> Iterator[tuple[Changes, str]]:
    """Says what ``auto`` chooses for small maps, and see ``advice_on_regions``."""
    if config.second_scale == "auto" and second_scale(config, lesson.cells) != PUBLISHED_SCALE:
        yield (
            {"second_scale": "auto"},
            f"seam: the second view has {LARGER_SCALE} of the size of the first, because at the"
            f" published {PUBLISHED_SCALE} its map would have"
            f" {lesson.cells * PUBLISHED_SCALE:.0f} cells along a side",
        )
    yield from advice_on_regions(config, lesson)


def advice_on_regions(config: NetworkConfig, lesson: Lesson) -> Iterator[tuple[Changes, str]]:
    """PRCM of small networks: scores of a scale at which the soft-max is not saturated."""
    if config.prcm != "off":
        yield (
            {"prcm_spread": SPREAD},
            f"PRCM: scores have a deviation of {SPREAD:g} before their soft-max, because at the"
            " released scale it takes a single cell of each class",
        )


METHOD = Declaration(
    Seam, Config, presets=PRESETS, training=TRAINING, protocol=PROTOCOL, advice=advice
)
