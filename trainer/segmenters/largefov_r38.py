"""``largefov-r38``: the segmenter of SEAM and CPN, as SEAM's segmentation code base trains and
tests it.

Chen et al., ICLR 2015, on ResNet-38. Views of the test are merged by the
mean of their logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from trainer.data.dataset import IGNORE
from trainer.data.sizes import PIXELS
from trainer.data.transforms import Rng, normalise, random_crops, to_tensor
from trainer.nets.backbone import Backbone
from trainer.nets.largefov import LargeFOVResNet38
from trainer.segmenters.base import Pixels, Segmenter
from trainer.segmenters.losses import label_loss
from trainer.training.inference import Views, in_parts
from trainer.weights.largefov import load_largefov
from trainer.weights.loading import LoadReport

if TYPE_CHECKING:
    from trainer.nets.graphs import SegmenterGraph


class LargeFOV(Segmenter):
    """See the module."""

    unused = (
        "tag_loss",
        "rates",
        "output_stride",
        "detail",
        "tile",
        "upright",
        "label_stride",
        "msc",
        "stride_on",
        "input",
    )
    own_backbone = "resnet38"

    def build(self) -> nn.Module:
        """See ``Segmenter``."""
        return LargeFOVResNet38(self.num_classes + 1, self.config.bn, self.config.width)  # type: ignore[arg-type]

    def load(self, network: nn.Module, path: Path) -> LoadReport:
        """See ``Segmenter``."""
        return load_largefov(cast(LargeFOVResNet38, network), path)

    def take_backbone(self, network: nn.Module, backbone: Backbone) -> None:
        """See ``Segmenter``."""
        cast(LargeFOVResNet38, network).backbone.load_state_dict(backbone.state_dict())

    def groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """See ``LargeFOVResNet38.param_groups``."""
        config = self.config
        return cast(LargeFOVResNet38, network).param_groups(
            config.lr, config.weight_decay, config.new_factor
        )

    def sample(self, image_HW3: Pixels, mask_HW: Pixels, rng: Rng) -> tuple[Tensor, Tensor]:
        """As released: shift colours, flip, scale (bicubic, nearest), normalise, crop or pad with 0
        and 255 at a random place.
        """
        image = np.asarray(self.recolour(Image.fromarray(image_HW3), rng))
        if rng.random() < 0.5:
            image, mask_HW = image[:, ::-1], mask_HW[:, ::-1]
        factor = self.draw_scale(rng)
        size = tuple(max(1, round(side * factor)) for side in mask_HW.shape)
        planes = to_tensor(image.astype(np.float32))[None]
        # OpenCV's cubic, which does not widen where it shrinks, and its 8 bits.
        planes = (
            F.interpolate(planes, size, mode="bicubic", align_corners=False)[0]
            .round()
            .clamp(0, 255)
        )
        label = F.interpolate(torch.from_numpy(mask_HW.copy())[None, None], size, mode="nearest")[
            0, 0
        ].numpy()
        view = normalise(planes.permute(1, 2, 0).numpy(), self.pixels)
        parts: list[tuple[npt.NDArray[np.generic], float]] = [(view, 0.0), (label, IGNORE)]
        cut, target = random_crops(parts, self.config.crop, rng)
        return to_tensor(cut.astype(np.float32, copy=False)), torch.from_numpy(
            target.astype(np.uint8, copy=False)
        )

    def criterion(self, outputs: Any, labels_BHW: Tensor, weights_BHW: Tensor | None) -> Tensor:
        """Cross-entropy at the size of the crop."""
        return label_loss(outputs, labels_BHW, self.config.balanced, weights_BHW)

    def views(self) -> Views:
        """The image itself: its views are made of its normalised pixels, on the device."""
        return Views((1.0,))

    def probabilities(
        self, network: nn.Module, views: Sequence[Tensor], size: tuple[int, int]
    ) -> Tensor:
        """See ``multi_scale_probabilities``."""
        config = self.config
        return multi_scale_probabilities(
            network, views[0], config.scales, config.flip, config.pixels
        )

    def graph(self, network: nn.Module, scales: Sequence[float], flip: bool) -> SegmenterGraph:
        """See ``Segmenter``. Its views are the graph's own, resized as Pillow does it."""
        from trainer.nets.graphs import SegmenterGraph

        return SegmenterGraph(network, scales, flip, merge="logits", align_corners=True)


@torch.no_grad()
def multi_scale_probabilities(
    network: nn.Module,
    images_B3HW: Tensor,
    scales: Sequence[float],
    flip: bool,
    pixels: int = PIXELS,
) -> Tensor:
    """Soft-max of the mean logits over scales and mirror images, ``[B,L,H,W]``.

    Views are bicubic resizes of the normalised image; logits of each are resized to the image
    (bilinear, corners aligned) and mirrored back before the mean. A view and its mirror image are
    one batch.

    Args:
        network: images ``[B,3,h,w]`` to logits ``[B,L,h,w]``, in eval mode.
        images_B3HW: normalised.
        scales: of the views.
        flip: whether each view is seen mirrored too.
        pixels: of a forward pass, at most.
    """
    count, _, height, width = images_B3HW.shape
    total = torch.zeros((), device=images_B3HW.device)
    for scale in scales:
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        view = images_B3HW
        if size != (height, width):
            view = F.interpolate(images_B3HW, size, mode="bicubic", align_corners=False)
        pair = torch.cat([view, view.flip(3)]) if flip else view
        logits = in_parts(network, pair, pixels)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        # Bilinear with aligned corners commutes with mirroring, so one resize does for both.
        both = logits[:count] + logits[count:].flip(3) if flip else logits
        total = total + F.interpolate(both, (height, width), mode="bilinear", align_corners=True)
    return (total / (len(scales) * (1 + flip))).softmax(1)
