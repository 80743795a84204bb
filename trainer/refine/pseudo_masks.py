"""From class activation maps to pseudo masks: background score, dense CRF, arg-max (spec methods
3.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from trainer.config import Knobs, Range
from trainer.data.dataset import IGNORE, Dataset, Record, read_index_png
from trainer.data.palette import write_index_png
from trainer.data.pixels import image_size, read_image
from trainer.data.sizes import PIXEL_RANGE, PIXELS, enlarged, shrunk, working_size
from trainer.errors import ConfigError, DataError
from trainer.files import check_space
from trainer.maps.camfile import Cam, cam_path, read_cam, stride4, upsample_cam
from trainer.pool import Work, each_image
from trainer.refine.crf import (
    CrfParameters,
    DenseCrf,
    choose_backend,
    preset,
    unary_from_labels,
    unary_from_softmax,
)

Float = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class RefineConfig(Knobs):
    """Knobs of the stage ``refine``.

    Attributes:
        refine: ``none`` for thresholded maps as they are, ``crf``; ``affinity`` and ``irn`` first
            spread the maps by a random walk (their knobs: sections ``affinity`` and ``irn``).
        crf_after_walk: dense CRF also after a walk; off as released, on in the papers of psa and
            SC-CAM.
        calibrate: raise maps to the power that puts their own threshold at 0.15, for which the
            constants of AffinityNet and IRNet are made. Off on ResNet-38, 50 and 101, as released;
            on elsewhere.
        threshold_from: where the background threshold comes from: ``label_free``, ``fixed``, or a
            list with masks.
        threshold: the value for ``fixed``; 0.15 to 0.26 are published, spec methods 3.3.
        background: ``threshold`` scores background as a constant; ``soft`` as (1 - max)^alpha (psa,
            SC-CAM, SEAM); ``rest`` as 1 - the sum of the maps, for those of AffinityNet's walk, in
            which the background walked along. ``auto`` is ``rest`` after AffinityNet and
            ``threshold`` elsewhere.
        alpha: exponent of the soft background: 4 makes it strong, 32 weak.
        unary: what the CRF starts from: ``scores``, ``labels`` (arg-max trusted with the preset's
            gt_prob, or 0.7), or ``preset``, which is labels where the preset has a gt_prob.
        crf: preset of spec refine-segment 2.3. ``P7`` keeps objects best on photographs of 320
            pixels; ``P1``, psa's, is made for 500 pixels and the soft background, and erases much
            of an object at thresholds above 0.3.
        crf_backend: ``auto``, ``pydensecrf`` or ``torch``: the same masks.
        confidence: pixels whose winning probability is below become 255; 0 for none.
        band: pixels whose label differs between threshold - band and threshold + band become 255; 0
            for none.
        pixels: that CRFs and walks work on at once, at most. A larger image is worked on in a
            smaller size, and its mask is enlarged.
    """

    section: ClassVar[str] = "refine"

    refine: Literal["none", "crf", "affinity", "irn"] = "crf"
    crf_after_walk: bool = False
    calibrate: bool = False
    threshold_from: str = "label_free"
    threshold: Annotated[float, Range(0, 1)] = 0.2
    background: Literal["auto", "threshold", "soft", "rest"] = "auto"
    alpha: Annotated[float, Range(0, 1000, above=True)] = 4.0
    unary: Literal["preset", "scores", "labels"] = "preset"
    crf: str = "P7"
    crf_backend: Literal["auto", "pydensecrf", "torch"] = "auto"
    confidence: Annotated[float, Range(0, 1, below=True)] = 0.0
    band: Annotated[float, Range(0, 1, below=True)] = 0.0
    pixels: Annotated[int, PIXEL_RANGE] = PIXELS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.band and self.score != "threshold":
            raise ConfigError(
                "refine.band needs a threshold",
                "background=threshold",
                "drop band, or use confidence",
            )
        preset(self.crf)

    @property
    def score(self) -> str:
        """``background`` with ``auto`` decided."""
        walked = "rest" if self.refine == "affinity" else "threshold"
        return walked if self.background == "auto" else self.background

    @property
    def with_crf(self) -> bool:
        """Whether a dense CRF makes the masks."""
        return self.refine == "crf" or (self.refine != "none" and self.crf_after_walk)


def background_scores(maps_kHW: Float, config: RefineConfig, threshold: float) -> Float:
    """``float32 [k+1,H,W]``: the background score of ``config``, then the maps."""
    shape = (1, *maps_kHW.shape[1:])
    if config.score == "soft" and len(maps_kHW):
        ground = (1 - np.clip(maps_kHW.max(0, keepdims=True), 0, 1)) ** np.float32(config.alpha)
    elif config.score == "rest" and len(maps_kHW):
        ground = 1 - np.clip(maps_kHW.sum(0, keepdims=True), 0, 1)
    else:
        ground = np.full(shape, threshold if len(maps_kHW) else 1, np.float32)
    return np.concatenate([ground, maps_kHW]).astype(np.float32)


def refine_scores(
    image_HW3: Labels, scores_CHW: Sequence[Float], config: RefineConfig
) -> list[Float]:
    """Probabilities ``float32 [C,H,W]`` of one image for each array of scores; the CRF's kernels
    are shared.
    """
    if not config.with_crf or len(scores_CHW[0]) == 1:
        return [s / np.maximum(s.sum(0), np.float32(1e-5)) for s in scores_CHW]
    parameters = preset(config.crf)
    crf = DenseCrf(image_HW3, parameters.gaussian, parameters.bilateral, config.crf_backend)
    return [
        crf.infer(_unary(scores, parameters, config.unary), parameters.iterations)
        for scores in scores_CHW
    ]


def _unary(scores_CHW: Float, parameters: CrfParameters, kind: str) -> Float:
    if kind == "labels" or (kind == "preset" and parameters.gt_prob is not None):
        return unary_from_labels(scores_CHW.argmax(0), len(scores_CHW), parameters.gt_prob or 0.7)
    return unary_from_softmax(scores_CHW)


def pseudo_mask(image_HW3: Labels, cam: Cam, config: RefineConfig, threshold: float) -> Labels:
    """The mask of one image, ``uint8 [H,W]``: 0 background, k+1 class k, 255 where ``config`` asks
    to leave it open.
    """
    size = working_size(cam.size, config.pixels)
    maps, image_HW3 = upsample_cam(cam.maps, size), shrunk(image_HW3, size)
    labels = np.concatenate([[0], cam.classes + 1]).astype(np.uint8)
    levels = (
        [threshold, threshold - config.band, threshold + config.band]
        if config.band
        else [threshold]
    )
    scores = [background_scores(maps, config, min(max(level, 0.0), 1.0)) for level in levels]
    q, *others = refine_scores(image_HW3, scores, config)
    winner = q.argmax(0)
    mask: Labels = labels[winner]
    if others:
        low, high = (other.argmax(0) for other in others)
        mask = np.where(low == high, mask, np.uint8(IGNORE))
    if config.confidence:
        mask = np.where(q.max(0) >= config.confidence, mask, np.uint8(IGNORE))
    return enlarged(mask, cam.size)


def make_pseudo_masks(
    dataset: Dataset,
    records: Sequence[Record],
    cam_folder: Path,
    out_folder: Path,
    config: RefineConfig,
    threshold: float,
    workers: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Write ``out_folder/<id>.png`` for every record, in a process pool; masks that exist and load
    are kept.

    Args:
        dataset: the data set of ``records``.
        records: images; those without tags get an empty (all background) mask.
        cam_folder: where ``<id>.npz`` of every tagged image lies.
        out_folder: made if absent. Give an empty one after a change of ``config`` or ``threshold``.
        config: what to do; its ``threshold`` and ``threshold_from`` are not read here.
        threshold: the background score.
        workers: processes; None for one a core, 0 for none.
        progress: show a bar with time left.

    Returns:
        ``{"count", "made", "kept", "background", "ignore", "threshold", "backend"}``: numbers of
        files, shares of pixels of the masks made now, and what was used.

    Raises:
        DataError: maps or images that are missing, damaged or of another size; every other mask is
            there nevertheless.
        RunError: no space left or a killed worker; what was written stays.
    """
    backend = choose_backend(config.crf_backend) if config.with_crf else None
    check_cams(records, cam_folder)
    out_folder.mkdir(parents=True, exist_ok=True)
    work = partial(_make_one, len(dataset.classes), cam_folder, out_folder, config, threshold)
    what = "masks could not be made, all others are kept"
    name, limit = (lambda record: record.id), pixel_limit(config.pixels)
    results = each_image(work, records, what, workers, "refine", progress, name, limit)
    sizes = [result for result in results if result is not None]
    made, pixels = len(sizes), max(sum(size for size, _, _ in sizes), 1)
    return {
        "count": len(records),
        "made": made,
        "kept": len(records) - made,
        "background": sum(background for _, background, _ in sizes) / pixels,
        "ignore": sum(ignore for _, _, ignore in sizes) / pixels,
        "threshold": threshold,
        "backend": backend,
    }


def pixel_limit(pixels: int) -> Work:
    """What keeps the pixels of all images at work within ``pixels``."""

    def of(record: Record) -> int:
        try:
            return math.prod(working_size(image_size(record.image), pixels))
        except DataError:
            # Its own work says what is wrong with it.
            return 0

    return Work(of, pixels)


def _make_one(
    num_classes: int,
    cam_folder: Path,
    out_folder: Path,
    config: RefineConfig,
    threshold: float,
    record: Record,
) -> tuple[int, int, int] | None:
    """Pixels, background pixels and ignored pixels of a mask made now; None if it was there."""
    path = out_folder / f"{record.id}.png"
    if _loads(path):
        return None
    image, cam = image_and_cam(record, cam_folder, num_classes)
    mask = pseudo_mask(image, cam, config, threshold)
    write_index_png(path, mask)
    return mask.size, int((mask == 0).sum()), int((mask == IGNORE).sum())


def image_and_cam(record: Record, cam_folder: Path, num_classes: int) -> tuple[Labels, Cam]:
    """Pixels ``uint8 [H,W,3]`` and maps of an image; one without tags has no maps.

    Raises:
        DataError: either is missing, damaged, or they do not fit together.
    """
    try:
        image = read_image(record.image)
        return image, _cam_of(record, cam_folder, image, num_classes)
    except DataError as error:
        raise DataError(
            f"image {record.id!r}: {error.found}", error.expected, error.hint
        ) from error


def _cam_of(record: Record, cam_folder: Path, image_HW3: Labels, num_classes: int) -> Cam:
    size = image_HW3.shape[:2]
    if not record.tags:
        return Cam(np.zeros(0, np.int16), np.zeros((0, 1, 1), np.float32), size)
    cam = read_cam(cam_path(cam_folder, record.id))
    if cam.size != size:
        raise DataError(
            f"its maps are for {cam.size} pixels and the image has {size}",
            "maps of this very image",
        )
    if len(cam.classes) and not (cam.classes.min() >= 0 and cam.classes.max() < num_classes):
        raise DataError(
            f"its maps are of the classes {cam.classes.tolist()}", f"0 to {num_classes - 1}"
        )
    return cam


def _loads(path: Path) -> bool:
    try:
        return path.exists() and read_index_png(path).size > 0
    except DataError:
        return False


def has_maps(folder: Path, record: Record) -> bool:
    """Whether the maps of an image are there, whole and of its size."""
    try:
        return read_cam(cam_path(folder, record.id)).size == image_size(record.image)
    except DataError:
        return False


def check_maps_space(records: Sequence[Record], folder: Path, pixel_bytes: float = 0.0) -> None:
    """Compare the space that maps at stride 4 need, and ``pixel_bytes`` a pixel beside them, with
    what is free.

    Raises:
        RunError: there is too little.
    """
    needed = 0.0
    for record in records:
        height, width = image_size(record.image)
        rows, columns = stride4((height, width))
        needed += 2 * len(record.tags) * rows * columns + pixel_bytes * height * width
    check_space(folder, int(needed), "maps after the walk")


def check_cams(records: Sequence[Record], cam_folder: Path) -> None:
    """Raises DataError: tagged images without maps, listed."""
    missing = [r.id for r in records if r.tags and not cam_path(cam_folder, r.id).exists()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(records)} images have no maps in {cam_folder}:"
            f" {', '.join(missing[:5])}" + (", ..." if len(missing) > 5 else ""),
            "one <id>.npz for every tagged image",
            "run wsss-trainer fit with --until cams first",
        )
