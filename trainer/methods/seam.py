"""Class activation maps that agree between two sizes of an image, refined by the likeness of their pixels.

Wang et al., "Self-supervised Equivariant Attention Mechanism for Weakly Supervised Semantic Segmentation" ("SEAM"),
CVPR 2020; with ``prcm`` SEAM* of Zhang et al., "Complementary Patch for Weakly Supervised Semantic Segmentation"
("CPN"), ICCV 2021. Spec methods 14 and 15.

Maps: refined = e A (PCM) [+ P e (PRCM)] of the class map's seed e. Training: view 1 is the image, view 2 the image at
0.3 of its size; L = L_cls + R + L_ER + L_ECR (SEAM, eq. 7 to 10).

Deviations: D-SEAM-1, the term R (adaptive min pooling) is in the released code only; D-PRCM-1 and 2, see
``correlation``; features of other backbones than ResNet-38 are ours. SEAM* has no released training code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from trainer.errors import ConfigError
from trainer.methods.base import Method, at_least_float32, full_precision
from trainer.methods.correlation import (
    normalised_seed,
    pixel_correlation,
    pixel_region_correlation,
    strongest_foreground,
    with_background,
)
from trainer.methods.pooling import gap
from trainer.methods.regularizers import adaptive_min_pooling, normalise_cam
from trainer.nets.backbone import Backbone

PROTOCOL = "seam"
TRAINING: dict[str, dict[str, Any]] = {"psa": {"lr": 0.01, "batch": 8, "epochs": 8, "resize": (448, 768)}}
PRESETS: dict[str, dict[str, Any]] = {"code": {}, "paper": {"method.min_pooling": False}}
TAPS = (("conv4", "conv5"), ("stage2", "stage3"))


@dataclass(frozen=True)
class NetworkConfig:
    """Knobs that SEAM and CPN share.

    Attributes:
        prcm: ``off`` is SEAM, ``on`` or ``code`` SEAM* as CPN's code has it; ``transposed`` and ``class_softmax`` are
            readings of the paper.
        min_pooling: adaptive min pooling of the refined maps, in the released code but not in the papers.
        dropout: channel dropout before the head; ``auto`` is 0.5 on ResNet-38, as released, and 0 elsewhere.
        ohem: share of the hardest pixels that the cross regularisation counts.
    """

    prcm: Literal["off", "on", "code", "transposed", "class_softmax"] = "off"
    min_pooling: bool = True
    dropout: float | Literal["auto"] = "auto"
    ohem: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.ohem <= 1:
            raise ConfigError(f"ohem {self.ohem:g}", "above 0, at most 1")


@dataclass(frozen=True)
class Config(NetworkConfig):
    """Knobs of ``seam``, besides those of ``NetworkConfig``.

    Attributes:
        second_scale: size of the second view, as a share of the first.
    """

    second_scale: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.second_scale <= 1:
            raise ConfigError(f"second_scale {self.second_scale:g}", "above 0, at most 1")


class Seam(Method):
    """Classifier whose maps go through pixel correlation; heads are named as in the released checkpoints."""

    config: NetworkConfig

    def __init__(self, config: NetworkConfig, backbone: Backbone, num_classes: int) -> None:
        super().__init__(backbone, num_classes)
        self.config = config
        self.taps = taps_of(backbone)
        low, high = (backbone.channels[tap] for tap in self.taps)
        top = backbone.channels[backbone.top]
        rate = (0.5 if backbone.top == "conv6" else 0.0) if config.dropout == "auto" else config.dropout
        self.dropout = nn.Dropout2d(rate)
        self.fc8 = nn.Conv2d(top, num_classes + 1, 1, bias=False)
        self.f8_3 = nn.Conv2d(low, 64, 1, bias=False)
        self.f8_4 = nn.Conv2d(high, 128, 1, bias=False)
        self.f9 = nn.Conv2d(3 + 64 + 128, 192, 1, bias=False)
        self.f10 = None if config.prcm == "off" else nn.Conv2d(3 + 64 + 128, 192, 1, bias=False)
        nn.init.xavier_uniform_(self.fc8.weight)
        nn.init.kaiming_normal_(self.f8_3.weight)
        nn.init.kaiming_normal_(self.f8_4.weight)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)
        if self.f10 is not None:
            nn.init.xavier_uniform_(self.f10.weight, gain=4)

    def maps(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Class map before the ReLU, and refined map >= 0, both ``[B,K+1,h,w]`` with the background first."""
        features = self.backbone(images)
        with full_precision(images.device.type):
            # Low precision ties pixels and classes that the seed and the loss compare for equality.
            top, low, high = (at_least_float32(features[name]) for name in (self.backbone.top, *self.taps))
            cam: torch.Tensor = self.fc8(self.dropout(top))
            return cam, self.refine(cam, at_least_float32(images), low.detach(), high.detach())

    def refine(
        self, cam: torch.Tensor, images: torch.Tensor, low_BChw: torch.Tensor, high_BChw: torch.Tensor
    ) -> torch.Tensor:
        """Refined map of a class map and the tapped features; its gradient reaches ``f8_3``, ``f8_4``, ``f9``, ``f10``."""
        strides = self.backbone.strides
        size = (cam.shape[2], cam.shape[3])
        inputs = [resized(images, size)]
        for tap, layer, feature in zip(self.taps, (self.f8_3, self.f8_4), (low_BChw, high_BChw)):
            same = strides[tap] == strides[self.backbone.top]
            inputs.append(F.relu(layer(feature if same else resized(feature, size))))
        joined = torch.cat(inputs, 1)
        seed = normalised_seed(cam)
        refined = pixel_correlation(seed, self.f9(joined))
        if self.f10 is None or self.config.prcm == "off":
            return refined
        mode = "code" if self.config.prcm == "on" else self.config.prcm
        return refined + pixel_region_correlation(seed, joined, self.f9, self.f10, mode) * seed

    def cams_and_logits(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Method``: the refined maps without the background, and the average of the class map."""
        cam, refined = self.maps(images)
        return refined[:, 1:], gap(cam[:, 1:])

    def loss(self, images: torch.Tensor, tags: torch.Tensor, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Terms ``cls``, ``min`` (if on), ``er`` and ``ecr`` of ``seam_loss``."""
        assert isinstance(self.config, Config)
        scale = self.config.second_scale
        height, width = (max(1, int(side * scale)) for side in images.shape[2:])
        channels, label = present_channels(tags)
        logits, found = [], []
        for view in (images, resized(images, (height, width))):
            size = (view.shape[2], view.shape[3])
            cam, refined = self.maps(view)
            logits.append(gap_of_resized(cam[:, 1:], size))
            # Only maps of present classes are ever compared, so only they are made large.
            found += [resized(select(x, channels), size) for x in (cam, refined)]
        terms = consistency(found, label, self.num_classes, self.config.min_pooling, self.config.ohem)
        return {"cls": classification(logits, tags), **terms}


def seam_loss(
    cam1: torch.Tensor, rv1: torch.Tensor, cam2: torch.Tensor, rv2: torch.Tensor, tags: torch.Tensor,
    min_pooling: bool = True, ohem: float = 0.2,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Terms of SEAM's loss (spec methods 14.2): their sum is L.

    Args:
        cam1: class map of view 1 before the ReLU, ``[B,K+1,H,W]``, background first.
        rv1: refined map of view 1, alike.
        cam2: class map of view 2, ``[B,K+1,H2,W2]``.
        rv2: refined map of view 2, alike.
        tags: 0/1 ``[B,K]``.
        min_pooling: with the term ``min``.
        ohem: share of ``[K+1,H2,W2]`` that ``ecr`` counts, the hardest entries of each image.
    """
    channels, label = present_channels(tags)
    found = [select(x, channels) for x in (cam1, rv1, cam2, rv2)]
    logits = [gap(x[:, 1:]) for x in (cam1, cam2)]
    return {
        "cls": classification(logits, tags),
        **consistency(found, label, tags.shape[1], min_pooling, ohem),
    }


def classification(logits: Sequence[torch.Tensor], tags: torch.Tensor) -> torch.Tensor:
    """Mean soft margin loss of the views."""
    return mean([F.multilabel_soft_margin_loss(x, tags) for x in logits])


def consistency(
    maps: Sequence[torch.Tensor], label: torch.Tensor, num_classes: int, min_pooling: bool, ohem: float
) -> dict[str, torch.Tensor]:
    """Terms ``min``, ``er`` and ``ecr`` of ``seam_loss`` from its four maps ``[B,P+1,...]`` of present classes.

    Exact: those of absent classes are multiplied by 0 wherever they occur, but they count in the means.
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
    terms["er"] = (c1[:, 1:] - c2[:, 1:]).abs().sum() / (num_classes * pixels)
    first, second = (strongest_foreground(with_background(c.detach())) for c in (c1, c2))
    terms["ecr"] = hardest(second - q1, ohem, num_classes + 1) + hardest(first - q2, ohem, num_classes + 1)
    return terms


def present_channels(tags_BK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Channels of background and present classes, ``int64 [B,P+1]``, and 1 or, where an image has fewer, 0 for each."""
    most = max(1, int(tags_BK.sum(1).max()))
    label, classes = tags_BK.topk(most, dim=1)
    return F.pad(classes + 1, (1, 0), value=0), F.pad(label, (1, 0), value=1.0)


def select(x_BChw: torch.Tensor, channels_BP: torch.Tensor) -> torch.Tensor:
    """Each image's own channels, ``[B,P,h,w]``."""
    return x_BChw.gather(1, channels_BP[:, :, None, None].expand(-1, -1, *x_BChw.shape[2:]))


def hardest(difference_BChw: torch.Tensor, share: float, channels: int | None = None) -> torch.Tensor:
    """Mean over the batch of the largest ``share`` of each image's absolute entries, at least one.

    ``channels`` is how many there would be with those left out, which are 0 throughout.
    """
    _, given, height, width = difference_BChw.shape
    error = difference_BChw.abs().flatten(1)
    count = max(1, int(share * (channels or given) * height * width))
    if count < error.shape[1]:
        error = error.topk(count, dim=1).values
    return error.sum() / (count * len(error))


def mean(terms: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean of scalars."""
    return torch.stack(list(terms)).mean()


def resized(x_BChw: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear with aligned corners, as every resize of SEAM."""
    return F.interpolate(x_BChw, size, mode="bilinear", align_corners=True)


def gap_of_resized(x_BChw: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """``gap(resized(x, size))`` as a weighted mean of the small map: ``[B,C]``."""
    weights = []
    for old, new in zip(x_BChw.shape[2:], size):
        each = torch.eye(old, dtype=x_BChw.dtype, device=x_BChw.device)[None]
        weights.append(F.interpolate(each, new, mode="linear", align_corners=True).mean(2)[0])
    return torch.einsum("bchw,h,w->bc", x_BChw, *weights)


def taps_of(backbone: Backbone) -> tuple[str, str]:
    """Names of the two features that the pixel correlation sees.

    Raises:
        ConfigError: the backbone has none of the known pairs.
    """
    for taps in TAPS:
        if all(tap in backbone.channels for tap in taps):
            return taps
    known = " or ".join(f"{low} and {high}" for low, high in TAPS)
    raise ConfigError(f"seam finds no features to correlate in {type(backbone).__name__}", f"a backbone with {known}")
