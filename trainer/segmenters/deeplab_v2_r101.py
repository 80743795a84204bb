"""``deeplab-v2-r101``: the segmenter of Mixup-CAM, MVA, SC-CAM and VWE, as deeplab-pytorch trains
and tests it.

Chen et al., "DeepLab", TPAMI 2018. The network looks at three scales and takes the
largest logit of each pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from trainer.data.dataset import IGNORE
from trainer.data.transforms import PixelScale, Rng, normalise, to_tensor
from trainer.nets.backbone import Backbone
from trainer.nets.deeplab_v2 import CAFFE, INPUTS, TORCHVISION, DeepLabV2ResNet101, take_torchvision
from trainer.segmenters.base import Pixels, Segmenter, mean_probabilities
from trainer.segmenters.config import SegmentConfig
from trainer.segmenters.losses import multi_scale_loss
from trainer.weights.deeplab_v2 import layout_of, load_deeplab_v2
from trainer.weights.loading import LoadReport

if TYPE_CHECKING:
    from trainer.nets.graphs import SegmenterGraph


class DeepLabV2(Segmenter):
    """See the module. ``stride_on`` and ``input`` left at ``auto`` are Caffe's."""

    unused = ("tag_loss", "output_stride", "detail", "tile", "upright", "bn", "label_stride")
    own_backbone = "resnet101"

    @classmethod
    def decided_by(cls, path: Path | None, config: SegmentConfig) -> dict[str, Any]:
        """Stride and pixels that the weights were made for."""
        layout = TORCHVISION if path is None else layout_of(path) or CAFFE
        return {k: v for k, v in layout._asdict().items() if getattr(config, k) == "auto"}

    @property
    def pixels(self) -> PixelScale:
        """See ``Segmenter``."""
        return INPUTS[CAFFE.input if self.config.input == "auto" else self.config.input]

    def build(self) -> nn.Module:
        """See ``Segmenter``."""
        config = self.config
        stride_on = CAFFE.stride_on if config.stride_on == "auto" else config.stride_on
        input = CAFFE.input if config.input == "auto" else config.input
        return DeepLabV2ResNet101(
            self.num_classes + 1, config.rates, config.msc, stride_on, input, config.width
        )

    def load(self, network: nn.Module, path: Path) -> LoadReport:
        """See ``Segmenter``."""
        return load_deeplab_v2(cast(DeepLabV2ResNet101, network), path)

    def take_backbone(self, network: nn.Module, backbone: Backbone) -> None:
        """See ``Segmenter``. The run's ResNet-101 has torchvision's layout."""
        take_torchvision(cast(DeepLabV2ResNet101, network), backbone)

    def groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """See ``DeepLabV2ResNet101.param_groups``."""
        config = self.config
        return cast(DeepLabV2ResNet101, network).param_groups(
            config.lr, config.weight_decay, config.new_factor
        )

    def sample(self, image_HW3: Pixels, mask_HW: Pixels, rng: Rng) -> tuple[Tensor, Tensor]:
        """As deeplab-pytorch: scale, pad below and right by the mean colour and 255, crop, flip,
        subtract the mean.

        The image is resized as OpenCV does it, bilinear between pixel centres without a wider
        filter where it shrinks; the label as Pillow's nearest. Sides are cut to whole pixels.
        """
        crop, factor = self.config.crop, self.draw_scale(rng)
        height, width = (max(1, int(side * factor)) for side in mask_HW.shape)
        label = np.asarray(
            Image.fromarray(mask_HW).resize((width, height), Image.Resampling.NEAREST)
        )
        top, left = (int(rng.integers(0, max(side - crop, 0) + 1)) for side in (height, width))
        mirror = rng.random() < 0.5
        pixels = np.asarray(self.recolour(Image.fromarray(image_HW3), rng))
        planes = to_tensor(pixels.astype(np.float32))[None]
        planes = F.interpolate(planes, (height, width), mode="bilinear", align_corners=False)[0]
        view = normalise(
            planes[:, top : top + crop, left : left + crop].permute(1, 2, 0).numpy(), self.pixels
        )
        cut = label[top : top + crop, left : left + crop]
        # The mean colour is zero once it is subtracted.
        canvas, target = (
            np.zeros((crop, crop, 3), np.float32),
            np.full((crop, crop), IGNORE, np.uint8),
        )
        canvas[: len(view), : view.shape[1]], target[: len(cut), : cut.shape[1]] = view, cut
        if mirror:
            canvas, target = canvas[:, ::-1], target[:, ::-1]
        return to_tensor(canvas), torch.from_numpy(target.copy())

    def criterion(self, outputs: Any, labels_BHW: Tensor, weights_BHW: Tensor | None) -> Tensor:
        """Sum over the scales and their maximum, each at its own size."""
        return multi_scale_loss(outputs, labels_BHW, self.config.balanced, weights_BHW)

    def probabilities(
        self, network: nn.Module, views: Sequence[Tensor], size: tuple[int, int]
    ) -> Tensor:
        """Mean over the views; as released, the image itself is the only one."""
        return mean_probabilities(network, views, size, self.config.flip, self.config.pixels)

    def graph(self, network: nn.Module, scales: Sequence[float], flip: bool) -> SegmenterGraph:
        """See ``Segmenter``."""
        from trainer.nets.graphs import SegmenterGraph

        return SegmenterGraph(network, scales, flip, self.pixels)
