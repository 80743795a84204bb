"""Loss terms that several methods share: normalised maps, their spread and their entropy."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F

from trainer.errors import one_of

EPS = 1e-5
Coords = Literal["cells", "normalised"]
CamMap = Literal["relu", "class_softmax"]
Normalise = Literal["per_image", "per_pixel_max", "image_level", "vector"]


def concentration(
    cam_BKhw: torch.Tensor,
    weights_BK: torch.Tensor,
    coords: Coords = "cells",
    cam_map: CamMap = "relu",
    eps: float = 1e-3,
) -> torch.Tensor:
    """Spatial variance of the maps of present classes, a scalar (Chang et al., "Mixup-CAM", BMVC
    2020, eq. 4).

    With p = (M + eps) / sum(M + eps) and mu its centre, v = sum p |(row, column) - mu|^2. Returns
    the weighted sum over classes, averaged over the batch. SCOPS, whose loss this is, divides by
    the batch twice.

    Args:
        cam_BKhw: maps, before or after the ReLU.
        weights_BK: weight of each class: its (mixed) label.
        coords: ``cells`` counts rows and columns, as printed; ``normalised`` maps them to 2 i /
            size - 1 (SCOPS).
        cam_map: ``relu`` takes ReLU(M), ``class_softmax`` its soft-max over classes (MVA).
        eps: keeps p of an empty map defined.

    Raises:
        ConfigError: another name of coordinates or maps.
    """
    one_of(coords, get_args(Coords), "the kind of coordinates")
    one_of(cam_map, get_args(CamMap), "the kind of map")
    maps = F.relu(cam_BKhw)
    if cam_map == "class_softmax":
        maps = maps.softmax(1)
    p = maps + eps
    p = p / p.sum((2, 3), keepdim=True)
    variance = maps.new_zeros(maps.shape[:2])
    for axis, other in ((2, 3), (3, 2)):
        place = torch.arange(maps.shape[axis], device=maps.device, dtype=maps.dtype)
        if coords == "normalised":
            place = 2 * place / maps.shape[axis] - 1
        along = p.sum(other)
        centre = (along * place).sum(2, keepdim=True)
        variance = variance + (along * (place - centre) ** 2).sum(2)
    return (variance * weights_BK).sum() / len(maps)


def prediction_entropy(
    logits_BKhw: torch.Tensor, normalise: Normalise = "per_image"
) -> torch.Tensor:
    """Mean entropy -sum_c P log P over images and pixels, a scalar.

    In Chang et al., "Mixup-CAM", BMVC 2020, eq. 3, P = softmax_c(q / max q) with q =
    sigmoid(logits); the paper does not say which maximum. The MVA report of 2021 has the entropy of
    the predicted vector instead: P = sigmoid(mean of the map), each class on its own.

    Args:
        logits_BKhw: class map before the ReLU.
        normalise: ``per_image`` divides by the image's maximum, ``per_pixel_max`` by each pixel's,
            ``image_level`` averages the map over space first; ``vector`` is MVA's.

    Raises:
        ConfigError: another name.
    """
    one_of(normalise, get_args(Normalise), "the reading of the entropy")
    if normalise == "vector":
        # ``logsigmoid`` and ``log_softmax`` stay finite where a probability has rounded to 0.
        logits_BK = logits_BKhw.mean((2, 3))
        return -(logits_BK.sigmoid() * F.logsigmoid(logits_BK)).sum(1).mean()
    if normalise == "image_level":
        logits_BKhw = logits_BKhw.mean((2, 3), keepdim=True)
    q = torch.sigmoid(logits_BKhw)
    highest = (
        q.amax(1, keepdim=True) if normalise == "per_pixel_max" else q.amax((1, 2, 3), keepdim=True)
    )
    log_p = (q / highest).log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean()


def bernoulli_entropy(logits_BK: torch.Tensor) -> torch.Tensor:
    """Mean of -s log s - (1-s) log(1-s), s = sigmoid(logits): what MVA's code was meant to
    compute.
    """
    # MVA's epsilon keeps the logarithm finite.
    s = torch.sigmoid(logits_BK)
    return -(s * (s + EPS).log() + (1 - s) * (1 - s + EPS).log()).mean()


def normalise_cam(x: torch.Tensor) -> torch.Tensor:
    """N(.) of SEAM's released loss: each map of ``[B,C,h,w]`` from its minimum to its maximum, in
    [0, 1).
    """
    x = F.relu(x)
    high, low = x.amax((2, 3), keepdim=True), x.amin((2, 3), keepdim=True)
    return F.relu(x - low - EPS) / (high - low + EPS)


def adaptive_min_pooling(x: torch.Tensor) -> torch.Tensor:
    """R(.) of SEAM's released loss: with m the maximum over the classes of ``[B,C,h,w]``, the mean
    of the smallest quarter of m's pixels.
    """
    highest = x.amax(1).flatten(1)
    lowest = highest.topk(highest.shape[1] // 4, dim=1, largest=False).values
    return F.relu(lowest).mean()
