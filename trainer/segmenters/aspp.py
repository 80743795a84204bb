"""``aspp``: DeepLab-v2's head on the backbone of the run, the generic segmenter.

Chen et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution,
and Fully Connected CRFs", TPAMI 2018, with the training of this repository: scales from a range,
the loss on a coarse grid, views of the test merged by the mean of their probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from trainer.data.transforms import Rng, segment_sample, shift_hsv
from trainer.nets import build_backbone, usable_knobs
from trainer.nets.aspp import AsppSegmenter
from trainer.nets.backbone import Backbone, split_parameters
from trainer.segmenters.base import Pixels, Segmenter, mean_probabilities
from trainer.segmenters.losses import label_loss, resize_labels
from trainer.weights.checkpoints import read_checkpoint
from trainer.weights.loading import LoadReport, load_backbone

if TYPE_CHECKING:
    from trainer.nets.graphs import SegmenterGraph


class Aspp(Segmenter):
    """See the module."""

    unused = ("msc", "stride_on", "input", "width")

    def build(self) -> nn.Module:
        """See ``Segmenter``."""
        config = self.config
        knobs: dict[str, Any] = {
            "output_stride": config.output_stride,
            "bn": config.bn,
            "dilate": True,
        }
        if config.detail != "coarse":
            knobs["detail"] = config.detail
        net = build_backbone(self.backbone, **usable_knobs(self.backbone, knobs))
        return AsppSegmenter(net, self.num_classes + 1, self.config.rates)

    def load(self, network: nn.Module, path: Path) -> LoadReport:
        """See ``Segmenter``."""
        # A file with a head is a whole segmenter; any other holds a backbone.
        whole = any(name.endswith("aspp.c0.weight") for name in read_checkpoint(path).tensors)
        own = cast(AsppSegmenter, network)
        return load_backbone(own if whole else own.backbone.pretrained, path)

    def take_backbone(self, network: nn.Module, backbone: Backbone) -> None:
        """See ``Segmenter``."""
        own = cast(AsppSegmenter, network).backbone
        if type(own) is not type(backbone):
            own, backbone = own.pretrained, backbone.pretrained
        own.load_state_dict(backbone.state_dict())

    def groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """DeepLab's: backbone x1, head weights x10, head biases x20 without decay."""
        config = self.config
        old, head = split_parameters(network, cast(AsppSegmenter, network).backbone)
        parts = [
            ([p for p in old if p.requires_grad], 1.0, config.weight_decay),
            (
                [p for n, p in head if not n.endswith("bias")],
                config.new_factor,
                config.weight_decay,
            ),
            ([p for n, p in head if n.endswith("bias")], 2 * config.new_factor, 0.0),
        ]
        return [
            {"params": p, "lr": config.lr * factor, "weight_decay": decay}
            for p, factor, decay in parts
            if p
        ]

    def sample(self, image_HW3: Pixels, mask_HW: Pixels, rng: Rng) -> tuple[Tensor, Tensor]:
        """Shift colours, scale (bicubic, nearest), flip, jitter, normalise, crop or pad with 0 and
        255 at a random place.
        """
        config = self.config
        if config.hsv:
            image_HW3 = np.asarray(shift_hsv(Image.fromarray(image_HW3), rng, config.hsv))
        low, high = config.scale if config.scale_draw == "range" else (self.draw_scale(rng),) * 2
        return segment_sample(
            image_HW3, mask_HW, rng, (low, high), config.crop, config.jitter, config.upright
        )

    def targets(self, labels_BHW: Tensor) -> Tensor:
        """The pixel in the middle of each cell of ``label_stride``."""
        height, width = labels_BHW.shape[1:]
        return resize_labels(
            labels_BHW, (height // self.config.label_stride, width // self.config.label_stride)
        )

    def criterion(self, outputs: Any, labels_BHW: Tensor, weights_BHW: Tensor | None) -> Tensor:
        """Cross-entropy of logits stretched to the labels."""
        logits = F.interpolate(
            outputs.float(), labels_BHW.shape[1:], mode="bilinear", align_corners=False
        )
        return label_loss(logits, labels_BHW, self.config.balanced, weights_BHW)

    def probabilities(
        self, network: nn.Module, views: Sequence[Tensor], size: tuple[int, int]
    ) -> Tensor:
        """Mean of the probabilities of all views."""
        return mean_probabilities(
            network, views, size, self.config.flip, self.config.pixels, self.config.tile
        )

    def graph(self, network: nn.Module, scales: Sequence[float], flip: bool) -> SegmenterGraph:
        """See ``Segmenter``."""
        from trainer.nets.graphs import SegmenterGraph

        return SegmenterGraph(network, scales, flip)
