"""What tells one segmenter from another. ``trainer.segmenters.prediction`` does what they share,
and calls these members.

Shapes: B images, L = K + 1 labels with the background, H W pixels, h w logits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from trainer.data.loader import Batch
from trainer.data.sizes import PIXELS
from trainer.data.transforms import IMAGENET_PIXELS, PixelScale, Rng, color_jitter, shift_hsv
from trainer.methods.pooling import lse
from trainer.methods.tag_loss import tag_loss
from trainer.nets.backbone import Backbone
from trainer.segmenters.config import SegmentConfig
from trainer.segmenters.noise import heard
from trainer.training.averaging import Teacher
from trainer.training.inference import Views, in_parts
from trainer.training.tiles import in_tiles
from trainer.weights.loading import LoadReport

if TYPE_CHECKING:
    from trainer.nets.graphs import SegmenterGraph

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class Segmenter(ABC):
    """A network, and how it is trained and asked.

    Args:
        config: knobs, whose ``network`` is this one.
        backbone: the run's backbone.
        num_classes: K.

    Attributes:
        teacher: the averaged network during a training; None elsewhere.
    """

    unused: tuple[str, ...] = ()
    """Knobs that mean nothing here."""

    own_backbone: str = ""
    """Name of the backbone that its network always has; empty where it takes the run's."""

    def __init__(self, config: SegmentConfig, backbone: str, num_classes: int) -> None:
        self.config, self.backbone, self.num_classes = config, backbone, num_classes
        self.teacher: Teacher | None = None

    @property
    def pixels(self) -> PixelScale:
        """How pixels reach the network."""
        return IMAGENET_PIXELS

    @classmethod
    def decided_by(cls, path: Path | None, config: SegmentConfig) -> dict[str, Any]:
        """Knobs of ``config`` left at ``auto`` that a weight file decides, or None for the run's
        classifier.
        """
        return {}

    @abstractmethod
    def build(self) -> nn.Module:
        """The network with random weights. Its state dict has the released names where there are
        some.
        """

    @abstractmethod
    def load(self, network: nn.Module, path: Path) -> LoadReport:
        """Copy a weight file into ``network``: a whole one, or what training starts from.

        Raises:
            WeightsError: of another network, layout or number of classes; nothing is changed.
        """

    @abstractmethod
    def take_backbone(self, network: nn.Module, backbone: Backbone) -> None:
        """Start from a trained backbone of the run's kind, which ``own_backbone`` is."""

    @abstractmethod
    def groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """Optimiser groups."""

    @abstractmethod
    def sample(self, image_HW3: Pixels, mask_HW: Pixels, rng: Rng) -> tuple[Tensor, Tensor]:
        """Training view ``float32 [3,crop,crop]`` and label ``uint8 [crop,crop]``, 255 outside of
        the image.
        """

    @abstractmethod
    def criterion(self, outputs: Any, labels_BHW: Tensor, weights_BHW: Tensor | None) -> Tensor:
        """The loss of what the network returns in train mode."""

    @abstractmethod
    def probabilities(
        self, network: nn.Module, views: Sequence[Tensor], size: tuple[int, int]
    ) -> Tensor:
        """The test: soft-max probabilities ``[B,L,*size]`` from one ``[B,3,h,w]`` a view, in eval
        mode.
        """

    @abstractmethod
    def graph(self, network: nn.Module, scales: Sequence[float], flip: bool) -> SegmenterGraph:
        """The network with everything around it, for export."""

    def views(self) -> Views:
        """What the test reads of each image."""
        return Views(self.config.scales, pixels=self.pixels)

    def targets(self, labels_BHW: Tensor) -> Tensor:
        """Labels at the places where the loss looks at them."""
        return labels_BHW

    def loss(self, network: nn.Module, batch: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        """``ce`` of ``image`` and ``label``. A teacher also needs the ``possible`` labels.

        With ``tags`` as ``visible_tags`` makes them, also ``tags``: the class and the background
        compete for the image as they do for a pixel.

        With ``is_true``, bool ``[B]``, the images with a true mask weigh as much as the others,
        and no teacher corrects their labels: ``ce_masks`` and ``ce_tags``.
        """
        images, labels = batch["image"], self.targets(batch["label"])
        weights, is_true = None, batch.get("is_true")
        teacher = None if self.config.teacher == "none" else self.teacher
        if teacher is not None and teacher.progress >= self.config.teacher_after:
            # Views are padded with zeros after normalisation; see ``sample``.
            inside = self.targets((images != 0).any(1).to(torch.uint8)) > 0
            truth, logits = labels, teacher(images)
            labels, weights = heard(labels, logits, batch["possible"], self.config, inside)
            if is_true is not None:
                rows = is_true[:, None, None]
                labels = torch.where(rows, truth, labels)
                weights = None if weights is None else weights.masked_fill(rows, 1)
        outputs = network(images)
        terms: dict[str, Tensor] = {}
        if self.config.tag_loss:
            wins = outputs[:, 1:] - outputs[:, :1]
            terms["tags"] = self.config.tag_loss * tag_loss(lse(wins.float()), batch["tags"])
        if is_true is None:
            return {"ce": self.criterion(outputs, labels, weights), **terms}
        groups = {"ce_masks": is_true, "ce_tags": ~is_true}
        present = {name: rows for name, rows in groups.items() if rows.any()}
        losses = {
            name: self.criterion(_rows(outputs, r), labels[r], _rows(weights, r)) / len(present)
            for name, r in present.items()
        }
        return losses | terms

    def draw_scale(self, rng: Rng) -> float:
        """The random resize factor of one training view."""
        if self.config.scale_draw == "set":
            return float(rng.choice(self.config.scale))
        low, high = self.config.scale
        return float(rng.uniform(low, high))

    def recolour(self, image: Image.Image, rng: Rng) -> Image.Image:
        """The shifts of colour that were asked for."""
        if self.config.hsv:
            image = shift_hsv(image, rng, self.config.hsv)
        return color_jitter(image, rng) if self.config.jitter else image


def _rows(outputs: Any, rows: Tensor) -> Any:
    """The images ``rows`` of what a network returns: a tensor, several of them, or None."""
    if isinstance(outputs, Tensor):
        return outputs[rows]
    return None if outputs is None else type(outputs)(_rows(each, rows) for each in outputs)


def mean_probabilities(
    network: nn.Module,
    views: Sequence[Tensor],
    size: tuple[int, int],
    flip: bool,
    pixels: int = PIXELS,
    tile: int = 0,
) -> Tensor:
    """Mean over views, and their mirror images with ``flip``, of the soft-max of logits resized to
    ``size``.
    """
    total = torch.zeros(())
    for images in views:
        pair = torch.cat([images, images.flip(3)]) if flip else images
        look = partial(in_parts, network, pixels=pixels)
        logits = in_tiles(look, pair, tile).float()
        straight = _chances(logits[: len(images)], size)
        # The first view's memory holds the sum.
        total = straight if total.ndim == 0 else total.add_(straight)
        if flip:
            total.add_(_chances(logits[len(images) :], size).flip(3))
    # The sum over the labels is the number of views, up to rounding.
    return total.div_(total.sum(1, keepdim=True))


def _chances(logits_BLhw: Tensor, size: tuple[int, int]) -> Tensor:
    """Soft-max of logits resized to ``size``."""
    logits = nn.functional.interpolate(logits_BLhw, size, mode="bilinear", align_corners=False)
    # Logits are channels-last, and the soft-max over another than the last axis would copy them.
    return logits.permute(0, 2, 3, 1).softmax(-1).permute(0, 3, 1, 2)
