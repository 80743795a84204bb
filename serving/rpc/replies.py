"""Results as messages of the protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.card import Card, Kind
from serving.errors import FieldError
from serving.images import encodings, maps, masks, polygons
from serving.images.decoding import Picture
from serving.images.options import Options
from serving.images.pipeline import Activated, Canvas, Segmented
from serving.images.rgb import Pixels
from serving.repository.served import Served
from wsss.v1 import segmentation_pb2 as pb

# Pixels of all overlays in a reply; each has the image's size.
MAX_OVERLAY_PIXELS = 50_000_000
SOURCE = ("run", "method", "backbone", "commit", "data_fingerprint")
KINDS: dict[Kind, Any] = {
    "segmenter": pb.MODEL_KIND_SEGMENTER,
    "cam": pb.MODEL_KIND_CAM,
    "tensor": pb.MODEL_KIND_TENSOR,
}


def mask(result: Segmented, encoding: int, card: Card) -> Any:
    """The ``Mask`` of a segmentation. Run lengths and polygons omit classes without a pixel."""
    labels = result.labels
    height, width = labels.shape
    message = pb.Mask(height=height, width=width)
    if encoding == pb.MASK_ENCODING_RAW:
        message.raw = labels.tobytes()
    elif encoding == pb.MASK_ENCODING_LABEL_RUNS:
        message.label_runs.labels = result.runs.labels.tobytes()
        message.label_runs.lengths.extend(result.runs.lengths.tolist())
    elif encoding == pb.MASK_ENCODING_COCO_RLE:
        for label, counts in encodings.coco_counts(labels).items():
            message.coco_rle.classes.add(label=label, counts=counts.decode("ascii"))
        # A mask without any class must still have its data field set.
        message.coco_rle.SetInParent()
    elif encoding == pb.MASK_ENCODING_POLYGONS:
        for label, rings in polygons.rings(labels).items():
            of_class = message.polygons.classes.add(label=label)
            for ring in rings:
                of_class.rings.add(
                    points=[value for point in ring.points for value in point], hole=ring.hole
                )
        message.polygons.SetInParent()
    else:
        message.png = masks.encode_labels(labels, card.palette)
    return message


def overlay(result: Segmented, card: Card, picture: Picture) -> Any:
    """A ``Mask`` whose PNG shows the mask over the image."""
    height, width = result.labels.shape
    pixels = masks.overlay(picture.pixels, result.labels, card.palette)
    return pb.Mask(height=height, width=width, png=masks.encode_rgb(pixels))


def confidence(values: Pixels, encoding: int) -> Any:
    """The ``Confidence`` that goes with a mask of this encoding."""
    height, width = values.shape
    if encoding == pb.MASK_ENCODING_RAW:
        return pb.Confidence(height=height, width=width, raw=values.tobytes())
    return pb.Confidence(height=height, width=width, png=masks.encode_grey(values))


def cam(result: Activated, form: int, card: Card, picture: Picture) -> Any:
    """The ``Cam`` of activation maps.

    Raises:
        FieldError: as overlays they would have more than ``MAX_OVERLAY_PIXELS``.
    """
    names = [card.classes[k] for k in result.classes]
    height, width = result.maps.shape[1:]
    message = pb.Cam(height=height, width=width, classes=names)
    if form == pb.CAM_FORMAT_FLOAT16:
        message.float16 = result.maps.astype("<f2").tobytes()
    elif form == pb.CAM_FORMAT_OVERLAY:
        message.height, message.width = picture.pixels.shape[:2]
        if len(names) * message.height * message.width > MAX_OVERLAY_PIXELS:
            raise FieldError(
                f"overlays of {len(names)} classes for an image of"
                f" {message.height}x{message.width}",
                f"at most {MAX_OVERLAY_PIXELS:,} pixels in all",
                "request fewer tags, or another format",
                field="format",
            )
        message.overlays.png.extend(
            masks.encode_rgb(maps.overlay(picture.pixels, map_)) for map_ in result.maps
        )
        message.overlays.SetInParent()
    else:
        message.uint8 = masks.quantise(result.maps).tobytes()
    return message


def classes(
    card: Card, scores: npt.NDArray[np.float32], options: Options, result: Segmented | None = None
) -> list[Any]:
    """A ``ClassResult`` for each class kept, with area and box if there is a mask.

    A class is present where the mask has it; without a mask, where its score reaches the threshold.
    """
    boxes = encodings.boxes(result.runs, result.labels.shape[1]) if result else {}
    return [
        pb.ClassResult(
            name=card.classes[k],
            label=k + 1,
            score=float(scores[k]),
            present=bool(
                result.areas[k + 1] if result else scores[k] >= options.score_thresholds[k]
            ),
            area=int(result.areas[k + 1]) if result else 0,
            box=_box(boxes[k + 1]) if k + 1 in boxes else None,
        )
        for k in options.classes or range(len(card.classes))
    ]


def _box(box: tuple[int, int, int, int]) -> Any:
    left, top, width, height = box
    return pb.Box(left=left, top=top, width=width, height=height)


def image_info(picture: Picture, canvas: Canvas) -> Any:
    """What was made of the image."""
    tall, wide = canvas.model_size
    return pb.ImageInfo(
        height=canvas.height,
        width=canvas.width,
        model_height=tall,
        model_width=wide,
        format=picture.format,
        mode=picture.mode,
        several_frames=picture.several_frames,
        orientation=picture.orientation,
        tiles=len(canvas.tiling),
    )


def provenance(live: Served, canvas: Canvas, options: Options, overlap: float) -> Any:
    """The model that answered, and its settings."""
    card, tiling = live.card, canvas.tiling
    message = pb.Provenance(
        model=card.name,
        version=card.version,
        sha256=card.graph_sha256,
        engine=live.engine.description,
        score_threshold=options.score_threshold,
        scales=card.scales,
        flip=card.flip,
        protocol=card.protocol,
        bucket=live.bucket if len(tiling) == 1 else 1,
    )
    if options.background_threshold is not None:
        message.background_threshold = options.background_threshold
    if options.confidence_threshold:
        message.confidence_threshold = options.confidence_threshold
    if len(tiling) > 1:
        rows, columns = len(tiling.tops), len(tiling.lefts)
        tall, wide = tiling.tile
        message.tiling.CopyFrom(
            pb.Tiling(height=tall, width=wide, rows=rows, columns=columns, overlap=overlap)
        )
    return message


def model(card: Card, versions: Sequence[int], engine: str) -> Any:
    """A card as the ``Model`` message."""
    message = pb.Model(
        name=card.name,
        version=card.version,
        versions=versions,
        kind=KINDS[card.kind],
        labels=[
            pb.Label(name=name, red=red, green=green, blue=blue)
            for name, (red, green, blue) in zip(card.labels, card.palette)
        ],
        input=pb.InputLimits(
            min_side=card.min_side, max_side=card.max_side, max_pixels=card.max_pixels
        ),
        sha256=card.graph_sha256,
        engine=engine,
        score_threshold=card.score_threshold,
        background_threshold=card.background_threshold,
        scales=card.scales,
        flip=card.flip,
        protocol=card.protocol,
        supervision=card.supervision,
        source=pb.Source(
            **{key: str(card.source.get(key) or "") for key in SOURCE},
            seed=int(card.source.get("seed") or 0),
        ),
    )
    message.metrics.update(card.metrics)
    if len(set(card.score_thresholds)) > 1:
        # Beside ``score_threshold``, the smallest of them.
        own = dict(zip(card.classes, card.score_thresholds, strict=True))
        message.metrics.update({"score_thresholds": own})
    if card.gives_doubt:
        # Without its table, which is long, and which the graph has.
        about = {key: value for key, value in card.doubt.items() if key != "wrong"}
        message.metrics.update({"doubt": about})
    if card.created:
        message.created.FromDatetime(card.created)
    return message
