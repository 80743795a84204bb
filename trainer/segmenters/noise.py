"""Pseudo masks are wrong in places: what the averaged network makes of labels that it contradicts.

The teacher is the exponential average of the weights in training (mean teacher: Tarvainen and
Valpola, NeurIPS 2017). Networks fit what is right in noisy masks before they fit what is wrong (Liu
et al., ADELE, CVPR 2022), and an average of weights lags behind the second. For a pixel with label
y, and the teacher's probabilities p over background and the tags of the image:

    sure         = max p >= teacher_confidence
    contradicted = sure  and  arg-max p != y  and  y != 255  and
                   (y = 0  or  some pixel of the view is surely y)

``replace`` trains such a pixel on arg-max p, which is ADELE's correction with one threshold in
place of its curves, and hard bootstrapping (Reed et al., ICLR 2015 workshop) of confident pixels
only; ``weigh`` multiplies its loss by ``teacher_weight``. Pixels of label 255 stay open. What is
not in the image's tags has probability 0: tags are all that weak labels know for sure. The last
condition is of this repository: a teacher that has not learnt a class yet finds background
everywhere, and without it would erase the class for good.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.data.dataset import IGNORE
from trainer.segmenters.config import SegmentConfig


@torch.no_grad()
def heard(
    labels_BHW: Tensor, logits_BLhw: Tensor, possible_BL: Tensor, config: SegmentConfig
) -> tuple[Tensor, Tensor | None]:
    """Labels ``[B,H,W]`` after the teacher was heard, and weights ``[B,H,W]`` of their pixels or
    None.

    Args:
        labels_BHW: integers in 0..L-1 or 255.
        logits_BLhw: of the teacher, any size.
        possible_BL: which labels each image can have, background among them; bool.
        config: ``teacher``, ``teacher_confidence`` and ``teacher_weight`` are read.
    """
    logits = F.interpolate(
        logits_BLhw.float(), labels_BHW.shape[1:], mode="bilinear", align_corners=False
    )
    chance = logits.masked_fill(~possible_BL[:, :, None, None], -torch.inf).softmax(1)
    confidence, winner = chance.max(1)
    sure = confidence >= config.teacher_confidence
    seen_BL = torch.zeros_like(possible_BL, dtype=chance.dtype)
    seen_BL = (
        seen_BL.scatter_reduce(1, winner.flatten(1), sure.flatten(1).to(chance.dtype), "amax") > 0
    )
    seen_BL[:, 0] = True
    known = labels_BHW != IGNORE
    seen = seen_BL.gather(1, torch.where(known, labels_BHW, 0).long().flatten(1)).view_as(
        labels_BHW
    )
    contradicted = sure & (winner != labels_BHW) & known & seen
    if config.teacher == "replace":
        return torch.where(contradicted, winner.to(labels_BHW.dtype), labels_BHW), None
    return labels_BHW, torch.where(contradicted, config.teacher_weight, 1.0)
