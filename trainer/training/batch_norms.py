"""Batch norms that take the statistics of the training images before the training starts."""

from __future__ import annotations

import torch
from torch import nn

from trainer.data.loader import Samples
from trainer.nets.backbone import Backbone
from trainer.nets.statistics import adapt_batch_norms

IMAGES = 128
BATCH = 16
"""Training views that are looked at, and how many of them at once. More of them change little."""


def adapt(backbone: nn.Module | None, bn: str, samples: Samples) -> None:
    """Measure the statistics where ``bn`` is ``adapt``; leave them as they are elsewhere."""
    if bn != "adapt" or not isinstance(backbone, Backbone):
        return
    step = max(1, len(samples.records) // IMAGES)
    views = [samples[0, i]["image"] for i in range(0, len(samples.records), step)]
    whole = torch.stack(views).to(memory_format=torch.channels_last)
    adapt_batch_norms(backbone, torch.split(whole, BATCH))
