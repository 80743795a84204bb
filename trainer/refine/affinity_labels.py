"""What AffinityNet learns from: labels of cells from two CRFs, and training views (Ahn and Kwak,
CVPR 2018, section 3.2).

Shapes: K scores of an image with the background first, H W image.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from trainer.data.dataset import IGNORE
from trainer.data.transforms import Rng, color_jitter, normalise, random_crops, to_tensor
from trainer.refine.affinitynet import STRIDE

NO_SCORE = 1e-5


def affinity_label(
    low_KHW: npt.NDArray[np.floating], high_KHW: npt.NDArray[np.floating]
) -> npt.NDArray[np.uint8]:
    """Label of each cell, ``uint8 [H/8,W/8]``: 0 background, k channel k of the scores, 255 open.

    A cell has the class that wins under the strong background and is background where background
    wins under the weak one. All other cells are open, and so are those without a score of 1e-5.

    Args:
        low_KHW: cropped scores ``[K,H,W]`` with the strong background, channel 0; H and W multiples
            of 8.
        high_KHW: the same with the weak background.
    """
    low, high = _pooled(low_KHW), _pooled(high_KHW)
    label: npt.NDArray[np.uint8] = low.argmax(0).astype(np.uint8)
    # The order counts: first open all background, then close what the weak one is sure of.
    label[label == 0] = IGNORE
    label[high.argmax(0) == 0] = 0
    label[np.maximum(low.max(0), high.max(0)) < NO_SCORE] = IGNORE
    return label


def _pooled(scores_KHW: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    count, height, width = scores_KHW.shape
    cells = scores_KHW.reshape(count, height // STRIDE, STRIDE, width // STRIDE, STRIDE)
    means: npt.NDArray[np.floating] = cells.mean((2, 4))
    return means


def affinity_sample(
    pixels_HW3: npt.NDArray[np.uint8],
    low_KHW: npt.NDArray[np.floating],
    high_KHW: npt.NDArray[np.floating],
    rng: Rng,
    crop: int,
    jitter: bool,
) -> tuple[Tensor, Tensor]:
    """Training view of an image and its label: jitter, crop, normalise, flip, pool.

    As in the released code, the image is not resized, and the crop is padded with black before it
    is normalised.

    Args:
        pixels_HW3: RGB.
        low_KHW: scores of background and present classes after the CRF, low alpha.
        high_KHW: the same with the high alpha.
        rng: of this sample.
        crop: side of the crop, a multiple of 8.
        jitter: colour jitter.

    Returns:
        image ``float32 [3,crop,crop]`` and label ``uint8 [crop/8,crop/8]`` of ``affinity_label``.
    """
    image = np.asarray(color_jitter(Image.fromarray(pixels_HW3), rng)) if jitter else pixels_HW3
    view, *maps = random_crops(
        [(image, 0.0), *((plane, 0.0) for plane in (*low_KHW, *high_KHW))], crop, rng
    )
    scores = np.stack(maps).astype(np.float32, copy=False)
    label = affinity_label(scores[: len(low_KHW)], scores[len(low_KHW) :])
    pixels = normalise(view.astype(np.uint8, copy=False))
    if rng.random() < 0.5:
        # The crop is a whole number of cells, so mirroring and pooling commute.
        pixels, label = pixels[:, ::-1], label[:, ::-1]
    return to_tensor(pixels), torch.from_numpy(label.copy())
