"""Losses between logits and label maps, shared by the segmenters (spec refine-segment 6.4).

Shapes: B images, L labels with the background, H W label map, h w logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.data.dataset import IGNORE


def resize_labels(labels_BHW: Tensor, size: Sequence[int]) -> Tensor:
    """Labels ``[...,H,W]`` of any type -> ``[...,h,w]``: the pixel under the middle of each new
    one, on its device.

    torch's ``nearest-exact`` in whole numbers, so that there is nothing to round; ``nearest`` takes
    others (spec 6.4, trap 13). Pillow's ``NEAREST`` is the same but for middles that lie on the
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
    """Mean cross-entropy over the pixels whose label is not 255; 0 where there are none. At least
    float32.

    Args:
        logits_BLhw: ``[B,L,h,w]``.
        labels_Bhw: integers ``[B,h,w]`` in 0..L-1 or 255.
        balanced: the mean over the background plus the mean over the rest, as RIB trains.
        weights_Bhw: of each pixel in the means, ``[B,h,w]`` >= 0; all 1 by default.
    """
    logits = logits_BLhw.to(torch.promote_types(logits_BLhw.dtype, torch.float32))
    labels = labels_Bhw.long()
    known = (labels != IGNORE).to(logits.dtype)
    if weights_Bhw is not None:
        known = known * weights_Bhw
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    ground = (labels == 0).to(logits.dtype)
    parts = (known * ground, known * (1 - ground)) if balanced else (known,)
    # Where nothing is known the mean would be 0/0; weights may be small, so the floor is smaller
    # than one pixel's.
    return torch.stack([(losses * part).sum() / part.sum().clamp_min(1e-6) for part in parts]).sum()


def multi_scale_loss(
    logits: Sequence[Tensor],
    labels_BHW: Tensor,
    balanced: bool = False,
    weights_BHW: Tensor | None = None,
) -> Tensor:
    """Sum over the outputs of train mode of ``label_loss`` against the labels at each one's size
    (spec 6.4, D13).

    Labels are resized once for each distinct size, on their device.

    Args:
        logits: each ``[B,L,h,w]`` of its own size.
        labels_BHW: integers ``[B,H,W]`` at the size of the images.
        balanced: see ``label_loss``.
        weights_BHW: see ``label_loss``; at the size of the images.
    """
    sizes = {level.shape[2:] for level in logits}
    labels = {size: resize_labels(labels_BHW, size) for size in sizes}
    weights = {
        size: None if weights_BHW is None else resize_labels(weights_BHW, size) for size in sizes
    }
    return torch.stack(
        [label_loss(x, labels[x.shape[2:]], balanced, weights[x.shape[2:]]) for x in logits]
    ).sum()
