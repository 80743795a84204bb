"""Pseudo masks are wrong in places: a teacher corrects labels that it contradicts with confidence.

The teacher is the exponential average of the weights in training (mean teacher: Tarvainen and
Valpola, NeurIPS 2017). Networks fit the correct part of noisy masks before the wrong part (Liu et
al., ADELE, CVPR 2022), and an average of weights lags behind, so it has fitted less of the wrong
part. For a pixel with label y, and the teacher's probabilities p over background and the classes
that the image may show (its tags and the unknown ones):

    confident = max p >= teacher_confidence
    conflict  = confident  and  arg-max p != y  and  y != 255  and
                (y = 0  or  some pixel of the view is confidently y)

``replace`` trains such a pixel on arg-max p, which is ADELE's correction with one threshold in
place of its curves, or hard bootstrapping (Reed et al., ICLR 2015 workshop) of confident pixels
only. ``weigh`` multiplies its loss by ``teacher_weight``. Pixels of label 255 stay open, unless
``fill`` takes arg-max p of the confident ones, as semi-supervised training does (Sohn et al.,
"FixMatch", NeurIPS 2020); padding stays open. Absent
classes have probability 0, because tags are certain. The last condition comes from this repository:
a teacher that has not learnt a class yet predicts background everywhere, and would erase the class
for good. For the same reason it fills open pixels with background only where it sees some class.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.data.dataset import IGNORE
from trainer.segmenters.config import SegmentConfig


@torch.no_grad()
def heard(
    labels_BHW: Tensor,
    logits_BLhw: Tensor,
    possible_BL: Tensor,
    config: SegmentConfig,
    inside_BHW: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Labels ``[B,H,W]`` after the teacher's correction, and weights ``[B,H,W]`` or None.

    Args:
        labels_BHW: integers in 0..L-1 or 255.
        logits_BLhw: of the teacher, any size.
        possible_BL: bool, the labels that each image can have, background among them.
        config: for ``teacher``, ``teacher_confidence`` and ``teacher_weight``.
        inside_BHW: bool, False in the padding; None where there is none.
    """
    logits = F.interpolate(
        logits_BLhw.float(), labels_BHW.shape[1:], mode="bilinear", align_corners=False
    )
    # Before the soft-max, so that impossible labels get exactly 0 and the others sum to 1.
    chance = logits.masked_fill(~possible_BL[:, :, None, None], -torch.inf).softmax(1)
    confidence, winner = chance.max(1)
    confident = confidence >= config.teacher_confidence
    votes = confident.flatten(1).to(chance.dtype)
    visible_BL = torch.zeros_like(possible_BL, dtype=chance.dtype)
    visible_BL = visible_BL.scatter_reduce(1, winner.flatten(1), votes, "amax") > 0
    sees_class = visible_BL[:, 1:].any(1)[:, None, None]
    visible_BL[:, 0] = True
    is_label = labels_BHW != IGNORE
    index = torch.where(is_label, labels_BHW, 0).long().flatten(1)
    visible = visible_BL.gather(1, index).view_as(labels_BHW)
    conflict = confident & (winner != labels_BHW) & is_label & visible
    if config.teacher == "fill":
        inside = torch.ones_like(is_label) if inside_BHW is None else inside_BHW
        conflict |= confident & ~is_label & inside & ((winner > 0) | sees_class)
    if config.teacher != "weigh":
        return torch.where(conflict, winner.to(labels_BHW.dtype), labels_BHW), None
    return labels_BHW, torch.where(conflict, config.teacher_weight, 1.0)
