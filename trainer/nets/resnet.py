"""ResNet 18 to 101 on torchvision's modules and state-dict names, without the classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from trainer.errors import ConfigError
from trainer.nets.backbone import StagedBackbone, Traits
from trainer.nets.folding import fold_batch_norms

DEPTHS = (18, 34, 50, 101)


class ResNet(StagedBackbone):
    """ResNet (He et al., CVPR 2016) in torchvision's layout: the stride sits on the 3x3
    convolution.

    ``forward`` takes ``[B, 3, H, W]`` normalised RGB and returns ``stage1`` .. ``stage4`` at
    strides 4, 8, 16, 32 or what ``output_stride`` allows, each side rounded up. The stages are
    those of IRN: stage 1 = stem and layer1.

    Args:
        depth: 18, 34, 50 or 101.
        output_stride: 8, 16 or 32.
        dilate: dilate where a stride was removed. False with ``output_stride=16`` is IRN's network:
            last stage with stride 1 and no dilation.
        bn: ``frozen``, ``stats`` or ``train``; see ``StagedBackbone``. IRN: ``stats``, and then
            ``conv1`` is frozen together with the first batch norm because ``detach_after="stage2"``
            covers both.
        detach_after: None or a stage name. IRN: ``stage2``.

    Raises:
        ConfigError: a value that is none of these.
    """

    def __init__(
        self,
        depth: int,
        output_stride: int = 32,
        dilate: bool = False,
        bn: str = "frozen",
        detach_after: str | None = None,
    ) -> None:
        if depth not in DEPTHS:
            raise ConfigError(f"ResNet depth {depth}", "18, 34, 50 or 101")
        # From depth 50 on, blocks are bottlenecks with four times the output channels.
        widths = (64, 128, 256, 512) if depth < 50 else (256, 512, 1024, 2048)
        super().__init__(
            {f"stage{i}": width for i, width in enumerate(widths, 1)},
            output_stride,
            bn,
            detach_after,
        )
        from torchvision import models

        body: nn.Module = getattr(models, f"resnet{depth}")(weights=None)
        for name, module in body.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, module)
        self.traits = self.traits_of(depth=depth)
        self.keep_resolution(output_stride, dilate)
        fold_batch_norms(self)
        self.freeze()

    @classmethod
    def traits_of(cls, **arguments: Any) -> Traits:
        """See ``Backbone``. IRN publishes its training for the two deep ones."""
        depth = arguments["depth"]
        usual = "irn" if depth in (50, 101) else ""
        return Traits(usual or "small", usual or "psa", torchvision=f"resnet{depth}")

    def stage_modules(self) -> dict[str, Sequence[nn.Module]]:
        """The four stages; stage 1 holds the stem."""
        parts = dict(self.named_children())
        stem = [parts[name] for name in ("conv1", "bn1", "relu", "maxpool", "layer1")]
        return {"stage1": stem, **{f"stage{i}": [parts[f"layer{i}"]] for i in (2, 3, 4)}}
