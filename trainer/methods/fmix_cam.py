"""FMix-CAM: Mixup-CAM with two images joined by a random mask of low frequency instead of blended.

The report of "liuvince/mva-wsss" for the MVA master, 2021 ("MVA"), with the masks of Harris et al.,
"FMix: Enhancing Mixed Sample Data Augmentation", 2020.

Training: I' = S I + (1-S) I[perm], Y' = lam Y + (1-lam) Y[perm], lam ~ Beta(1, 1), S in {0,1}^{HxW}
of share lam, one mask, permutation and lam a batch; the loss of Mixup-CAM. Maps: those of ``cam``.

Deviation: random numbers come from the run's generator instead of numpy's global one. The masks
have the same distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch

from trainer.config import Range
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
    Mode,
    binarise,
    draw,
    low_frequency_field,
)

TRAINING: dict[str, dict[str, Any]] = {"psa": SC_CAM_TRAINING}
PRESETS: dict[str, dict[str, Any]] = {
    "code": {**MVA_KNOBS, "psa.epochs": 25},
    "paper": {**MVA_REPORT, "psa.epochs": 25},
    "mva": {**MVA_KNOBS, "psa.epochs": 25},
}


@dataclass(frozen=True)
class Config(MixingConfig):
    """Knobs of ``fmix_cam``, besides those of ``MixingConfig``; ``per_sample`` must stay off.

    Attributes:
        mask: ``reference`` draws masks like FMix's code, which MVA uses; ``isotropic`` like FMix's
            paper.
        decay: power by which the mask's spectrum falls.
        softness: share of pixels on either side of the mask's border that are blended; 0 as
            published.
        lam_from_mask: mix labels by the mask's share of ones instead of by the drawn lam.
    """

    # FMix's alpha, which makes lam uniform, not mixup's 0.2.
    alpha: Annotated[float, Range(0, 100, above=True)] = 1.0
    mask: Mode = "reference"
    decay: Annotated[float, Range(0, 100)] = 3.0
    softness: Annotated[float, Range(0, 0.5, below=True)] = 0.0
    lam_from_mask: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_sample:
            raise ConfigError("per_sample=on with fmix_cam", "per_sample=off: one mask a batch")


class FmixCam(MixedCam):
    """``cam`` on images that masks join."""

    config: Config

    def loss(self, batch: Batch, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """``cls``, ``ent``, ``con`` of the mixed batch."""
        images = batch["image"]
        mixture = draw(images, self.config.alpha, False, rng)
        # One lam a batch, since ``per_sample`` is refused.
        lam = float(mixture.lam[0])
        height, width = images.shape[2:]
        field = low_frequency_field((height, width), self.config.decay, self.config.mask, rng)
        mask = binarise(field, lam, self.config.softness, rng)
        visible = torch.from_numpy(mask).to(images.device, images.dtype)
        if self.config.lam_from_mask:
            mixture = Mixture(mixture.perm, torch.full_like(mixture.lam, float(mask.mean())))
        mosaic = visible * images + (1 - visible) * images[mixture.perm]
        return self.mixed_loss(self.features(mosaic), mixture.tags(batch["tags"]))


METHOD = Declaration(FmixCam, Config, presets=PRESETS, training=TRAINING)
