"""How far images lie from those that a backbone's weights were trained on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from trainer.nets.backbone import Backbone, batch_norms
from trainer.nets.folding import unfold


def statistics_distance(backbone: Backbone, images_BCHW: Tensor) -> float | None:
    """Distance between the statistics that a backbone's batch norms remember and those of a batch.

    It is the Kullback-Leibler divergence of the normal distribution of a channel, in nats: the
    median over channels, then over layers. Shifts of early layers reach the later ones, as they do
    in a network whose batch norms are frozen.

    Args:
        backbone: on trained weights; not changed.
        images_BCHW: normalised as for the backbone; some dozens of images.

    Returns:
        About 0 for images like those of the training; None for a network without batch norms.
    """
    network = copy.deepcopy(backbone).eval()
    unfold(network)
    norms = batch_norms([network])
    sums = [torch.zeros(3, norm.num_features, dtype=torch.float64) for norm in norms]
    for norm, total in zip(norms, sums):
        norm.register_forward_pre_hook(_adding_to(total))
    with torch.inference_mode():
        for part in torch.split(images_BCHW, 8):
            network(part)
    distances = [_divergence(norm, *total) for norm, total in zip(norms, sums)]
    return float(np.median(distances)) if distances else None


def adapt_batch_norms(backbone: Backbone, batches: Iterable[Tensor]) -> None:
    """Give the batch norms the statistics of other images, in place; weights stay.

    Li et al., "Revisiting Batch Normalization For Practical Domain Adaptation", ICLR workshop 2017.

    Args:
        backbone: on trained weights.
        batches: ``[B,3,H,W]``, normalised as for the backbone; each counts the same.
    """
    norms = batch_norms([backbone])
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        # None averages over all batches.
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for images in batches:
            backbone(images)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    backbone.train(backbone.training)


def _adding_to(total_3C: Tensor) -> Callable[[nn.Module, tuple[Tensor]], None]:
    def add(module: nn.Module, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
        count = len(inputs[0])
        total_3C[0] += mean.double() * count
        total_3C[1] += (variance.double() + mean.double().square()) * count
        total_3C[2] += count

    return add


def _divergence(norm: nn.BatchNorm2d, sums: Tensor, squares: Tensor, counts: Tensor) -> float:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean = sums / counts
    variance = (squares / counts - mean.square()).clamp_min(0) + norm.eps
    old = norm.running_var.double() + norm.eps
    divergence = 0.5 * (
        variance / old + (mean - norm.running_mean).square() / old - 1 - (variance / old).log()
    )
    # The median: some channels never fire, and their ratios say nothing.
    return float(divergence.median())
