"""One image from bytes to finished mask or activation maps, in the steps that server and labeller share.

``prepare`` and the ``*_of`` functions are pure and run in any thread; between them stands a run of the engine. The
labeller calls them in a row, the server puts a queue before the engine. So both give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from serving import buckets, masks
from serving.engines import Outputs, check_outputs
from serving.errors import ImageTooLarge, OutputError
from serving.image import Picture, Pixels
from serving.repository import Card


@dataclass(frozen=True)
class Prepared:
    """An image ready for the engine.

    Attributes:
        height, width: of the upright image.
        inner: height and width of its scaled form, which is the upper left part of ``batch``.
        batch: uint8 [1,h,w,3], of a size within the model's limits.
    """

    height: int
    width: int
    inner: tuple[int, int]
    batch: Pixels

    @property
    def model_size(self) -> tuple[int, int]:
        """Height and width that the model sees."""
        return self.batch.shape[1], self.batch.shape[2]


@dataclass(frozen=True)
class Segmented:
    """A finished segmentation at the size of the image.

    Attributes:
        labels: uint8 [H,W], 0 background, k+1 class k.
        confidence: uint8 [H,W].
        scores: float32 [K].
        areas: int64 [K+1], pixels of each label.
    """

    labels: Pixels
    confidence: Pixels
    scores: npt.NDArray[np.float32]
    areas: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Activated:
    """Finished activation maps: float32 [K,h,w] of 0..1 that cover the whole image, and scores float32 [K]."""

    maps: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]


def model_size(height: int, width: int, card: Card) -> tuple[int, int]:
    """The size at which ``card``'s model sees an image: the image's own if the limits allow, else scaled, aspect kept.

    Raises:
        ImageTooLarge: so elongated that no scale puts both sides within the limits.
    """
    scale = min(1.0, card.max_side / max(height, width), math.sqrt(card.max_pixels / (height * width)))
    scale = max(scale, card.min_side / min(height, width))
    if scale == 1.0:
        return height, width
    tall, wide = (max(card.min_side, math.floor(side * scale + 1e-6)) for side in (height, width))
    if max(tall, wide) > card.max_side or tall * wide > card.max_pixels:
        raise ImageTooLarge(
            f"an image of {height}x{width} is too elongated for model {card.name!r}",
            f"sides of {card.min_side} to {card.max_side} and at most {card.max_pixels:,} pixels after scaling",
            "cut it into pieces",
            field="image",
            metadata={"min_side": str(card.min_side), "max_side": str(card.max_side)},
        )
    return tall, wide


def prepare(picture: Picture, card: Card, bucket: int = 1) -> Prepared:
    """Bring a picture to a size that the model takes, its sides rounded up to a multiple of ``bucket`` by padding.

    Raises:
        ImageTooLarge: see :func:`model_size`.
    """
    height, width = picture.pixels.shape[:2]
    tall, wide = model_size(height, width, card)
    pixels = picture.pixels
    if (tall, wide) != (height, width):
        pixels = np.asarray(Image.fromarray(pixels).resize((wide, tall), Image.Resampling.BILINEAR))
    padded = buckets.pad(pixels, *buckets.bucket_size(tall, wide, bucket, card))
    return Prepared(height, width, (tall, wide), padded[None])


def segmented(outputs: Outputs, prepared: Prepared, card: Card, kept: Sequence[int] | None = None) -> Segmented:
    """The engine's answer at the size of the image.

    Args:
        outputs: of the engine, for a batch of one.
        prepared: what the engine was given.
        card: of the model.
        kept: labels to keep; pixels of the others become background with confidence 0. None keeps all.

    Raises:
        OutputError: the graph broke its promise.
    """
    check_outputs(card, outputs, 1, *prepared.model_size)
    labels, confidence = (
        masks.resize_nearest(
            buckets.crop(cast(Pixels, outputs[name])[0], prepared.inner, prepared.model_size),
            prepared.height,
            prepared.width,
        )
        for name in ("mask", "confidence")
    )
    if kept is not None:
        whole, labels = labels, masks.keep_labels(labels, kept)
        confidence = np.where(whole == labels, confidence, np.uint8(0))
    counts = masks.count_labels(labels)
    if counts[len(card.labels) :].any():
        raise OutputError(f"a mask of {card.name} has the label {int(labels.max())}", f"0 to {len(card.classes)}")
    return Segmented(labels, confidence, _scores(outputs, card), counts[: len(card.labels)])


def activated(outputs: Outputs, prepared: Prepared, card: Card) -> Activated:
    """The engine's activation maps, every class.

    Raises:
        OutputError: the graph broke its promise.
    """
    check_outputs(card, outputs, 1, *prepared.model_size)
    maps = buckets.crop(cast("npt.NDArray[np.float32]", outputs["cam"])[0], prepared.inner, prepared.model_size)
    if not np.isfinite(maps).all():
        raise OutputError(f"the activation maps of {card.name} are not all finite", "numbers of 0 to 1")
    return Activated(maps, _scores(outputs, card))


def _scores(outputs: Outputs, card: Card) -> npt.NDArray[np.float32]:
    scores: npt.NDArray[np.float32] = cast("npt.NDArray[np.float32]", outputs["scores"])[0]
    if not np.isfinite(scores).all():
        raise OutputError(f"the scores of {card.name} are not all finite", "numbers of 0 to 1")
    return scores
