"""Class activation maps of a classifier that must also name the class of each of its own maps.

Chen et al., "Class Re-Activation Maps for Weakly-Supervised Semantic Segmentation", CVPR 2022
("ReCAM").

The first training is ``cam``. The second goes on from its weights with a second head W_re. With f
the backbone's features and A = ReLU(W f) over its maximum, each map pools the features of its
class:

    f_k = mean(A_k f),   L = soft margin(W pool(f), Y) + weight * mean_k in Y CE(W_re f_k, k)

The cross-entropy is averaged over the classes of an image first, and then over the images. Maps:
M = ReLU((W_re * W) f), the product taken weight by weight.

Deviations: the first convolution trains too. Small networks have another rate in the second
training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F

from trainer.config import Range
from trainer.data.loader import Batch
from trainer.methods.base import at_least_float32, full_precision
from trainer.methods.declaration import Declaration
from trainer.methods.linear import LinearCam
from trainer.methods.second_training import (
    SecondConfig,
    continued_groups,
    first_training,
    second_training,
)
from trainer.methods.tag_loss import present, tag_loss
from trainer.nets.backbone import Backbone

# Without a cut gradient in either training, unlike IRN's own classifier.
TRAINING: dict[str, dict[str, Any]] = {"irn": {"detach_after": "none"}}
PRESETS: dict[str, dict[str, Any]] = {"code": {}}
SMALL: dict[str, Any] = {"second_lr": 0.1}
"""Changes for small networks and short trainings, which no paper has."""
EPS = 1e-5
"""As published, against maps of zeros."""


@dataclass(frozen=True)
class Config(SecondConfig):
    """Knobs of ``recam``, besides those of ``SecondConfig``.

    Attributes:
        weight: weight of the cross-entropy of the maps.
    """

    weight: Annotated[float, Range(0, 1000)] = 1.0
    second_lr: Annotated[float, Range(0, 100, above=True)] = 5e-4
    second_length: Annotated[float, Range(0, 100, above=True)] = 0.8


class Recam(LinearCam):
    """``Cam`` with a head that names the class of each map, or ``Cam`` itself in the first
    training.
    """

    config: Config

    def __init__(self, config: Config, backbone: Backbone, num_classes: int) -> None:
        super().__init__(config, backbone, num_classes)
        self.reclassifier = (
            self.new_head(self.classifier.in_channels, num_classes) if config.second else None
        )

    def cams_and_logits(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Method``."""
        if self.reclassifier is None:
            return super().cams_and_logits(images)
        f = self.features(images)
        maps = F.conv2d(f, self.reclassifier.weight * self.classifier.weight)
        return F.relu(maps), self.logits_of_maps(f, self.classifier(f))

    def continue_from(self, state: Mapping[str, torch.Tensor]) -> None:
        """All weights but those of the second head, which starts anew."""
        self.load_state_dict(state, strict=False)

    def loss(self, batch: Batch, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Soft margin loss of the image: ``cls``, and cross-entropy of its maps: ``map``."""
        if self.reclassifier is None:
            return super().loss(batch, rng)
        tags, f = batch["tags"], self.features(batch["image"])
        terms = {"cls": tag_loss(at_least_float32(self.logits(f)), tags)}
        with full_precision(f.device.type):
            f = at_least_float32(f)
            own = reactivation_loss(F.relu(self.classifier(f)), f, self.reclassifier, tags)
        return {**terms, "map": self.config.weight * own}

    def param_groups(
        self, lr: float, weight_decay: float, new_factor: float = 10.0
    ) -> list[dict[str, Any]]:
        """See ``Method``. In the second training, only the second head is new."""
        if self.reclassifier is None:
            return super().param_groups(lr, weight_decay, new_factor)
        return continued_groups(self, self.reclassifier, lr, weight_decay, new_factor)


def reactivation_loss(
    maps_BKhw: torch.Tensor,
    f_BChw: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    tags_BK: torch.Tensor,
) -> torch.Tensor:
    """Cross-entropy of naming the class of each map of a present class, from the features below it.

    The mean over the classes of an image, then over the images; an image without a class counts
    as 0.

    Args:
        maps_BKhw: class maps, not negative.
        f_BChw: features.
        head: ``[n,C,1,1]`` -> ``[n,K,1,1]``.
        tags_BK: 0/1, NaN where unknown, which counts as absent.
    """
    count, classes = tags_BK.shape
    maps = maps_BKhw / (maps_BKhw.amax((2, 3), keepdim=True) + EPS)
    pooled = torch.einsum("bkp,bcp->bkc", maps.flatten(2), f_BChw.flatten(2)) / maps[0, 0].numel()
    logits = head(pooled.flatten(0, 1)[:, :, None, None]).flatten(1)
    names = torch.arange(classes, device=logits.device).repeat(count)
    losses = F.cross_entropy(logits, names, reduction="none").view(count, classes)
    own = present(tags_BK)
    return (losses * own / own.sum(1, keepdim=True).clamp(min=1)).sum() / count


METHOD = Declaration(
    Recam,
    Config,
    presets=PRESETS,
    training=TRAINING,
    small=SMALL,
    preparations=first_training,
    prepared=second_training,
)
