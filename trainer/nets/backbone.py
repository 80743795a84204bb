"""What every backbone offers, and the freezing and striding that they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trainer.errors import ConfigError, nearest

BATCH_NORM_MODES = ("frozen", "stats", "train", "adapt")
OUTPUT_STRIDES = (8, 16, 32)

_M = TypeVar("_M", bound=nn.Module)


@dataclass(frozen=True)
class Traits:
    """What a backbone says of itself. The trainer chooses by these, never by a backbone's name.

    Attributes:
        recipe: the recipe that it learns with. Methods publish their numbers for the networks of
            one recipe: ``psa`` for ResNet-38, ``irn`` for ResNet-50 and 101.
        protocol: how its maps are made where the method does not say.
        knobs: constructor arguments that a user may set; none where the network has one form.
        head: how the linear head of a classifier starts.
        dropout: share of channels that the head drops, as published.
        torchvision: torchvision's name of the network whose ImageNet weights it takes.
        timm: timm's name of it, where it is one of timm's.
        package: the Python package that holds its ImageNet weights, if there is one.
        file: the published weight file to bring where torchvision has none.
    """

    recipe: str = "small"
    protocol: str = "psa"
    knobs: tuple[str, ...] = ("output_stride", "dilate", "bn", "detach_after")
    head: Literal["kaiming", "xavier"] = "kaiming"
    dropout: float = 0.0
    torchvision: str = ""
    timm: str = ""
    package: str = ""
    file: str = ""


class Backbone(nn.Module, ABC):
    """A network from images to named feature maps.

    Attributes:
        traits: what it says of itself.
        channels: feature name -> channels, shallow to deep.
        strides: feature name -> input pixels a cell.
        top: name of the deepest feature.
        depths: where ``hook`` can change the features, shallow to deep; without the deepest.
    """

    traits: Traits = Traits()
    channels: dict[str, int]
    strides: dict[str, int]
    top: str
    depths: tuple[str, ...] = ()

    @classmethod
    def traits_of(cls, **arguments: Any) -> Traits:
        """Traits of the network that the constructor makes of ``arguments``, without making it."""
        return cls.traits

    @abstractmethod
    def forward(self, x_B3HW: Tensor) -> dict[str, Tensor]:
        """Feature maps of RGB images normalised by the ImageNet mean and standard deviation, any
        size.
        """

    @property
    def pretrained(self) -> Backbone:
        """The part that weight files are for; layers around it are new."""
        return self

    @abstractmethod
    def freeze(self) -> None:
        """Put every frozen batch norm in eval mode and take the gradient from every frozen
        parameter.

        Frozen parameters have ``requires_grad`` False: an optimiser that asks for trainable ones
        never sees them, so weight decay cannot move them either. Only ever takes gradients away.
        """

    def hook(self, depth: str, change: Callable[[Tensor], Tensor]) -> RemovableHandle:
        """Pass the features at ``depth`` through ``change`` until the handle is removed."""
        return self.get_submodule(depth).register_forward_hook(lambda _, x, y: change(y))

    def train(self, mode: bool = True) -> Backbone:
        """As ``nn.Module.train``, but what is frozen stays frozen."""
        super().train(mode)
        self.freeze()
        return self


def split_parameters(
    module: nn.Module, backbone: Backbone
) -> tuple[list[nn.Parameter], list[tuple[str, nn.Parameter]]]:
    """Parameters of the pretrained part of a module's backbone, and the new ones with their
    names.
    """
    old = list(backbone.pretrained.parameters())
    ids = {id(parameter) for parameter in old}
    return old, [(n, p) for n, p in module.named_parameters() if id(p) not in ids]


class StagedBackbone(Backbone):
    """A backbone that is a chain of stages, each giving one feature.

    Args:
        channels: stage name -> channels of its output.
        output_stride: 8, 16 or 32; no stage gets coarser.
        bn: ``frozen`` = running statistics and affine fixed; ``stats`` = statistics fixed, affine
            trained except in the first batch norm (IRN); ``train`` = ordinary batch norm;
            ``adapt`` = statistics measured once, before the training, and then fixed, affine
            trained.
        detach_after: name of the stage after which the gradient is cut while training (IRN:
            ``stage2``). Everything up to there is frozen, batch norms included.

    Raises:
        ConfigError: a value that is none of these.
    """

    def __init__(
        self, channels: dict[str, int], output_stride: int, bn: str, detach_after: str | None
    ) -> None:
        super().__init__()
        check_output_stride(output_stride)
        if bn not in BATCH_NORM_MODES:
            raise ConfigError(f"batch norm mode {bn!r}", nearest(bn, BATCH_NORM_MODES))
        if detach_after is not None and detach_after not in channels:
            raise ConfigError(
                f"cannot detach after {detach_after!r}", nearest(detach_after, channels)
            )
        self.channels = channels
        # The stem has stride 4 and every stage after the first doubles it.
        self.strides = {name: min(4 << i, output_stride) for i, name in enumerate(channels)}
        *depths, self.top = channels
        self.depths = tuple(depths)
        self.bn = bn
        self.detach_after = detach_after

    @abstractmethod
    def stage_modules(self) -> dict[str, Sequence[nn.Module]]:
        """Stage name -> its modules in order, shallow to deep."""

    def forward(self, x_B3HW: Tensor) -> dict[str, Tensor]:
        """Features ``stage1`` .. ``stage4``, each ``[B, channels, h, w]``, of normalised RGB
        images.
        """
        features: dict[str, Tensor] = {}
        x = x_B3HW
        for name, modules in self.stage_modules().items():
            for module in modules:
                x = module(x)
            features[name] = x
            if self.training and name == self.detach_after:
                x = x.detach()
        return features

    def hook(self, depth: str, change: Callable[[Tensor], Tensor]) -> RemovableHandle:
        """See ``Backbone``."""
        # What a forward hook returns takes the place of the output.
        return self.stage_modules()[depth][-1].register_forward_hook(lambda _, x, y: change(y))

    def freeze(self) -> None:
        """See ``Backbone.freeze``; what is frozen follows from ``bn`` and ``detach_after``."""
        stages = self.stage_modules()
        names = list(stages)
        cut = names.index(self.detach_after) + 1 if self.detach_after else 0
        for name in names[:cut]:
            fix(stages[name])
            fix_batch_norms(stages[name])
        if self.bn != "train":
            fix_batch_norms([self], affine=self.bn == "frozen")
        if self.bn == "stats":
            fix(batch_norms([self])[:1])

    def keep_resolution(self, output_stride: int, dilate: bool) -> None:
        """Take the stride out of the stages that would be coarser than ``output_stride``.

        With ``dilate`` the convolutions after each removed stride are dilated so that each output
        cell sees what it saw before: the old output is the new one sub-sampled.
        """
        dilation = 1
        for i, modules in enumerate(self.stage_modules().values()):
            if 4 << i > output_stride:
                before, dilation = dilation, dilation * (2 if dilate else 1)
                # The convolution that loses its stride still reads the cells of the layer before
                # it. Only those behind it have to step over the new cells.
                for conv in _of_type(modules, nn.Conv2d):
                    respace(conv, before if conv.stride != (1, 1) else dilation)


def check_output_stride(output_stride: int) -> None:
    """Refuse a stride that no staged backbone has."""
    if output_stride not in OUTPUT_STRIDES:
        raise ConfigError(f"output stride {output_stride}", "8, 16 or 32")


def fix(modules: Iterable[nn.Module]) -> None:
    """Take the gradient from every parameter."""
    for module in modules:
        module.requires_grad_(False)


def batch_norms(modules: Iterable[nn.Module]) -> list[nn.BatchNorm2d]:
    """Every batch norm inside ``modules``, in order."""
    return _of_type(modules, nn.BatchNorm2d)


def fix_batch_norms(modules: Iterable[nn.Module], affine: bool = True) -> None:
    """Make the batch norms use their running statistics; with ``affine`` their weight and bias are
    fixed too.
    """
    norms = batch_norms(modules)
    for norm in norms:
        norm.eval()
    if affine:
        fix(norms)


def dilated(network: nn.Module) -> list[nn.Conv2d]:
    """Every convolution with holes."""
    return [conv for conv in _of_type([network], nn.Conv2d) if conv.dilation != (1, 1)]


def _of_type(modules: Iterable[nn.Module], kind: type[_M]) -> list[_M]:
    return [inner for module in modules for inner in module.modules() if isinstance(inner, kind)]


def respace(conv: nn.Conv2d, dilation: int) -> None:
    """Stride 1 and the given dilation, with the padding that keeps the size."""
    conv.stride = (1, 1)
    if conv.kernel_size != (1, 1):
        conv.dilation = (dilation, dilation)
        conv.padding = (
            dilation * (conv.kernel_size[0] // 2),
            dilation * (conv.kernel_size[1] // 2),
        )
