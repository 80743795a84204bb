"""What every method shares. A method is one file, found by its name: this file holds no list of
them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer.errors import ConfigError
from trainer.nets.backbone import Backbone


class Method(nn.Module):
    """Base of all methods: a classifier that yields class activation maps.

    Shapes: B batch, K classes, C channels, H W image, h w map. Images are RGB, normalised with
    ImageNet statistics.
    """

    segments: int = 0
    """Super-pixels of each image that ``loss`` takes as a fourth argument, int64 ``[B,H,W]``; 0
    where it takes none.
    """

    subcategories: int = 0
    """Width of the sub-category labels that ``loss`` takes as a fourth argument, 0/1 ``[B,S]``; 0
    where it takes none.
    """

    released: Mapping[str, tuple[str, ...]] = {}
    """Names that released checkpoints have for the heads; a head keeps its own name where none is
    given.
    """

    unused: tuple[str, ...] = ()
    """Heads of released checkpoints that the maps do not need."""

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes

    def cams_and_logits(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps ``[B,K,h,w] >= 0`` and image logits ``[B,K]`` of one pass. Traceable for export."""
        raise ConfigError(f"{type(self).__name__} yields no maps")

    def loss(
        self, images: torch.Tensor, tags: torch.Tensor, rng: np.random.Generator
    ) -> dict[str, torch.Tensor]:
        """Weighted terms by name for images ``[B,3,H,W]`` and 0/1 tags ``[B,K]``; the loop sums
        them.
        """
        raise ConfigError(f"{type(self).__name__} has no loss")

    def cams(self, images: torch.Tensor) -> torch.Tensor:
        """Class activation maps ``[B,K,h,w] >= 0`` at the network's stride."""
        return self.cams_and_logits(images)[0]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Image logits ``[B,K]``."""
        return self.cams_and_logits(images)[1]

    def param_groups(
        self, lr: float, weight_decay: float, new_factor: float = 10.0
    ) -> list[dict[str, Any]]:
        """Optimiser groups (spec methods 4.3): backbone x1, new layers x10, biases twice that and
        undecayed.

        Normalisation weights of the backbone that train (IRN's ResNet) decay as its other weights
        do.
        """
        groups: list[dict[str, Any]] = []
        parts = {"backbone": (list(self.backbone.named_parameters()), 1.0)}
        new = [(n, p) for n, p in self.named_parameters() if not n.startswith("backbone.")]
        parts["new"] = (new, new_factor)
        for name, (parameters, factor) in parts.items():
            free = [(n, p) for n, p in parameters if p.requires_grad]
            weights = [p for n, p in free if name == "backbone" or not n.endswith("bias")]
            biases = [p for n, p in free if name != "backbone" and n.endswith("bias")]
            if weights:
                groups.append(
                    {
                        "name": name,
                        "params": weights,
                        "lr": lr * factor,
                        "weight_decay": weight_decay,
                    }
                )
            if biases:
                groups.append(
                    {
                        "name": f"{name} bias",
                        "params": biases,
                        "lr": 2 * lr * factor,
                        "weight_decay": 0.0,
                    }
                )
        return groups


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Half precision made float32, the rest as it is: losses of half-precision numbers would lose
    their last digits.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def full_precision(device: str) -> contextlib.AbstractContextManager[object]:
    """Autocast off, where it is on: a context that does nothing leaves no trace in an exported
    graph.
    """
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()
