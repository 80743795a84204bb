"""What every method's class offers. ``declaration`` has what its file declares besides."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer.config import Knobs
from trainer.data.loader import Batch
from trainer.errors import ConfigError
from trainer.methods.inputs import NO_INPUTS, Input
from trainer.nets.backbone import Backbone, split_parameters


class Method(nn.Module):
    """Base of all methods: a classifier that yields class activation maps.

    Shapes: B batch, K classes, C channels, H W image, h w map. Images are RGB, normalised with
    ImageNet statistics.

    Args:
        config: knobs, of the file's ``Config``.
        backbone: the network below the heads.
        num_classes: K.
    """

    released: Mapping[str, tuple[str, ...]] = {}
    """Head -> its names in released checkpoints; other heads keep their own name there."""

    unused: tuple[str, ...] = ()
    """Heads of released checkpoints that the maps do not need."""

    def __init__(self, config: Knobs, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.config: Any = config
        self.backbone = backbone
        self.num_classes = num_classes

    def needs(self, run: Path) -> Mapping[str, Input]:
        """What its samples carry besides image and tags, by name.

        Args:
            run: folder of the run, for files that the inputs are made into.
        """
        return NO_INPUTS

    def loss(self, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        """Weighted terms by name, scalars; the loop minimises their sum.

        Args:
            batch: ``image`` ``[B,3,H,W]``, ``tags`` ``[B,K]``, and the method's own inputs.
                Tags are 1 present, 0 absent, NaN unknown; a row, or all of them, may be 0.
            rng: for every random choice of the loss.
        """
        raise ConfigError(f"{type(self).__name__} has no loss")

    def cams_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps ``[B,K,h,w] >= 0`` and image logits ``[B,K]`` of one pass. Traceable for export."""
        raise ConfigError(f"{type(self).__name__} yields no maps")

    def cams(self, images: Tensor) -> Tensor:
        """Class activation maps ``[B,K,h,w] >= 0`` at the network's stride."""
        return self.cams_and_logits(images)[0]

    def forward(self, images: Tensor) -> Tensor:
        """Image logits ``[B,K]``."""
        return self.cams_and_logits(images)[1]

    def continue_from(self, state: Mapping[str, Tensor]) -> None:
        """Start from the weights of a preparation that ``Prepared.weights_from`` names."""
        self.load_state_dict(state)

    def param_groups(
        self, lr: float, weight_decay: float, new_factor: float = 10.0
    ) -> list[dict[str, Any]]:
        """Optimiser groups: backbone x1, new layers x ``new_factor``, their biases twice that.

        Biases of new layers do not decay. Trained normalisation weights of the backbone (those of
        recipe ``irn``) decay as its other weights do.
        """
        old, new = split_parameters(self, self.backbone)
        # The factors of psa's released trainer, which its successors share.
        parts = [
            ("backbone", old, lr, weight_decay),
            ("new", [p for n, p in new if not n.endswith("bias")], lr * new_factor, weight_decay),
            ("new bias", [p for n, p in new if n.endswith("bias")], 2 * lr * new_factor, 0.0),
        ]
        groups = [
            {
                "name": name,
                "params": [p for p in parameters if p.requires_grad],
                "lr": rate,
                "weight_decay": decay,
            }
            for name, parameters, rate, decay in parts
        ]
        return [group for group in groups if group["params"]]


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision as float32, anything else unchanged.

    A loss of half-precision numbers would lose their last digits.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def full_precision(device: str) -> contextlib.AbstractContextManager[object]:
    """Autocast off where it is on.

    Where it is off already, the context does nothing and leaves no trace in an exported graph.
    """
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()
