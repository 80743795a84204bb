"""IRNet's training data: label maps with open pixels, and views of them (Ahn, Cho and Kwak, CVPR
2019).

Shapes: k classes of the image, H W image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainer.data.dataset import IGNORE
from trainer.data.transforms import Rng, segment_sample
from trainer.refine.crf import DenseCrf, preset, unary_from_labels
from trainer.refine.irnet import EPS, STRIDE, IrnConfig

Float = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.uint8]


def ir_label(cams_kHW: Float, image_HW3: Labels, config: IrnConfig) -> Labels:
    """IRNet's label map: ``uint8 [H,W]``, 0 background, i+1 the i-th map, 255 open.

    Args:
        cams_kHW: maps >= 0 of the classes of the image, at its size; none gives background
            everywhere.
        image_HW3: RGB, for the CRF.
        config: for its two thresholds and its CRF.
    """
    if not len(cams_kHW):
        return np.zeros(image_HW3.shape[:2], np.uint8)
    parameters = preset(config.crf)
    # One CRF for both thresholds: its kernels depend on the image alone.
    crf = DenseCrf(image_HW3, parameters.gaussian, parameters.bilateral, config.crf_backend)

    def refined(threshold: float) -> npt.NDArray[np.int64]:
        winner = winners(cams_kHW, threshold)
        # A preset for scores has no probability of a right label; 0.7 is that of P2, IRN's own.
        unary = unary_from_labels(winner, len(cams_kHW) + 1, parameters.gt_prob or 0.7)
        best: npt.NDArray[np.int64] = crf.infer(unary, parameters.iterations).argmax(0)
        return best

    return sure_labels(refined(config.foreground), refined(config.background))


def winners(cams_kHW: Float, threshold: float) -> npt.NDArray[np.int64]:
    """Arg-max of a constant background and the maps, each over its maximum + 1e-5.

    Ties are background.
    """
    maps = cams_kHW / (cams_kHW.max((1, 2), keepdims=True) + EPS)
    scores = np.concatenate([np.full_like(maps[:1], threshold), maps])
    # Arg-max takes the first of equals, so the background goes first.
    best: npt.NDArray[np.int64] = scores.argmax(0)
    return best


def sure_labels(
    foreground_HW: npt.NDArray[np.int64], background_HW: npt.NDArray[np.int64]
) -> Labels:
    """Labels at the high threshold; 0 where both thresholds give background, 255 where one does."""
    ground = np.where(background_HW == 0, 0, IGNORE)
    return np.where(foreground_HW == 0, ground, foreground_HW).astype(np.uint8)


def irn_sample(
    pixels: Labels, label: Labels, rng: Rng, config: IrnConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Training view: image ``float32 [3,crop,crop]`` and label ``uint8 [crop/4,crop/4]``.

    Scale, flip, normalise, crop; beyond the image the view has the mean colour and label 255. The
    label is every fourth pixel, from the third on.
    """
    image, view = segment_sample(pixels, label, rng, config.rescale, config.crop, jitter=False)
    return image, view[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE].contiguous()
