"""Manifold Mixup-CAM: Mixup-CAM that mixes at a random depth of the network.

The report of "liuvince/mva-wsss" for the MVA master, 2021 ("MVA"), after Verma et al., "Manifold
Mixup", ICML 2019.

Training: each batch draws a depth. There f <- lam f + (1-lam) f[perm], labels likewise, lam ~
Beta(0.2, 0.2); the rest is Mixup-CAM. Maps: those of ``cam``.

Depths: the image and the raw outputs of b2_2, b3_2, b4_5, b5_2, b6 of ResNet-38; the image and
stages 1 to 3 of the other backbones.

Deviation: none from the code. The report describes two batches; its code permutes one, as we do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from trainer.data.loader import Batch
from trainer.errors import ConfigError
from trainer.methods.declaration import Declaration
from trainer.methods.mixing import (
    MVA_KNOBS,
    MVA_REPORT,
    SC_CAM_TRAINING,
    MixedCam,
    MixingConfig,
    Mixture,
    draw,
)
from trainer.nets.backbone import Backbone

TRAINING: dict[str, dict[str, Any]] = {"psa": SC_CAM_TRAINING}
PRESETS: dict[str, dict[str, Any]] = {
    "code": MVA_KNOBS,
    "paper": MVA_REPORT,
    "mva": MVA_KNOBS,
}


@dataclass(frozen=True)
class Config(MixingConfig):
    """Knobs of ``manifold_mixup_cam``, besides those of ``MixingConfig``.

    Attributes:
        eligible: depths to draw from: ``all``, or the three of the ``original`` manifold mixup: the
            image and the two shallowest others. MVA's report does not say which.
    """

    eligible: Literal["all", "original"] = "all"


class ManifoldMixupCam(MixedCam):
    """``cam`` with mixing at a random depth."""

    config: Config

    def __init__(self, config: Config, backbone: Backbone, num_classes: int) -> None:
        super().__init__(config, backbone, num_classes)
        names = depths(backbone)
        self.depths = names[:3] if config.eligible == "original" else names

    def loss(self, batch: Batch, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """``cls``, ``ent``, ``con`` of the batch mixed at a random depth."""
        depth = self.depths[int(rng.integers(len(self.depths)))]
        images = batch["image"]
        mixture = draw(images, self.config.alpha, self.config.per_sample, rng)
        features = self.features_mixed_at(depth, images, mixture)
        return self.mixed_loss(features, mixture.tags(batch["tags"]))

    def features_mixed_at(self, depth: str, images: torch.Tensor, mixture: Mixture) -> torch.Tensor:
        """Deepest features ``[B,C,h,w]`` of a pass that mixes the batch at ``depth``."""
        if depth == "image":
            return self.features(mixture.maps(images))
        # A hook, so that no network needs to know about mixing.
        handle = self.backbone.hook(depth, mixture.maps)
        try:
            return self.features(images)
        finally:
            handle.remove()


def depths(backbone: Backbone) -> list[str]:
    """Where a batch can be mixed, shallow to deep.

    Raises:
        ConfigError: a backbone with one feature only.
    """
    if backbone.depths:
        return ["image", *backbone.depths]
    raise ConfigError(
        f"{type(backbone).__name__} has no depths to mix at", "resnet38, or a backbone of stages"
    )


METHOD = Declaration(ManifoldMixupCam, Config, presets=PRESETS, training=TRAINING)
