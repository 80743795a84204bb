"""From class activation maps to pseudo masks: background score, dense CRF, arg-max (spec methods 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from trainer.camfile import Cam, cam_path, read_cam, upsample_cam
from trainer.data.dataset import IGNORE, Dataset, Record, read_image, read_index_png
from trainer.errors import ConfigError, DataError, RunError, UserError
from trainer.palette import write_index_png
from trainer.pool import over_images, raise_together
from trainer.refine.crf import CrfParameters, DenseCrf, choose_backend, preset, unary_from_labels, unary_from_softmax

Float = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class RefineConfig:
    """Knobs of the stage ``refine``.

    Attributes:
        refine: ``crf``, or ``none`` for thresholded maps as they are.
        threshold_from: where the background threshold comes from: ``label_free``, ``fixed``, or a list with masks.
        threshold: the value for ``fixed``; 0.15 to 0.26 are published, spec methods 3.3.
        background: ``threshold`` scores background as a constant; ``soft`` as (1 - max)^alpha (psa, SC-CAM, SEAM).
        alpha: exponent of the soft background: 4 makes it strong, 32 weak.
        unary: what the CRF starts from: ``scores``, ``labels`` (arg-max trusted with the preset's gt_prob, or 0.7), or
            ``preset``, which is labels where the preset has a gt_prob.
        crf: preset of spec refine-segment 2.3. ``P7`` keeps objects best on photographs of 320 pixels; ``P1``, psa's,
            is made for 500 pixels and the soft background, and erases much of an object at thresholds above 0.3.
        crf_backend: ``auto``, ``pydensecrf`` or ``torch``: the same masks.
        confidence: pixels whose winning probability is below become 255; 0 for none.
        band: pixels whose label differs between threshold - band and threshold + band become 255; 0 for none.
    """

    refine: Literal["crf", "none"] = "crf"
    threshold_from: str = "label_free"
    threshold: float = 0.2
    background: Literal["threshold", "soft"] = "threshold"
    alpha: float = 4.0
    unary: Literal["preset", "scores", "labels"] = "preset"
    crf: str = "P7"
    crf_backend: Literal["auto", "pydensecrf", "torch"] = "auto"
    confidence: float = 0.0
    band: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1 or not 0 <= self.confidence < 1 or not 0 <= self.band < 1 or self.alpha <= 0:
            raise ConfigError(
                f"refine.threshold={self.threshold} confidence={self.confidence} band={self.band} alpha={self.alpha}",
                "threshold, confidence and band within 0..1, alpha above 0",
            )
        if self.band and self.background == "soft":
            raise ConfigError("refine.band needs a threshold", "background=threshold", "drop band, or use confidence")
        preset(self.crf)


def background_scores(maps_kHW: Float, config: RefineConfig, threshold: float) -> Float:
    """``float32 [k+1,H,W]``: the background score of ``config``, then the maps."""
    shape = (1, *maps_kHW.shape[1:])
    if config.background == "soft" and len(maps_kHW):
        ground = (1 - np.clip(maps_kHW.max(0, keepdims=True), 0, 1)) ** np.float32(config.alpha)
    else:
        ground = np.full(shape, threshold if len(maps_kHW) else 1, np.float32)
    return np.concatenate([ground, maps_kHW]).astype(np.float32)


def refine_scores(image_HW3: Labels, scores_CHW: Sequence[Float], config: RefineConfig) -> list[Float]:
    """Probabilities ``float32 [C,H,W]`` of one image for each array of scores; the CRF's kernels are shared."""
    if config.refine == "none" or len(scores_CHW[0]) == 1:
        return [s / np.maximum(s.sum(0), np.float32(1e-5)) for s in scores_CHW]
    parameters = preset(config.crf)
    crf = DenseCrf(image_HW3, parameters.gaussian, parameters.bilateral, config.crf_backend)
    return [crf.infer(_unary(scores, parameters, config.unary), parameters.iterations) for scores in scores_CHW]


def _unary(scores_CHW: Float, parameters: CrfParameters, kind: str) -> Float:
    if kind == "labels" or (kind == "preset" and parameters.gt_prob is not None):
        return unary_from_labels(scores_CHW.argmax(0), len(scores_CHW), parameters.gt_prob or 0.7)
    return unary_from_softmax(scores_CHW)


def pseudo_mask(image_HW3: Labels, cam: Cam, config: RefineConfig, threshold: float) -> Labels:
    """The mask of one image, ``uint8 [H,W]``: 0 background, k+1 class k, 255 where ``config`` asks to leave it open."""
    maps = upsample_cam(cam.maps, cam.size)
    labels = np.concatenate([[0], cam.classes + 1]).astype(np.uint8)
    levels = [threshold, threshold - config.band, threshold + config.band] if config.band else [threshold]
    scores = [background_scores(maps, config, min(max(level, 0.0), 1.0)) for level in levels]
    q, *others = refine_scores(image_HW3, scores, config)
    winner = q.argmax(0)
    mask: Labels = labels[winner]
    if others:
        low, high = (other.argmax(0) for other in others)
        mask = np.where(low == high, mask, np.uint8(IGNORE))
    if config.confidence:
        mask = np.where(q.max(0) >= config.confidence, mask, np.uint8(IGNORE))
    return mask


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
    """Write ``out_folder/<id>.png`` for every record, in a process pool; masks that exist and load are kept.

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
        ``{"count", "made", "kept", "background", "ignore", "threshold", "backend"}``: numbers of files, shares of
        pixels of the masks made now, and what was used.

    Raises:
        DataError: maps or images that are missing, damaged or of another size; every other mask is there nevertheless.
        RunError: no space left or a killed worker; what was written stays.
    """
    backend = choose_backend(config.crf_backend) if config.refine == "crf" else None
    _check_cams(records, cam_folder)
    out_folder.mkdir(parents=True, exist_ok=True)
    work = partial(_make_one, dataset, cam_folder, out_folder, config, threshold)
    problems: list[UserError] = []
    made = background = ignore = pixels = 0
    for _, outcome in over_images(work, records, workers, "refine", progress, _name):
        if isinstance(outcome, RunError):
            raise outcome
        if isinstance(outcome, UserError):
            problems.append(outcome)
        elif outcome is not None:
            made += 1
            pixels, background, ignore = pixels + outcome[0], background + outcome[1], ignore + outcome[2]
    raise_together(problems, len(records), "masks could not be made, all others are kept")
    return {
        "count": len(records),
        "made": made,
        "kept": len(records) - made,
        "background": background / max(pixels, 1),
        "ignore": ignore / max(pixels, 1),
        "threshold": threshold,
        "backend": backend,
    }


def _make_one(
    dataset: Dataset, cam_folder: Path, out_folder: Path, config: RefineConfig, threshold: float, record: Record
) -> tuple[int, int, int] | None:
    """Pixels, background pixels and ignored pixels of a mask made now; None if it was there."""
    path = out_folder / f"{record.id}.png"
    if _loads(path):
        return None
    try:
        image = read_image(record.image)
        cam = _cam_of(record, cam_folder, image, len(dataset.classes))
    except DataError as error:
        raise DataError(f"image {record.id!r}: {error.found}", error.expected, error.hint) from error
    mask = pseudo_mask(image, cam, config, threshold)
    write_index_png(path, mask)
    return mask.size, int((mask == 0).sum()), int((mask == IGNORE).sum())


def _cam_of(record: Record, cam_folder: Path, image_HW3: Labels, num_classes: int) -> Cam:
    size = image_HW3.shape[:2]
    if not record.tags:
        return Cam(np.zeros(0, np.int16), np.zeros((0, 1, 1), np.float32), size)
    cam = read_cam(cam_path(cam_folder, record.id))
    if cam.size != size:
        raise DataError(f"its maps are for {cam.size} pixels and the image has {size}", "maps of this very image")
    if len(cam.classes) and not (cam.classes.min() >= 0 and cam.classes.max() < num_classes):
        raise DataError(f"its maps are of the classes {cam.classes.tolist()}", f"0 to {num_classes - 1}")
    return cam


def _loads(path: Path) -> bool:
    try:
        return path.exists() and read_index_png(path).size > 0
    except DataError:
        return False


def _check_cams(records: Sequence[Record], cam_folder: Path) -> None:
    missing = [r.id for r in records if r.tags and not cam_path(cam_folder, r.id).exists()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(records)} images have no maps in {cam_folder}: {', '.join(missing[:5])}"
            + (", ..." if len(missing) > 5 else ""),
            "one <id>.npz for every tagged image",
            "run wsss-trainer fit with --until cams first",
        )


def _name(record: Record) -> str:
    return record.id
