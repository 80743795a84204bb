"""Losses between logits and label maps, shared by the segmenters.

Shapes: B images, L labels with the background, H W label map, h w logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.data.dataset import IGNORE
from trainer.training.collectives import process_mean


def resize_labels(labels_BHW: Tensor, size: Sequence[int]) -> Tensor:
    """Labels ``[...,H,W]`` -> ``[...,h,w]``: the pixel under the middle of each new pixel.

    This is torch's ``nearest-exact`` in whole numbers, without rounding; torch's ``nearest`` takes
    other pixels. Pillow's ``NEAREST``, which deeplab-pytorch uses, differs only for middles on the
    edge of two pixels, where its rounding error decides; the published crop of 321 has none.
    """
    if tuple(labels_BHW.shape[-2:]) == tuple(size):
        return labels_BHW
    rows, columns = (
        (2 * torch.arange(new, device=labels_BHW.device) + 1) * old // (2 * new)
        for old, new in zip(labels_BHW.shape[-2:], size, strict=True)
    )
    return labels_BHW[..., rows[:, None], columns]


def label_loss(
    logits_BLhw: Tensor,
    labels_Bhw: Tensor,
    balanced: bool = False,
    weights_Bhw: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy over the pixels whose label is not 255, in float32 at least.

    It is 0 where all labels are 255.

    Args:
        logits_BLhw: ``[B,L,h,w]``.
        labels_Bhw: integers ``[B,h,w]`` in 0..L-1 or 255.
        balanced: the mean over the background plus the mean over the rest, as RIB trains.
        weights_Bhw: of each pixel in the means, ``[B,h,w]`` >= 0; all 1 by default.
    """
    logits = logits_BLhw.to(torch.promote_types(logits_BLhw.dtype, torch.float32))
    labels = labels_Bhw.long()
    weights = (labels != IGNORE).to(logits.dtype)
    if weights_Bhw is not None:
        weights = weights * weights_Bhw
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    ground = (labels == 0).to(logits.dtype)
    parts = (weights * ground, weights * (1 - ground)) if balanced else (weights,)
    # Without any label the mean would be 0/0. Weights may be small, so the floor is smaller than
    # the weight of one pixel.
    means = [(losses * p).sum() / process_mean(p.sum()).clamp_min(1e-6) for p in parts]
    return torch.stack(means).sum()


def multi_scale_loss(
    logits: Sequence[Tensor],
    labels_BHW: Tensor,
    balanced: bool = False,
    weights_BHW: Tensor | None = None,
) -> Tensor:
    """Sum of ``label_loss`` over the outputs of train mode, each against labels of its own size.

    Args:
        logits: each ``[B,L,h,w]`` of its own size.
        labels_BHW: integers ``[B,H,W]`` at the size of the images.
        balanced: see ``label_loss``.
        weights_BHW: see ``label_loss``; at the size of the images.
    """
    # Several scales may share a size: each is resized once.
    sizes = {level.shape[2:] for level in logits}
    labels = {size: resize_labels(labels_BHW, size) for size in sizes}
    weights = {
        size: None if weights_BHW is None else resize_labels(weights_BHW, size) for size in sizes
    }
    return torch.stack(
        [label_loss(x, labels[x.shape[2:]], balanced, weights[x.shape[2:]]) for x in logits]
    ).sum()
