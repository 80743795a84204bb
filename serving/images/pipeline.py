"""One image from bytes to its mask or activation maps, in steps that server and labeller share.

``prepare`` and ``Answer`` are pure and run in any thread. Between them the engine runs once per
tile: the labeller calls it directly, the server through a queue. Both give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from serving.card import Card
from serving.config import OversizeRule, TilingConfig
from serving.engines import Inputs, Outputs, check_outputs
from serving.errors import ImageTooLarge, OutputError
from serving.images import buckets, encodings, maps, masks, tiling
from serving.images.decoding import Picture
from serving.images.encodings import Runs
from serving.images.options import Options
from serving.images.rgb import Pixels
from serving.images.tiling import TileMaps, Tiling

Floats = npt.NDArray[np.float32]

SCALED = TilingConfig(oversize="scale")
# Bytes per pixel: label and confidence, and their copies while they are resized and encoded.
FINISH_BYTES = 8
# ``auto`` tiles an image that it would have to scale below this.
AUTO_SCALE = 0.5


@dataclass(frozen=True)
class Canvas:
    """An image ready for the engine.

    Attributes:
        height, width: of the upright image.
        inner: height and width of the scaled image, the upper left part of ``batch``.
        batch: uint8 [1,h,w,3], within the model's limits unless it is cut into tiles.
        tiling: a single tile for the whole image, or several.
    """

    height: int
    width: int
    inner: tuple[int, int]
    batch: Pixels
    tiling: Tiling

    @property
    def model_size(self) -> tuple[int, int]:
        """Height and width of one input of the model."""
        return self.tiling.tile

    def rows(self) -> Iterator[list[Pixels]]:
        """What to run: rows of tiles, each uint8 [1,h,w,3]."""
        return self.tiling.rows(self.batch[0])


@dataclass(frozen=True)
class Segmented:
    """A segmentation at the image's size.

    Attributes:
        labels: uint8 [H,W], 0 background, k+1 class k, 255 undecided.
        confidence: uint8 [H,W].
        scores: float32 [K].
        runs: of ``labels``.
        areas: int64 [K+1], pixels per label.
        activated: the maps behind the mask of a CAM model.
        doubt: estimated share of wrong pixels of the model's own mask, before tags, classes and
            thresholds of the request change it; None of a model that does not give it. Of several
            tiles it is their mean.
    """

    labels: Pixels
    confidence: Pixels
    scores: Floats
    runs: Runs
    areas: npt.NDArray[np.int64]
    activated: Activated | None = None
    doubt: float | None = None


@dataclass(frozen=True)
class Activated:
    """Activation maps.

    Attributes:
        classes: ascending indices of the k classes with a map.
        maps: float32 [k,h,w], 0..1, covering the whole image.
        scores: float32 [K].
    """

    classes: tuple[int, ...]
    maps: Floats
    scores: Floats


def model_size(height: int, width: int, card: Card) -> tuple[int, int]:
    """The size at which the model sees an image: its own or the one that the model asks for, scaled
    into the limits with its aspect.

    Raises:
        ImageTooLarge: no scale puts both sides within the limits.
    """
    wanted = card.side / max(height, width) if card.side else 1.0
    scale = min(
        wanted, card.max_side / max(height, width), math.sqrt(card.max_pixels / (height * width))
    )
    scale = max(scale, card.min_side / min(height, width))
    # A side of exactly the limit must not lose a pixel to rounding.
    tall, wide = (max(card.min_side, math.floor(side * scale + 1e-6)) for side in (height, width))
    if max(tall, wide) > card.max_side or tall * wide > card.max_pixels:
        raise ImageTooLarge(
            f"an image of {height}x{width} is too elongated for model {card.name!r}",
            f"sides of {card.min_side} to {card.max_side} and at most {card.max_pixels:,} pixels"
            " after scaling",
            "cut it into pieces",
            field="image",
            metadata={"min_side": str(card.min_side), "max_side": str(card.max_side)},
        )
    return tall, wide


def is_tiled(height: int, width: int, card: Card, rule: OversizeRule) -> bool:
    """Whether ``rule`` cuts an image of this size, which must exceed the limits and have room for a
    tile.
    """
    # In tiles, objects would have another size than in the training.
    if card.side:
        return False
    scale = min(card.max_side / max(height, width), math.sqrt(card.max_pixels / (height * width)))
    if scale >= 1.0 or min(height, width) < card.min_side:
        return False
    return rule == "tile" or (rule == "auto" and scale < AUTO_SCALE)


def prepare(picture: Picture, card: Card, bucket: int = 1, tiles: TilingConfig = SCALED) -> Canvas:
    """Bring a picture to a size that the model takes: whole, scaled, or in tiles.

    Args:
        picture: upright.
        bucket: sides of an uncut image are padded to a multiple of this.
        tiles: treatment of an image above the model's limits.

    Raises:
        ImageTooLarge: see :func:`model_size` and :func:`serving.images.tiling.plan`.
    """
    pixels = picture.pixels
    height, width = pixels.shape[:2]
    if is_tiled(height, width, card, tiles.oversize):
        cut = tiling.plan(
            height, width, card.max_side, card.max_pixels, tiles.overlap, tiles.max_tiles
        )
        return Canvas(height, width, (height, width), pixels[None], cut)
    tall, wide = model_size(height, width, card)
    if (tall, wide) != (height, width):
        # A model that wants a size was trained on images resized like this.
        way = Image.Resampling.BICUBIC if card.side else Image.Resampling.BILINEAR
        pixels = np.asarray(Image.fromarray(pixels).resize((wide, tall), way))
    outer = buckets.bucket_size(tall, wide, bucket, card)
    return Canvas(
        height, width, (tall, wide), buckets.pad(pixels, *outer)[None], Tiling(outer, outer)
    )


def finish_bytes(canvas: Canvas) -> int:
    """Peak memory of making a mask of the image's size."""
    return FINISH_BYTES * canvas.height * canvas.width


class Answer:
    """Collects the engine's outputs for an image, tile by tile, and turns them into a result."""

    def __init__(self, canvas: Canvas, card: Card, options: Options) -> None:
        self._canvas, self._card, self._options = canvas, card, options
        self._scores: Floats = np.zeros(len(card.classes), np.float32)
        self._doubts: list[float] = []
        self._masks = tiling.MaskStitcher(canvas.tiling) if card.kind == "segmenter" else None
        self._maps = tiling.MapStitcher(canvas.tiling)

    def add(self, row: Sequence[Outputs]) -> None:
        """Take the engine's outputs for the next of ``canvas.rows()``.

        Raises:
            OutputError: the outputs differ from the card's promise.
        """
        for outputs in row:
            check_outputs(self._card, outputs, 1, *self._canvas.model_size)
            self._scores = np.maximum(self._scores, _finite(outputs, "scores", self._card))
            if self._card.gives_doubt:
                self._doubts.append(float(_finite(outputs, "doubt", self._card)[0]))
        if self._masks:
            self._masks.add([self._mask_of(outputs) for outputs in row])
        else:
            self._maps.add([self._maps_of(outputs) for outputs in row])

    def segmented(self) -> Segmented:
        """The mask, after the last row. That of a CAM model is made from its maps."""
        labels, confidence, activated = self._labels()
        options = self._options
        if options.confidence_threshold:
            sure = confidence >= np.float32(255 * options.confidence_threshold)
            labels = np.where(sure, labels, np.uint8(masks.UNDECIDED))
        shown = self._shown()
        if len(shown) < len(self._card.classes):
            whole = labels
            labels = masks.keep_labels(labels, [k + 1 for k in shown] + [masks.UNDECIDED])
            confidence = np.where(whole == labels, confidence, np.uint8(0))
        runs = encodings.label_runs(labels)
        areas = encodings.areas(runs)[: len(self._card.labels)]
        doubt = float(np.mean(self._doubts)) if self._doubts else None
        return Segmented(labels, confidence, self._scores, runs, areas, activated, doubt)

    def _shown(self) -> list[int]:
        """The classes that the mask may hold."""
        options, every = self._options, range(len(self._card.classes))
        # Both lists, where both are given. Tags are known, whatever the scores say.
        wanted = [k for k in every if not options.classes or k in options.classes]
        if options.tags:
            return [k for k in wanted if k in options.tags]
        # The mask of a graph agrees with its own thresholds already, and maps were chosen by them.
        if options.score_thresholds == self._card.score_thresholds:
            return wanted
        return [k for k in wanted if self._scores[k] >= options.score_thresholds[k]]

    def activated(self) -> Activated:
        """The maps of a CAM model, after the last row: of the tags, or of the classes above the
        threshold.
        """
        classes, cells = self._maps.finish()
        cropped = buckets.crop(cells, self._canvas.inner, self._canvas.tiling.image)
        return Activated(classes, cropped, self._scores)

    def _labels(self) -> tuple[Pixels, Pixels, Activated | None]:
        height, width = self._canvas.height, self._canvas.width
        if self._masks:
            labels, confidence = (
                masks.resize_nearest(
                    buckets.crop(map_, self._canvas.inner, self._canvas.tiling.image), height, width
                )
                for map_ in (self._masks.labels, self._masks.confidence)
            )
            return labels, confidence, None
        cam = self.activated()
        ground = cast(float, self._options.background_threshold)
        return (*maps.to_mask(cam.maps, [k + 1 for k in cam.classes], ground, height, width), cam)

    def _mask_of(self, outputs: Outputs) -> tuple[Pixels, Pixels]:
        labels, confidence = (cast(Pixels, outputs[name])[0] for name in ("mask", "confidence"))
        if labels.max() >= len(self._card.labels):
            raise OutputError(
                f"a mask of {self._card.name} has the label {int(labels.max())}",
                f"0 to {len(self._card.classes)}",
            )
        return labels, confidence

    def _maps_of(self, outputs: Outputs) -> TileMaps:
        cells, scores = _finite(outputs, "cam", self._card), _finite(outputs, "scores", self._card)
        classes = self._options.tags or tuple(
            np.flatnonzero(scores >= np.array(self._options.score_thresholds)).tolist()
        )
        return TileMaps(classes, cells[list(classes)], scores)


def segment(
    canvas: Canvas, card: Card, options: Options, run: Callable[[Inputs], Outputs]
) -> Segmented:
    """The mask of an image, its tiles run one after another.

    Raises:
        OutputError: the outputs differ from the card's promise.
    """
    answer = Answer(canvas, card, options)
    for row in canvas.rows():
        answer.add([run({"image": batch}) for batch in row])
    return answer.segmented()


def _finite(outputs: Outputs, name: str, card: Card) -> Floats:
    values: Floats = cast(Floats, outputs[name])[0]
    if not np.isfinite(values).all():
        raise OutputError(
            f"{name} of {card.name} has numbers that are not finite", "numbers of 0 to 1"
        )
    return values
