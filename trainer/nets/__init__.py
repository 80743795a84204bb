"""Backbones and segmentation heads.

``build_backbone`` is the one way in by name. Nothing here loads torch before a network is built, so
that the command line can complete and check names at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from trainer.errors import ConfigError, nearest

if TYPE_CHECKING:
    from trainer.nets.backbone import Backbone, Traits

Detail = Literal["coarse", "fine"]
SHORT = {f"efficientnet_lite{size}": f"timm/tf_efficientnet_lite{size}" for size in range(3)}
"""Short names of timm's networks."""
BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet38", "mobilenet_v2", *SHORT)


def build_backbone(
    name: str, output_stride: int | None = None, detail: Detail = "coarse", **knobs: Any
) -> Backbone:
    """The backbone ``name`` with random weights; see ``trainer.weights.loading.load_backbone`` for
    trained ones.

    Args:
        name: one of ``BACKBONES``.
        output_stride: 8, 16 or 32 (ResNet-38: 8 only). None is what the methods use: 8 for
            ResNet-38, else 16.
        detail: ``fine`` joins features of several depths, see ``Detailed``.
        **knobs: keyword arguments of the class: ``bn``, ``detach_after``, and ``dilate`` for ResNet
        and MobileNetV2.

    Raises:
        ConfigError: unknown name or knob, or a value that this backbone cannot have.
    """
    network, arguments = _network(name)
    if output_stride is not None:
        knobs["output_stride"] = output_stride
    elif "output_stride" in network.traits.knobs:
        knobs["output_stride"] = 16
    choices = [knob for knob in inspect.signature(network).parameters if knob not in arguments]
    for knob in knobs:
        if knob not in choices:
            raise ConfigError(f"backbone {name} has no knob {knob!r}", nearest(knob, choices))
    backbone = network(**arguments, **knobs)
    if detail == "coarse":
        return backbone
    from trainer.nets.detail import Detailed

    return Detailed(backbone)


def traits_of(name: str) -> Traits:
    """What the backbone ``name`` says of itself, without building it.

    Raises:
        ConfigError: unknown name.
    """
    network, arguments = _network(name)
    return network.traits_of(**arguments)


def usable_knobs(name: str, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """The ``knobs`` that the backbone ``name`` has."""
    usable = (*traits_of(name).knobs, "detail")
    return {knob: value for knob, value in knobs.items() if knob in usable}


def _network(name: str) -> tuple[type[Backbone], dict[str, Any]]:
    """The class of a backbone, and the arguments that the name stands for."""
    if name.startswith("timm/") or name in SHORT:
        from trainer.nets.timm_nets import timm_class

        theirs = SHORT.get(name, name).removeprefix("timm/")
        return timm_class(theirs), {"name": theirs}
    if name not in BACKBONES:
        raise ConfigError(
            f"unknown backbone {name!r}",
            nearest(name, BACKBONES),
            "--backbone with one of these names, or timm/NAME",
        )
    if name == "resnet38":
        from trainer.nets.resnet38 import ResNet38

        return ResNet38, {}
    if name == "mobilenet_v2":
        from trainer.nets.mobilenet import MobileNetV2

        return MobileNetV2, {}
    from trainer.nets.resnet import ResNet

    return ResNet, {"depth": int(name.removeprefix("resnet"))}
