"""Mixing the images of a batch, and the loss of a mixed batch, which three methods share.

mixup: Zhang et al., ICLR 2018. FMix masks: Harris et al., "FMix", 2020. Losses: Chang et al.,
"Mixup-CAM", BMVC 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from trainer.config import Range
from trainer.errors import ConfigError
from trainer.methods.base import at_least_float32
from trainer.methods.linear import LinearCam, LinearConfig
from trainer.methods.regularizers import (
    CamMap,
    Coords,
    bernoulli_entropy,
    concentration,
    prediction_entropy,
)
from trainer.methods.tag_loss import present, tag_loss

Field = npt.NDArray[np.float64]
Mode = Literal["reference", "isotropic"]


def mix(x: torch.Tensor, lam: torch.Tensor | float, perm: torch.Tensor) -> torch.Tensor:
    """``lam * x + (1 - lam) * x[perm]`` along the batch; ``lam`` broadcasts against ``x``."""
    return lam * x + (1 - lam) * x[perm]


@dataclass(frozen=True)
class Mixture:
    """The partner of each sample of a batch, and the share of the sample.

    Attributes:
        perm: ``int64 [B]``, on the device of the batch.
        lam: share of the sample itself, ``[B]``.
    """

    perm: torch.Tensor
    lam: torch.Tensor

    def tags(self, tags_BK: torch.Tensor) -> torch.Tensor:
        """Mixed labels: NaN where an image that has a share does not know the class."""
        lam = self.lam[:, None]
        # A share of 0 must not spread NaN: 0 times NaN is NaN.
        mixed = mix(present(tags_BK), lam, self.perm)
        unknown = tags_BK.isnan()
        # NaN times 0 is NaN: an image without a share must not spread what it does not know.
        return mixed.masked_fill(unknown & (lam > 0) | unknown[self.perm] & (lam < 1), torch.nan)

    def maps(self, x_BChw: torch.Tensor) -> torch.Tensor:
        """Mixed images or feature maps."""
        return mix(x_BChw, self.lam.to(x_BChw.dtype)[:, None, None, None], self.perm)


def draw(
    images_B3HW: torch.Tensor, alpha: float, per_sample: bool, rng: np.random.Generator
) -> Mixture:
    """A random permutation of the batch, and lam ~ Beta(alpha, alpha), one a batch or one a
    sample.
    """
    count = len(images_B3HW)
    lam = rng.beta(alpha, alpha, count if per_sample else None)
    # A copy, because torch warns of read-only memory, which broadcasting makes.
    shares = torch.as_tensor(np.broadcast_to(lam, count).copy(), dtype=images_B3HW.dtype)
    perm = torch.from_numpy(rng.permutation(count))
    return Mixture(perm.to(images_B3HW.device), shares.to(images_B3HW.device))


@dataclass(frozen=True)
class MixingConfig(LinearConfig):
    """Knobs that the three mixing methods share, besides those of ``cam``.

    Attributes:
        alpha: of Beta(alpha, alpha), from which the share lam is drawn.
        per_sample: one lam a sample instead of one a batch.
        w_ent: weight of the entropy term. The paper says 0.02 in its implementation section and 0.2
            elsewhere.
        w_con: weight of the concentration term.
        entropy: reading of the entropy term: ``per_image``, ``per_pixel_max`` or ``image_level``;
            ``vector``, -sum P log P of the predicted vector, as in MVA's report; ``mva``, the
            entropy of single sigmoids that its code was meant to compute; or ``mva_bug``, what its
            code does compute: the entropy of the labels, a constant.
        coords: of the concentration: ``cells`` as printed, or ``normalised`` to [-1, 1) as in SCOPS
            and MVA.
        cam_map: maps of the concentration: ``relu``, or ``class_softmax`` as in MVA.
        con_weights: ``mixed`` weighs each class in the concentration by its mixed label,
            ``present`` weighs all present classes alike.
    """

    alpha: Annotated[float, Range(0, 100, above=True)] = 0.2
    per_sample: bool = False
    w_ent: Annotated[float, Range(0, 1000)] = 0.02
    w_con: Annotated[float, Range(0, 1000)] = 2e-4
    entropy: Literal["per_image", "per_pixel_max", "image_level", "vector", "mva", "mva_bug"] = (
        "per_image"
    )
    coords: Coords = "cells"
    cam_map: CamMap = "relu"
    con_weights: Literal["mixed", "present"] = "mixed"


class MixedCam(LinearCam):
    """``cam`` with the loss of a mixed batch; a method decides what it mixes."""

    config: MixingConfig

    def mixed_loss(self, f_BChw: torch.Tensor, tags_BK: torch.Tensor) -> dict[str, torch.Tensor]:
        """Terms ``cls``, ``ent``, ``con`` (Mixup-CAM, eqs. 2 to 5).

        Args:
            f_BChw: features of a mixed batch.
            tags_BK: its mixed labels; an unknown one (NaN) has no part in ``cls`` and ``con``.
        """
        config = self.config
        maps, logits = (
            at_least_float32(self.classifier(f_BChw)),
            at_least_float32(self.logits(f_BChw)),
        )
        terms = {"cls": tag_loss(logits, tags_BK)}
        tags_BK = present(tags_BK)
        if config.w_ent:
            if config.entropy == "mva":
                entropy = bernoulli_entropy(logits)
            elif config.entropy == "vector":
                entropy = prediction_entropy(logits[:, :, None, None], "vector")
            elif config.entropy == "mva_bug":
                entropy = bernoulli_entropy(tags_BK)
            else:
                entropy = prediction_entropy(maps, config.entropy)
            terms["ent"] = config.w_ent * entropy
        if config.w_con:
            weights = tags_BK if config.con_weights == "mixed" else (tags_BK > 0).to(tags_BK.dtype)
            terms["con"] = config.w_con * concentration(
                maps, weights, config.coords, config.cam_map
            )
        return terms


SC_CAM_TRAINING: dict[str, Any] = {"lr": 0.01, "crop": 224, "epochs": 61}
"""The released training of SC-CAM on ResNet-38: same authors, same wording as Mixup-CAM's."""
MVA_TRAINING: dict[str, Any] = {
    "classify.batch": 8,
    "classify.crop": 300,
    "classify.clip": 1.0,
    "cams.protocol": "mva",
    "psa.lr": 0.1,
    "psa.new_factor": 1.0,
    "psa.epochs": 15,
    "psa.poly_power": 0.0,
}
"""The released training of the MVA study and its views. ``psa.*`` are its rates for ResNet-38: one
rate for all layers, for 15 epochs. It hardly falls, since the schedule expects 100,000 updates and
there are 2,745.
"""
MVA_KNOBS: dict[str, Any] = {
    **MVA_TRAINING,
    "method.entropy": "mva",
    "method.coords": "normalised",
    "method.cam_map": "class_softmax",
}
"""The released code of the MVA study, in every mixing method."""
MVA_REPORT: dict[str, Any] = {**MVA_TRAINING, "method.entropy": "vector"}
"""The report of the MVA study: its rates and batches, and its code where it says nothing."""


def low_frequency_field(shape: tuple[int, int], decay: float, mode: Mode, rng: Any) -> Field:
    """Random field ``float64 [H,W]`` in 0..1 whose spectrum falls as 1 / f^decay.

    Args:
        shape: (height, width), 2 or more each.
        decay: power.
        mode: ``isotropic`` follows FMix's paper, ``reference`` its code. The code combines the
            first two rows of the spectrum where the paper combines real and imaginary part, so that
            only one harmonic runs across the width.
        rng: ``numpy.random.RandomState`` (for the published stream) or ``numpy.random.Generator``.

    Raises:
        ConfigError: a side under 2.
    """
    height, width = shape
    if min(shape) < 2:
        raise ConfigError(f"an FMix mask of {height}x{width}", "at least 2x2 pixels")
    # FMix's code draws one bin more for odd widths. Drawing as many keeps its random stream.
    bins = width // 2 + (2 if width % 2 else 1)
    fy = np.fft.fftfreq(height)[:, None]
    fx = np.fft.fftfreq(width)[:bins][None]
    # The floor keeps the mean, of frequency 0, from a division by 0.
    amplitude = 1 / np.maximum(np.sqrt(fx * fx + fy * fy), 1 / max(shape)) ** decay
    normal = rng.randn if hasattr(rng, "randn") else lambda *size: rng.standard_normal(size)
    noise = np.asarray(normal(1, height, bins, 2))[0]
    if mode == "reference":
        spectrum = amplitude[0, :, None] * noise[0] + 1j * amplitude[1, :, None] * noise[1]
    else:
        spectrum = amplitude * (noise[..., 0] + 1j * noise[..., 1])
    field: Field = np.fft.irfft2(spectrum, shape, axes=(0, 1))
    field -= field.min()
    field /= field.max()
    return field


def binarise(field: Field, lam: float, softness: float = 0.0, rng: Any = None) -> Field:
    """Mask ``float64 [H,W]``: 1 in the ``lam`` largest share of ``field``, else 0; with
    ``softness`` a linear ramp between them.

    Args:
        field: any real field.
        lam: share of ones.
        softness: share of pixels on either side of the border that the ramp takes; at most min(lam,
            1 - lam).
        rng: its ``random()`` decides between ceil and floor where ``lam`` times the size is no
            integer; None is floor.
    """
    size = field.size
    share = lam * size
    # FMix's code rounds at random too, so the share of ones has no bias.
    up = rng is not None and rng.random() > 0.5
    count = min(max(math.ceil(share) if up else math.floor(share), 0), size)
    # Stable, so that equal values fall on the same side on every machine.
    order = np.argsort(field, axis=None, kind="stable")[::-1]
    mask = np.zeros(size)
    mask[order[:count]] = 1
    ramp = int(size * min(softness, lam, 1 - lam))
    if ramp:
        low, high = max(count - ramp, 0), min(count + ramp, size)
        mask[order[low:high]] = np.linspace(1, 0, high - low)
    return mask.reshape(field.shape)
