"""Weights of the EfficientNet-PyTorch port under timm's names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

STEM = "_conv_stem.weight"
"""The tensor that tells that a file is of this port."""
OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
WIDE = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
    **SQUEEZE,
}
NARROW = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
    **SQUEEZE,
}
"""Layers of a block that does not expand its channels: timm counts its batch norms from 1 too."""
BLOCK = re.compile(r"_blocks\.(\d+)\.([^.]+)\.(.+)")


def is_efficientnet(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of the port, without a prefix."""
    return STEM in tensors


def timm_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under timm's names; a name that is none of the port's stays as it is."""
    places = _places(tensors)
    return {_renamed(name, places, tensors): tensor for name, tensor in tensors.items()}


def _renamed(name: str, places: Mapping[int, str], tensors: Mapping[str, Tensor]) -> str:
    match = BLOCK.fullmatch(name)
    if match is None:
        layer, _, rest = name.partition(".")
        return f"{OUTER.get(layer, layer)}.{rest}" if rest else name
    number, layer, rest = int(match[1]), match[2], match[3]
    layers = WIDE if f"_blocks.{number}._expand_conv.weight" in tensors else NARROW
    return f"blocks.{places[number]}.{layers.get(layer, layer)}.{rest}"


def _places(tensors: Mapping[str, Tensor]) -> dict[int, str]:
    """Number of a block -> ``stage.block`` of timm, which starts a stage with each new width."""
    places: dict[int, str] = {}
    stage, block, width = -1, 0, 0
    while (weight := tensors.get(f"_blocks.{len(places)}._project_conv.weight")) is not None:
        if len(weight) == width:
            block += 1
        else:
            stage, block, width = stage + 1, 0, len(weight)
        places[len(places)] = f"{stage}.{block}"
    return places
