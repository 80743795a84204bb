"""Backbones and segmentation heads.

``build_backbone`` is the one way in by name. Nothing here loads torch before a network is built, so
that the command line can complete and check names at once.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from trainer.errors import ConfigError, nearest

if TYPE_CHECKING:
    from trainer.nets.backbone import Backbone

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet38", "mobilenet_v2")
DEFAULT_OUTPUT_STRIDE = {"resnet38": 8}


def build_backbone(name: str, output_stride: int | None = None, **knobs: Any) -> Backbone:
    """The backbone ``name`` with random weights; see ``trainer.weights.loading.load_backbone`` for
    trained ones.

    Args:
        name: one of ``BACKBONES``.
        output_stride: 8, 16 or 32 (ResNet-38: 8 only). None is what the methods use: 8 for
            ResNet-38, else 16.
        **knobs: keyword arguments of the class: ``bn``, ``detach_after``, and ``dilate`` for ResNet
        and MobileNetV2.

    Raises:
        ConfigError: unknown name or knob, or a value that this backbone cannot have.
    """
    if name not in BACKBONES:
        raise ConfigError(
            f"unknown backbone {name!r}",
            nearest(name, BACKBONES),
            "--backbone with one of these names",
        )
    stride = output_stride if output_stride is not None else DEFAULT_OUTPUT_STRIDE.get(name, 16)
    if name == "resnet38":
        from trainer.nets.resnet38 import ResNet38

        return ResNet38(**_known(name, ResNet38, {"output_stride": stride, **knobs}))
    if name == "mobilenet_v2":
        from trainer.nets.mobilenet import MobileNetV2

        return MobileNetV2(**_known(name, MobileNetV2, {"output_stride": stride, **knobs}))
    from trainer.nets.resnet import ResNet

    return ResNet(
        int(name.removeprefix("resnet")), **_known(name, ResNet, {"output_stride": stride, **knobs})
    )


def _known(name: str, network: type[Backbone], knobs: dict[str, Any]) -> dict[str, Any]:
    """``knobs``, after checking that ``network`` has each of them."""
    accepted = [knob for knob in inspect.signature(network).parameters if knob != "depth"]
    for knob in knobs:
        if knob not in accepted:
            raise ConfigError(f"backbone {name} has no knob {knob!r}", nearest(knob, accepted))
    return knobs
