"""The loss between image logits and tags, which all methods share."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from trainer.training.collectives import process_mean

EPS = 1e-6


def tag_loss(logits_BK: torch.Tensor, tags_BK: torch.Tensor) -> torch.Tensor:
    """Multi-label soft margin loss, the mean over the tags that are known (Durand et al., "Learning
    a Deep ConvNet for Multi-label Classification with Partial Labels", CVPR 2019).

    It is 0 where no tag is known.

    Args:
        logits_BK: of the images, see ``at_least_float32``.
        tags_BK: 1 present, 0 absent, NaN unknown; shares in between for mixed images.
    """
    known = ~tags_BK.isnan()
    # The weights and the factor are exactly 1 where everything is known, so that the loss is then
    # the usual one to the bit. A test for NaN in Python would wait for the GPU.
    loss = F.multilabel_soft_margin_loss(logits_BK, present(tags_BK), known.to(tags_BK.dtype))
    # Any floor will do: where no tag is known, the loss is 0.
    return loss * (known.numel() / process_mean(known.sum()).clamp(min=EPS))


def present(tags_BK: torch.Tensor) -> torch.Tensor:
    """Tags where an unknown class counts as absent: no NaN."""
    return tags_BK.nan_to_num(0)
