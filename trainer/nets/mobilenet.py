"""MobileNetV2 on torchvision's modules and state-dict names, without the classifier."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from trainer.nets.backbone import StagedBackbone, Traits
from trainer.nets.folding import fold_batch_norms


class MobileNetV2(StagedBackbone):
    """MobileNetV2 (Sandler et al., CVPR 2018), width 1.

    ``forward`` takes ``[B, 3, H, W]`` normalised RGB and returns ``stage1`` (after ``features.3``,
    24 channels), ``stage2`` (``features.6``, 32), ``stage3`` (``features.13``, 96) and ``stage4``
    (``features.18``, 1280) at strides 4, 8, 16, 32 or what ``output_stride`` allows, each side
    rounded up.

    Args:
        output_stride: 8, 16 or 32. At 16 ``features.14`` has stride 1 and 15 to 17 dilation 2.
        dilate: dilate where a stride was removed.
        bn: ``frozen``, ``stats`` or ``train``; see ``StagedBackbone``.
        detach_after: None or a stage name.

    Raises:
        ConfigError: a value that is none of these.
    """

    traits = Traits(torchvision="mobilenet_v2")

    def __init__(
        self,
        output_stride: int = 16,
        dilate: bool = True,
        bn: str = "frozen",
        detach_after: str | None = None,
    ) -> None:
        super().__init__(
            {"stage1": 24, "stage2": 32, "stage3": 96, "stage4": 1280},
            output_stride,
            bn,
            detach_after,
        )
        from torchvision.models import mobilenet_v2

        self.features: nn.Sequential = mobilenet_v2(weights=None).features
        self.keep_resolution(output_stride, dilate)
        fold_batch_norms(self)
        self.freeze()

    def stage_modules(self) -> dict[str, Sequence[nn.Module]]:
        """The four stages; stage 1 holds the stem."""
        blocks = list(self.features)
        return {
            "stage1": blocks[:4],
            "stage2": blocks[4:7],
            "stage3": blocks[7:14],
            "stage4": blocks[14:],
        }
