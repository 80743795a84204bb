"""From class activation maps to pseudo masks: background score, dense CRF, arg-max."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from trainer.config import Range
from trainer.data.dataset import IGNORE, Dataset, Record, read_index_png
from trainer.data.palette import write_index_png
from trainer.data.pixels import image_size, read_image
from trainer.data.sizes import PIXEL_RANGE, PIXELS, enlarged, shrunk, working_size
from trainer.errors import ConfigError, DataError, some
from trainer.files import check_space, is_whole
from trainer.maps.camfile import Cam, cam_path, no_maps, read_cam, stride4, upsample_cam
from trainer.pool import Work, each_image
from trainer.refine.crf import (
    CrfParameters,
    DenseCrf,
    choose_backend,
    preset,
    unary_from_labels,
    unary_from_softmax,
)
from trainer.refine.vote import Vote, VoteConfig, make_vote

Float = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class RefineConfig(VoteConfig):
    """Knobs of the stage ``refine``, besides those of ``VoteConfig``.

    Attributes:
        refine: ``none`` thresholds the maps, ``crf`` adds a dense CRF, ``affinity`` and ``irn``
            first spread the maps by a random walk (knobs: sections ``affinity`` and ``irn``).
        crf_after_walk: dense CRF also after a walk; off as released, on in the papers of psa and
            SC-CAM.
        calibrate: raise maps to the power that moves their own threshold to 0.15, which suits the
            constants of AffinityNet and IRNet. Off on ResNet-38, 50 and 101, as released; on
            elsewhere.
        threshold_from: origin of the background threshold: ``label_free``, ``fixed``, ``masks``
            (the true masks that train), or a list with masks.
        threshold: the value for ``fixed``; papers use 0.15 to 0.26.
        background: ``threshold`` scores background as a constant; ``soft`` as (1 - max)^alpha (psa,
            SC-CAM, SEAM); ``rest`` as 1 - the sum of the maps, for AffinityNet's walk, which
            includes the background. ``auto`` is ``rest`` after AffinityNet and ``threshold``
            elsewhere.
        alpha: exponent of the soft background: 4 makes it strong, 32 weak.
        unary: start of the CRF: ``scores``, ``labels`` (the arg-max, which is right with the
            preset's gt_prob, or 0.7), or ``preset``, which is ``labels`` where the preset has a
            gt_prob.
        crf: preset of the dense CRF, or ``masks``: the best on the true masks that train. ``P7``
            preserves objects best on photographs of 320 pixels; ``P1``, psa's, suits 500 pixels and
            the soft background, and erases much of an object at thresholds above 0.3.
        crf_backend: ``auto``, ``pydensecrf`` or ``torch``: the same masks.
        confidence: pixels whose largest probability is lower become 255; 0 for none.
        band: pixels whose label differs between threshold - band and threshold + band become 255; 0
            for none.
        pixels: the most that CRFs and walks hold at once. A larger image is refined at a smaller
            size, and its mask is enlarged.
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
        if self.crf != "masks":
            preset(self.crf)

    @property
    def score(self) -> str:
        """``background``, where ``auto`` depends on ``refine``."""
        if self.background != "auto":
            return self.background
        return "rest" if self.refine == "affinity" else "threshold"

    @property
    def with_crf(self) -> bool:
        """Whether a dense CRF makes the masks."""
        return self.refine == "crf" or (self.refine != "none" and self.crf_after_walk)


def background_scores(maps_kHW: Float, config: RefineConfig, threshold: float) -> Float:
    """``float32 [k+1,H,W]``: the background score of ``config``, then the maps."""
    if not len(maps_kHW):
        # Without a class, everything is background.
        return np.ones((1, *maps_kHW.shape[1:]), np.float32)
    if config.score == "soft":
        ground = (1 - np.clip(maps_kHW.max(0, keepdims=True), 0, 1)) ** np.float32(config.alpha)
    elif config.score == "rest":
        # Rounding can take the sum of the shares above 1.
        ground = 1 - np.clip(maps_kHW.sum(0, keepdims=True), 0, 1)
    else:
        ground = np.full_like(maps_kHW[:1], threshold, np.float32)
    return np.concatenate([ground, maps_kHW]).astype(np.float32)


def refine_scores(
    image_HW3: Labels, scores_CHW: Sequence[Float], config: RefineConfig
) -> list[Float]:
    """Probabilities ``float32 [C,H,W]`` of one image for each array of scores, with one CRF."""
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
        # 0.7 is the probability of P2, the only published preset for labels.
        return unary_from_labels(scores_CHW.argmax(0), len(scores_CHW), parameters.gt_prob or 0.7)
    return unary_from_softmax(scores_CHW)


def pseudo_mask(image_HW3: Labels, cam: Cam, config: RefineConfig, threshold: float) -> Labels:
    """The mask of one image, ``uint8 [H,W]``: 0 background, k+1 class k, 255 open."""
    levels = [threshold]
    if config.band:
        levels += [threshold - config.band, threshold + config.band]
    q, *others = _probabilities(image_HW3, cam, config, levels)
    labels = _labels_of(cam)
    mask: Labels = labels[q.argmax(0)]
    if others:
        low, high = (other.argmax(0) for other in others)
        mask = np.where(low == high, mask, np.uint8(IGNORE))
    if config.confidence:
        mask = np.where(q.max(0) >= config.confidence, mask, np.uint8(IGNORE))
    return enlarged(mask, cam.size)


def masks_at(
    image_HW3: Labels, cam: Cam, config: RefineConfig, levels: Sequence[float]
) -> list[Labels]:
    """The mask of one image at each of several thresholds, without open pixels."""
    chances = _probabilities(image_HW3, cam, config, levels)
    return [enlarged(_labels_of(cam)[q.argmax(0)], cam.size) for q in chances]


def _labels_of(cam: Cam) -> Labels:
    return np.concatenate([[0], cam.classes + 1]).astype(np.uint8)


def _probabilities(
    image_HW3: Labels, cam: Cam, config: RefineConfig, levels: Sequence[float]
) -> list[Float]:
    """Probabilities ``float32 [k+1,h,w]`` at the working size for each threshold."""
    size = working_size(cam.size, config.pixels)
    maps = upsample_cam(cam.maps, size)
    scores = [background_scores(maps, config, min(max(level, 0.0), 1.0)) for level in levels]
    return refine_scores(shrunk(image_HW3, size), scores, config)


def make_pseudo_masks(
    dataset: Dataset,
    records: Sequence[Record],
    cam_folder: Path,
    out_folder: Path,
    config: RefineConfig,
    threshold: float,
    workers: int | None = None,
) -> dict[str, Any]:
    """Write ``out_folder/<id>.png`` for every record; masks that exist and load stay as they are.

    Args:
        dataset: the data set of ``records``.
        records: images; those without a map get a mask of background.
        cam_folder: with ``<id>.npz`` of every image with a tag or an unknown class.
        out_folder: must be empty after a change of ``config`` or ``threshold``.
        config: knobs; ``threshold`` and ``threshold_from`` have no effect here.
        threshold: the background score.
        workers: processes; None for one a core, 0 for none.

    Returns:
        ``{"count", "made", "kept", "background", "ignore", "threshold", "backend"}``: numbers of
        files, shares of pixels of the new masks, and settings.

    Raises:
        DataError: maps or images are missing, damaged or of another size; all other masks are
            written.
        RunError: no space left or a killed worker; finished masks stay.
    """
    backend = choose_backend(config.crf_backend) if config.with_crf else None
    check_cams(records, cam_folder)
    out_folder.mkdir(parents=True, exist_ok=True)
    vote = make_vote(config, dataset, records)
    work = partial(_make_one, len(dataset.classes), cam_folder, out_folder, config, vote, threshold)
    what = "masks could not be made, all others are written"
    name, limit = attrgetter("id"), pixel_limit(config.pixels)
    results = each_image(work, records, what, workers, "refine", True, name, limit)
    sizes = [result for result in results if result is not None]
    pixels = max(sum(size for size, _, _ in sizes), 1)
    return {
        "count": len(records),
        "made": len(sizes),
        "kept": len(records) - len(sizes),
        "background": sum(background for _, background, _ in sizes) / pixels,
        "ignore": sum(ignore for _, _, ignore in sizes) / pixels,
        "threshold": threshold,
        "backend": backend,
    }


def pixel_limit(pixels: int) -> Work:
    """A limit on the pixels of all images in work together."""

    def of(record: Record) -> int:
        try:
            return math.prod(working_size(image_size(record.image), pixels))
        except DataError:
            # The work on this image will raise the error, with its name.
            return 0

    return Work(of, pixels)


def _make_one(
    num_classes: int,
    cam_folder: Path,
    out_folder: Path,
    config: RefineConfig,
    vote: Vote,
    threshold: float,
    record: Record,
) -> tuple[int, int, int] | None:
    """Pixels, background pixels and ignored pixels of a new mask; None for one that was there."""
    path = out_folder / f"{record.id}.png"
    if is_whole(read_index_png, path):
        return None
    image, cam = image_and_cam(record, cam_folder, num_classes)
    mask = vote(record, image, pseudo_mask(image, cam, config, threshold))
    write_index_png(path, mask)
    return mask.size, int((mask == 0).sum()), int((mask == IGNORE).sum())


def image_and_cam(record: Record, cam_folder: Path, num_classes: int) -> tuple[Labels, Cam]:
    """Pixels ``uint8 [H,W,3]`` and maps of an image; one that shows no class has no maps.

    Raises:
        DataError: either is missing or damaged, or they do not fit together.
    """
    try:
        image = read_image(record.image)
        return image, _cam_of(record, cam_folder, image, num_classes)
    except DataError as error:
        what = f"image {record.id!r}: {error.found}"
        raise DataError(what, error.expected, error.hint) from error


def _cam_of(record: Record, cam_folder: Path, image_HW3: Labels, num_classes: int) -> Cam:
    size = image_HW3.shape[:2]
    cam = maps_of(record, cam_folder)
    if cam.size != size:
        raise DataError(
            f"its maps are for {cam.size} pixels and the image has {size}", "maps of this image"
        )
    if len(cam.classes) and not (cam.classes.min() >= 0 and cam.classes.max() < num_classes):
        raise DataError(
            f"its maps are of the classes {cam.classes.tolist()}", f"0 to {num_classes - 1}"
        )
    return cam


def maps_of(record: Record, folder: Path) -> Cam:
    """The maps of an image in a folder of a run; none for an image that shows no class.

    Raises:
        DataError: missing or damaged.
    """
    # Such an image needs no file. Folders of earlier versions have none.
    if not record.possible:
        return no_maps(image_size(record.image))
    return read_cam(cam_path(folder, record.id))


def has_maps(folder: Path, record: Record) -> bool:
    """Whether the maps of an image exist, can be read and have its size."""

    def fits() -> bool:
        return read_cam(cam_path(folder, record.id)).size == image_size(record.image)

    return is_whole(fits)


def check_maps_space(records: Sequence[Record], folder: Path, pixel_bytes: float = 0.0) -> None:
    """Check that the disk has room for maps at stride 4, and for ``pixel_bytes`` per image pixel.

    Raises:
        RunError: there is too little.
    """
    size = 0.0
    for record in records:
        height, width = image_size(record.image)
        rows, columns = stride4((height, width))
        # Two bytes a cell: maps are stored in float16.
        size += 2 * len(record.possible) * rows * columns + pixel_bytes * height * width
    check_space(folder, int(size), "maps after the walk")


def check_cams(records: Sequence[Record], cam_folder: Path) -> None:
    """Raises DataError: images that may show a class without maps, listed."""
    missing = [r.id for r in records if r.possible and not cam_path(cam_folder, r.id).exists()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(records)} images have no maps in {cam_folder}:"
            f" {some(missing)}",
            "one <id>.npz for every tagged image",
            "run wsss-trainer fit with --until cams first",
        )
