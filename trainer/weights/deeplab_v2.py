"""Weights of DeepLab-v2: trained ones, and those that training starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from trainer.errors import WeightsError
from trainer.nets.deeplab_v2 import (
    CAFFE,
    INPUTS,
    OURS,
    TORCHVISION,
    DeepLabV2ResNet101,
    Layout,
    by_torchvision_names,
)
from trainer.weights.checkpoints import architecture, read_checkpoint
from trainer.weights.loading import LoadReport, load_backbone, noted_beside


def load_deeplab_v2(network: DeepLabV2ResNet101, path: Path | str) -> LoadReport:
    """Copy weights into ``network``: a trained DeepLab-v2, or what training starts from. Print the
    report.

    Reads released names with or without ``base.``, ``scale.``, ``module.`` before them: segmenters,
    and ResNet-101 in the Caffe layout, such as ``deeplabv1_resnet101-coco.pth`` (which has seen
    COCO's masks: extra supervision). Their classifier ``fc`` is not used, and the ASPP stays
    random where the file has none. Reads torchvision's ResNet-101 too, but only into a network
    built for it: the same names hide another network.

    Raises:
        WeightsError: another network, layout or number of classes; nothing is changed.
    """
    path = Path(path)
    tensors = read_checkpoint(path).tensors
    layout, own = layout_of(path), Layout(network.stride_on, network.input)
    if layout not in (None, own):
        raise WeightsError(
            f"{path} holds a ResNet-101 in the {'Caffe' if layout == CAFFE else 'torchvision'}"
            f" layout, for a network with {_said(layout)}; this one has {_said(own)}",
            "weights in the layout of the network",
            "--set segment.stride_on=auto --set segment.input=auto, or"
            f" DeepLabV2ResNet101(num_classes, {_said(layout)})",
        )
    if architecture(tensors) == "a torchvision resnet101":
        return load_backbone(by_torchvision_names(network.base), path)
    report = load_backbone(network.base, path)
    return replace(
        report, kind="DeepLab-v2" if _is_trained(tensors) else "ResNet-101 in the Caffe layout"
    )


def layout_of(path: Path) -> Layout | None:
    """The layout of a weight file; None for a released segmenter or another network, which do not
    tell.

    Raises:
        WeightsError: no such file, or damaged.
    """
    checkpoint = read_checkpoint(path)
    # Files of a run and imported files state their layout. The names of a segmenter do not tell it.
    for note in (checkpoint.identity, noted_beside(path)):
        if note.get("input") in INPUTS:
            return Layout(note["stride_on"], note["input"])
    kind = architecture(checkpoint.tensors)
    if kind == "a torchvision resnet101":
        return TORCHVISION
    return CAFFE if kind == OURS and not _is_trained(checkpoint.tensors) else None


def _is_trained(tensors: Mapping[str, Tensor]) -> bool:
    return any(name.endswith("aspp.c0.weight") for name in tensors)


def _said(layout: Layout | None) -> str:
    return "" if layout is None else f'stride_on="{layout.stride_on}", input="{layout.input}"'
