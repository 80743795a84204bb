"""Requests from images and wishes, and results as NumPy arrays at the size of the image."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt

from serving.errors import FieldError, ImageError, nearest
from serving.images import encodings, masks, polygons
from wsss.v1 import segmentation_pb2 as pb

Pixels = npt.NDArray[np.uint8]
ImageLike = str | os.PathLike[str] | bytes | Pixels
Box = tuple[int, int, int, int]

ENCODINGS: dict[str, Any] = {
    "png": pb.MASK_ENCODING_PNG,
    "raw": pb.MASK_ENCODING_RAW,
    "coco_rle": pb.MASK_ENCODING_COCO_RLE,
    "polygons": pb.MASK_ENCODING_POLYGONS,
    "label_runs": pb.MASK_ENCODING_LABEL_RUNS,
}
CAM_FORMATS: dict[str, Any] = {
    "uint8": pb.CAM_FORMAT_UINT8,
    "float16": pb.CAM_FORMAT_FLOAT16,
    "overlay": pb.CAM_FORMAT_OVERLAY,
}
OVERSIZE: dict[str, Any] = {
    "": pb.OVERSIZE_UNSPECIFIED,
    "scale": pb.OVERSIZE_SCALE,
    "tile": pb.OVERSIZE_TILE,
    "auto": pb.OVERSIZE_AUTO,
}
CamFormat = Literal["uint8", "float16", "overlay"]


class Sizing(TypedDict, total=False):
    """Treatment of images above the model's limits.

    Attributes:
        oversize: ``scale`` down, ``tile``, or ``auto``; the server decides if left out.
        tile_overlap: share of a tile that overlaps the next one, 0 to 0.5.
    """

    oversize: Literal["", "scale", "tile", "auto"]
    tile_overlap: float | None


class SegmentWishes(Sizing, total=False):
    """The options of a segmentation.

    Attributes:
        version: of the model; 0 is the newest.
        classes: names to keep; the others become background. Empty keeps all.
        tags: names of the classes known to be in the image; no other class can win a pixel.
        score_threshold: score below which a class is not in the mask, unless it is a tag; None is
            the model's, which a segmenter's graph applies by itself: a request can only raise it.
        background_threshold: CAM models: activation from which a pixel is foreground; None is the
            model's.
        confidence_threshold: pixels with a lower confidence, 0 to 1, get the label 255.
        confidence, cam: fetch the confidence map, or the activation maps of a CAM model, too.
        encoding: of the mask in transit: ``png`` is small, ``raw`` is fast; the others are for
            callers who keep the reply.
    """

    version: int
    classes: Iterable[str]
    tags: Iterable[str]
    score_threshold: float | None
    background_threshold: float | None
    confidence_threshold: float | None
    confidence: bool
    cam: bool
    cam_format: CamFormat
    encoding: Literal["png", "raw", "coco_rle", "polygons", "label_runs"]


class CamWishes(Sizing, total=False):
    """The options of activation maps.

    Attributes:
        version: of the model; 0 is the newest.
        tags: names of the classes to return; by default those that reach the threshold.
        score_threshold: None is the model's, 0 returns every map.
    """

    version: int
    tags: Iterable[str]
    score_threshold: float | None
    format: CamFormat


@dataclass(frozen=True)
class Cam:
    """Class activation maps.

    Attributes:
        maps: [k,h,w], uint8 0..255 or float16 0..1, coarser than the image and covering all of it.
            As ``overlay``: uint8 pictures [k,H,W,3] at the image's size.
        classes: the k names.
        scores: image-level score of every class of the model.
        present: names whose score reaches the threshold.
        size: height and width of the upright image.
        reply: the whole ``wsss.v1.ComputeCamResponse``, or ``SegmentResponse`` with a mask.
    """

    maps: npt.NDArray[np.uint8] | npt.NDArray[np.float16]
    classes: list[str]
    scores: dict[str, float]
    present: list[str]
    size: tuple[int, int]
    model: str
    version: int
    reply: Any


@dataclass(frozen=True)
class Segmentation:
    """A mask and its figures.

    Attributes:
        mask: uint8 [H,W] at the size of the upright image; 0 background, k+1 the k-th class of the
            model, 255 undecided.
        labels: value in ``mask`` by class name; only classes that were kept, here and below.
        scores: image-level score, 0 to 1.
        present: names of the classes that the mask has.
        areas: pixels.
        boxes: left, top, width, height; only classes with a pixel.
        confidence: uint8 [H,W], if requested.
        cam: the activation maps, if requested.
        doubt: estimated share of wrong pixels, 0 to 1; None of a model that does not give it.
        reply: the whole ``wsss.v1.SegmentResponse`` with image, provenance and timings.
    """

    mask: Pixels
    labels: dict[str, int]
    scores: dict[str, float]
    present: list[str]
    areas: dict[str, int]
    boxes: dict[str, Box]
    confidence: Pixels | None
    cam: Cam | None
    doubt: float | None
    model: str
    version: int
    reply: Any


def segment_request(image: ImageLike, model: str, wishes: SegmentWishes) -> Any:
    """A ``SegmentRequest``.

    Raises:
        ImageError: an array that is not an image.
        FieldError: an unknown encoding, format or rule.
        OSError: the file cannot be read.
    """
    plain: dict[str, Any] = {**wishes}
    plain["encoding"] = _number(ENCODINGS, plain.get("encoding", "png"), "encoding")
    plain["cam_format"] = _number(CAM_FORMATS, plain.get("cam_format", "uint8"), "cam_format")
    plain["oversize"] = _number(OVERSIZE, plain.get("oversize", ""), "oversize")
    return pb.SegmentRequest(image=image_message(image), model=model, **plain)


def cam_request(image: ImageLike, model: str, wishes: CamWishes) -> Any:
    """A ``ComputeCamRequest``; raises like :func:`segment_request`."""
    plain: dict[str, Any] = {**wishes}
    plain["format"] = _number(CAM_FORMATS, plain.get("format", "uint8"), "format")
    plain["oversize"] = _number(OVERSIZE, plain.get("oversize", ""), "oversize")
    return pb.ComputeCamRequest(image=image_message(image), model=model, **plain)


def image_message(image: ImageLike) -> Any:
    """An ``Image`` from a path, the bytes of a file, or uint8 [H,W,3] RGB or [H,W] grey pixels."""
    if isinstance(image, bytes):
        return pb.Image(encoded=image)
    if not isinstance(image, np.ndarray):
        return pb.Image(encoded=Path(image).read_bytes())
    pixels = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ImageError(
            f"an array of {image.dtype} {list(image.shape)}", "uint8 [H,W,3] RGB or [H,W] grey"
        )
    height, width = pixels.shape[:2]
    return pb.Image(raw=pb.RawImage(height=height, width=width, pixels=pixels.tobytes()))


def segmentation(reply: Any) -> Segmentation:
    """A ``SegmentResponse`` as arrays."""
    return Segmentation(
        mask=mask_of(reply.mask),
        labels={result.name: result.label for result in reply.classes},
        scores={result.name: result.score for result in reply.classes},
        present=[result.name for result in reply.classes if result.present],
        areas={result.name: result.area for result in reply.classes},
        boxes={result.name: _box(result.box) for result in reply.classes if result.HasField("box")},
        confidence=_plane(reply.confidence) if reply.HasField("confidence") else None,
        cam=cam(reply) if reply.HasField("cam") else None,
        doubt=reply.doubt if reply.HasField("doubt") else None,
        model=reply.provenance.model,
        version=reply.provenance.version,
        reply=reply,
    )


def cam(reply: Any) -> Cam:
    """The maps of a reply as arrays."""
    return Cam(
        maps=_maps_of(reply.cam),
        classes=list(reply.cam.classes),
        scores={result.name: result.score for result in reply.classes},
        present=[result.name for result in reply.classes if result.present],
        size=(reply.image.height, reply.image.width),
        model=reply.provenance.model,
        version=reply.provenance.version,
        reply=reply,
    )


def mask_of(mask: Any) -> Pixels:
    """The uint8 [H,W] label map of a ``Mask`` in any encoding.

    Raises:
        ValueError: the mask is malformed.
    """
    kind, height, width = mask.WhichOneof("data"), mask.height, mask.width
    if kind == "label_runs":
        labels = np.frombuffer(mask.label_runs.labels, np.uint8)
        return encodings.from_runs(
            labels, np.array(mask.label_runs.lengths, np.int64), height, width
        )
    if kind == "coco_rle":
        counts = {entry.label: entry.counts.encode("ascii") for entry in mask.coco_rle.classes}
        return encodings.from_coco_counts(counts, height, width)
    if kind == "polygons":
        shapes = [
            (entry.label, [_points(ring) for ring in entry.rings])
            for entry in mask.polygons.classes
        ]
        return polygons.fill(shapes, height, width)
    return _plane(mask)


def as_file(result: Segmentation) -> bytes:
    """The mask as PNG or raw bytes, or as JSON for the other encodings.

    Run lengths and polygons are keyed by class name, with ``undecided`` for the label 255.
    """
    mask = result.reply.mask
    kind = mask.WhichOneof("data")
    if kind in ("png", "raw"):
        data: bytes = getattr(mask, kind)
        return data
    names = {label: name for name, label in result.labels.items()} | {masks.UNDECIDED: "undecided"}
    picture: dict[str, Any]
    if kind == "coco_rle":
        size = [mask.height, mask.width]
        picture = {
            names[entry.label]: {"size": size, "counts": entry.counts}
            for entry in mask.coco_rle.classes
        }
    elif kind == "polygons":
        picture = {
            names[entry.label]: [
                {"points": _points(ring), "hole": ring.hole} for ring in entry.rings
            ]
            for entry in mask.polygons.classes
        }
    else:
        runs = mask.label_runs
        picture = {
            "height": mask.height,
            "width": mask.width,
            "labels": list(runs.labels),
            "lengths": list(runs.lengths),
        }
    return json.dumps(picture).encode()


def _plane(plane: Any) -> Pixels:
    if plane.WhichOneof("data") == "raw":
        return np.frombuffer(plane.raw, np.uint8).reshape(plane.height, plane.width)
    return masks.read_png(plane.png)


def _maps_of(cam: Any) -> npt.NDArray[np.uint8] | npt.NDArray[np.float16]:
    kind, shape = cam.WhichOneof("data"), (len(cam.classes), cam.height, cam.width)
    if kind == "overlays":
        pictures = [masks.read_rgb(png) for png in cam.overlays.png]
        return np.stack(pictures) if pictures else np.zeros((*shape, 3), np.uint8)
    if kind == "float16":
        return np.frombuffer(cam.float16, "<f2").reshape(shape)
    return np.frombuffer(cam.uint8, np.uint8).reshape(shape)


def _points(ring: Any) -> list[tuple[int, int]]:
    return list(zip(ring.points[0::2], ring.points[1::2]))


def _box(box: Any) -> Box:
    return box.left, box.top, box.width, box.height


def _number(table: dict[str, Any], name: Any, field: str) -> Any:
    if name not in table:
        raise FieldError(
            f"{field} is {name!r}", nearest(str(name), filter(None, table)), field=field
        )
    return table[name]
