"""Mixup-CAM: a classifier of mixed images whose predictions are kept sharp and whose maps are kept
compact.

Chang et al., "Mixup-CAM: Weakly-supervised Semantic Segmentation via Uncertainty Regularization",
BMVC 2020, eqs. 2 to 5.

Training: I' = lam I + (1-lam) I[perm], Y' likewise, lam ~ Beta(0.2, 0.2), one permutation and one
lam a batch; L = L_cls(f(I'), Y') + w_ent L_ent + w_con L_con. Maps: those of ``cam`` for the
unmixed image.

Deviations: none known; there is no released code. What the paper leaves open is a knob each: the
maximum in the entropy (``entropy``), its weight (0.02 in one section, 0.2 in another: ``w_ent``),
coordinates, maps and class weights of the concentration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trainer.data.loader import Batch
from trainer.methods.declaration import Declaration
from trainer.methods.mixing import MVA_KNOBS, SC_CAM_TRAINING, MixedCam, MixingConfig, draw

TRAINING: dict[str, dict[str, Any]] = {"psa": SC_CAM_TRAINING}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "method.adapt_conv": 512,
        "classify.optimizer": "adam",
        "classify.lr": 1e-3,
        "classify.new_factor": 1.0,
    },
    "mva": MVA_KNOBS,
}


@dataclass(frozen=True)
class Config(MixingConfig):
    """Knobs of ``mixup_cam``: those of ``MixingConfig``."""


class MixupCam(MixedCam):
    """``cam`` on mixed images."""

    def loss(self, batch: Batch, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """``cls``, ``ent``, ``con`` of the mixed batch."""
        images = batch["image"]
        mixture = draw(images, self.config.alpha, self.config.per_sample, rng)
        return self.mixed_loss(self.features(mixture.maps(images)), mixture.tags(batch["tags"]))


METHOD = Declaration(MixupCam, Config, presets=PRESETS, training=TRAINING)
