"""One image from bytes to finished mask or activation maps, in the steps that server and labeller
share.

``prepare`` and ``Answer`` are pure and run in any thread; between them stand the runs of the
engine, one a tile. The labeller calls them in a row, the server puts a queue before the engine. So
both give the same bytes.
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
# A pixel: label, confidence, their copies while they are resized and encoded.
FINISH_BYTES = 8
# Below it, ``auto`` cuts an image rather than scale it.
AUTO_SCALE = 0.5


@dataclass(frozen=True)
class Canvas:
    """An image ready for the engine.

    Attributes:
        height, width: of the upright image.
        inner: height and width of its scaled form, which is the upper left part of ``batch``.
        batch: uint8 [1,h,w,3], of a size within the model's limits unless it is to be cut.
        tiling: how it is cut; a single tile for the whole.
    """

    height: int
    width: int
    inner: tuple[int, int]
    batch: Pixels
    tiling: Tiling

    @property
    def model_size(self) -> tuple[int, int]:
        """Height and width that the model sees at a time."""
        return self.tiling.tile

    def rows(self) -> Iterator[list[Pixels]]:
        """What to run: the tiles row by row, each uint8 [1,h,w,3]."""
        return self.tiling.rows(self.batch[0])


@dataclass(frozen=True)
class Segmented:
    """A finished segmentation at the size of the image.

    Attributes:
        labels: uint8 [H,W], 0 background, k+1 class k, 255 undecided.
        confidence: uint8 [H,W].
        scores: float32 [K].
        runs: of ``labels``.
        areas: int64 [K+1], pixels of each label.
        activated: the maps that the mask was made from, of a CAM model.
    """

    labels: Pixels
    confidence: Pixels
    scores: Floats
    runs: Runs
    areas: npt.NDArray[np.int64]
    activated: Activated | None = None


@dataclass(frozen=True)
class Activated:
    """Finished activation maps.

    Attributes:
        classes: indices of the k classes with a map, rising.
        maps: float32 [k,h,w] of 0..1 that cover the whole image.
        scores: float32 [K].
    """

    classes: tuple[int, ...]
    maps: Floats
    scores: Floats


def model_size(height: int, width: int, card: Card) -> tuple[int, int]:
    """The size at which ``card``'s model sees an image: the image's own if the limits allow, else
    scaled, aspect kept.

    Raises:
        ImageTooLarge: so elongated that no scale puts both sides within the limits.
    """
    scale = min(
        1.0, card.max_side / max(height, width), math.sqrt(card.max_pixels / (height * width))
    )
    scale = max(scale, card.min_side / min(height, width))
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
    """Whether an image of this size is cut: it is above the model's limits, each side has room for
    a tile, and ``rule``.
    """
    scale = min(card.max_side / max(height, width), math.sqrt(card.max_pixels / (height * width)))
    if scale >= 1.0 or min(height, width) < card.min_side:
        return False
    return rule == "tile" or (rule == "auto" and scale < AUTO_SCALE)


def prepare(picture: Picture, card: Card, bucket: int = 1, tiles: TilingConfig = SCALED) -> Canvas:
    """Bring a picture to a size that the model takes: whole, scaled, or in tiles.

    Args:
        picture: upright.
        card: of the model.
        bucket: sides of an image that is not cut are rounded up to a multiple of this by padding.
        tiles: what becomes of an image above the model's limits.

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
        pixels = np.asarray(Image.fromarray(pixels).resize((wide, tall), Image.Resampling.BILINEAR))
    outer = buckets.bucket_size(tall, wide, bucket, card)
    return Canvas(
        height, width, (tall, wide), buckets.pad(pixels, *outer)[None], Tiling(outer, outer)
    )


def finish_bytes(canvas: Canvas) -> int:
    """Memory that making a mask of the image's size takes at most."""
    return FINISH_BYTES * canvas.height * canvas.width


class Answer:
    """What the engine says of an image, tile by tile, and what becomes of it.

    Args:
        prepared: what the engine is given.
        card: of the model.
        options: what is asked for.
    """

    def __init__(self, canvas: Canvas, card: Card, options: Options) -> None:
        self._canvas, self._card, self._options = canvas, card, options
        self._scores: Floats = np.zeros(len(card.classes), np.float32)
        self._masks = tiling.MaskStitcher(canvas.tiling) if card.kind == "segmenter" else None
        self._maps = tiling.MapStitcher(canvas.tiling)

    def add(self, row: Sequence[Outputs]) -> None:
        """The engine's outputs for the next of ``prepared.rows()``.

        Raises:
            OutputError: the graph broke its promise.
        """
        for outputs in row:
            check_outputs(self._card, outputs, 1, *self._canvas.model_size)
            self._scores = np.maximum(self._scores, _finite(outputs, "scores", self._card))
        if self._masks:
            self._masks.add([self._mask_of(outputs) for outputs in row])
        else:
            self._maps.add([self._maps_of(outputs) for outputs in row])

    def segmented(self) -> Segmented:
        """The mask, once every row was added. Of a CAM model it is made from the maps."""
        labels, confidence, activated = self._labels()
        options = self._options
        if options.confidence_threshold:
            sure = confidence >= np.float32(255 * options.confidence_threshold)
            labels = np.where(sure, labels, np.uint8(masks.UNDECIDED))
        if options.classes or options.tags:
            names = set(options.classes or options.tags) & set(options.tags or options.classes)
            whole, labels = (
                labels,
                masks.keep_labels(labels, [k + 1 for k in names] + [masks.UNDECIDED]),
            )
            confidence = np.where(whole == labels, confidence, np.uint8(0))
        runs = encodings.label_runs(labels)
        areas = encodings.areas(runs)[: len(self._card.labels)]
        return Segmented(labels, confidence, self._scores, runs, areas, activated)

    def activated(self) -> Activated:
        """The maps of a CAM model, once every row was added: those of the tags, else of the classes
        that score enough.
        """
        classes, cells = self._maps.finish()
        cropped = buckets.crop(cells, self._canvas.inner, self._canvas.tiling.image)
        return Activated(classes, cropped, self._scores)

    def _labels(self) -> tuple[Pixels, Pixels, Activated | None]:
        height, width = self._canvas.height, self._canvas.width
        if self._masks:
            labels, confidence = (
                masks.resize_nearest(
                    buckets.crop(map_, self._canvas.inner, self._canvas.tiling.image),
                    height,
                    width,
                )
                for map_ in (self._masks.labels, self._masks.confidence)
            )
            return labels, confidence, None
        cam = self.activated()
        ground = cast(float, self._options.background_threshold)
        return (
            *maps.to_mask(cam.maps, [k + 1 for k in cam.classes], ground, height, width),
            cam,
        )

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
            np.flatnonzero(scores >= self._options.score_threshold).tolist()
        )
        return TileMaps(classes, cells[list(classes)], scores)


def segment(
    canvas: Canvas, card: Card, options: Options, run: Callable[[Inputs], Outputs]
) -> Segmented:
    """The mask of an image, its tiles run one after another.

    Raises:
        OutputError: the graph broke its promise.
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
