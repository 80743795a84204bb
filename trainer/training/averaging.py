"""The exponential average of a network's weights while it trains."""

from __future__ import annotations

import torch
from torch import nn


def make_average(module: nn.Module, decay: float) -> torch.optim.swa_utils.AveragedModel | None:
    """The exponential average of a module's weights and buffers; None for decay 0."""
    if not decay:
        return None
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
    # Buffers too: the running statistics of batch norms belong to the weights they were made with.
    return torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=average, use_buffers=True)


class Teacher:
    """The averaged network during the training, for losses that consult it.

    Attributes:
        progress: share of the training so far, 0..1.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network, self.progress = network, 0.0

    def __call__(self, images_B3HW: torch.Tensor) -> torch.Tensor:
        """Output of the network in evaluation mode, without gradients."""
        with torch.no_grad():
            answer: torch.Tensor = self.network(images_B3HW)
            return answer
