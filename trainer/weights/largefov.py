"""Weights of DeepLab-LargeFOV: trained ones, and those that training starts from."""

from __future__ import annotations

from pathlib import Path

from trainer.nets.largefov import LargeFOVResNet38
from trainer.weights.checkpoints import read_checkpoint
from trainer.weights.loading import LoadReport, load_backbone


def load_largefov(network: LargeFOVResNet38, path: Path | str) -> LoadReport:
    """Copy weights into ``network``: a trained LargeFOV, or a ResNet-38 to start from. Print the
    report.

    Reads released names with or without ``module.`` and the like before them, and for the backbone
    alone all that ``load_backbone`` reads: the ImageNet ``.params`` of the papers and classifiers
    of this family.

    Raises:
        WeightsError: another network or number of classes; nothing is changed.
    """
    path = Path(path)
    is_whole = any(
        ("." + name).endswith(".conv_fov.weight") for name in read_checkpoint(path).tensors
    )
    return load_backbone(network if is_whole else network.backbone, path)
