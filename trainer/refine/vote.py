"""Segments vote on masks: a mask takes over the outlines of segments that have no class.

Chen et al., "Segment Anything Model (SAM) Enhanced Pseudo Labels for Weakly Supervised Semantic
Segmentation", 2023 ("SEPL"). A segment takes the class that covers more than half of it, or a class
that it holds nearly all of. The pixels of a class inside other segments become background; those
outside of every segment stay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from trainer.config import Knobs, Range
from trainer.data.coco.segments import (
    EXPECTED,
    Positions,
    label_segments,
    read_segments,
    segment_files,
)
from trainer.data.dataset import IGNORE, Dataset, Record
from trainer.data.pixels import image_size
from trainer.data.sizes import enlarged
from trainer.data.superpixels import MAX_SUPERPIXELS, superpixels
from trainer.errors import DataError, some
from trainer.files import file_sha256

Labels = npt.NDArray[np.uint8]
NONE, SUPERPIXELS = "none", "superpixels"
GIVEN = "segments given by the user"


@dataclass(frozen=True)
class VoteConfig(Knobs):
    """Knobs of the segments' vote.

    Attributes:
        segments: segments whose outlines the masks take over: ``none``, ``superpixels`` of the
            image, or a folder with a label PNG or a JSON of COCO run lengths for each image.
        superpixels: how many of them to make in an image.
        segment_share: share of a segment from which a class takes it.
        segment_cover: share of a class's pixels that a segment holds, from which the class takes
            it.
        segment_order: where several classes could take a segment: ``share``, the one with the
            largest share of it; ``class``, the first in the order of classes, as released.
    """

    segments: str = NONE
    superpixels: Annotated[int, Range(2, MAX_SUPERPIXELS)] = 300
    segment_share: Annotated[float, Range(0, 1, below=True)] = 0.5
    segment_cover: Annotated[float, Range(0, 1, above=True)] = 0.85
    segment_order: Literal["share", "class"] = "share"

    @property
    def segments_folder(self) -> Path | None:
        """The folder of segments, where there is one."""
        return None if self.segments in (NONE, SUPERPIXELS) else Path(self.segments)


@dataclass(frozen=True)
class Vote:
    """The vote on the mask of each image. It can be pickled.

    Attributes:
        config: knobs.
        files: segments by id of the image; empty where the user gives none.
    """

    config: VoteConfig
    files: Mapping[str, Path] = field(default_factory=dict)

    def __call__(self, record: Record, image_HW3: Labels, mask_HW: Labels) -> Labels:
        """The mask after the vote.

        Raises:
            DataError: the segments are missing, damaged or of another size.
        """
        config = self.config
        if config.segments == NONE or not classes_of(mask_HW):
            return mask_HW
        size = (mask_HW.shape[0], mask_HW.shape[1])
        if config.segments == SUPERPIXELS:
            segments = label_segments(enlarged(superpixels(image_HW3, config.superpixels), size))
        elif record.id in self.files:
            segments = read_segments(self.files[record.id], size)
        else:
            raise DataError(f"image {record.id!r} has no segments", EXPECTED)
        return voted(mask_HW, segments, config)

    def check_sizes(self, records: Sequence[Record]) -> None:
        """Compare the size of each label PNG with that of its image, from their headers.

        Raises:
            DataError: some differ.
        """
        sizes = {
            r.id: (image_size(self.files[r.id]), image_size(r.image))
            for r in records
            if r.id in self.files and self.files[r.id].suffix.lower() == ".png"
        }
        unlike = [
            f"{key} ({own[0]} x {own[1]}, the image {size[0]} x {size[1]})"
            for key, (own, size) in sizes.items()
            if own != size
        ]
        if unlike:
            raise DataError(
                f"segments of {len(unlike)} images have another size: {some(unlike, 3)}",
                "the size of the image, height x width in pixels",
                "make them from the images of this data set",
            )

    @property
    def fingerprint(self) -> str:
        """Hash of all files."""
        digest = hashlib.sha256()
        for key, path in sorted(self.files.items()):
            digest.update(repr((key, path.suffix, file_sha256(path))).encode())
        return digest.hexdigest()[:16]


def make_vote(config: VoteConfig, dataset: Dataset, records: Sequence[Record]) -> Vote:
    """The vote on the masks of ``records``, whose files are looked for but not read.

    Raises:
        DataError: no folder, images without segments, or files that belong to no image.
    """
    folder = config.segments_folder
    if folder is None:
        return Vote(config)
    files = segment_files(folder, dataset, records, "--set refine.segments=superpixels")
    return Vote(config, files)


def origin(settings: Mapping[str, Any]) -> str:
    """What figures say of the segments, from the section ``refine`` of a manifest; empty without
    any.
    """
    # Runs of earlier versions have no such knob.
    segments = settings.get("segments", NONE)
    return {NONE: "", SUPERPIXELS: "super-pixels"}.get(segments, GIVEN)


def origins(config: Mapping[str, Mapping[str, Any]], with_masks: bool = True) -> str:
    """What figures say of the segments that trained the classifier, and with ``with_masks`` of
    those that refined the masks; empty without any.

    Args:
        config: sections of a manifest, by name.
        with_masks: whether what is measured was made from the masks.
    """
    method = config.get("method", {})
    names = [origin(method) if method.get("contrast") else ""]
    names += [origin(config["refine"])] if with_masks else []
    # What the user gave says more than what was made of the images.
    return GIVEN if GIVEN in names else max(names)


def classes_of(mask_HW: Labels) -> list[int]:
    """The labels of a mask but background and open pixels, ascending."""
    labels = np.flatnonzero(np.bincount(mask_HW.ravel(), minlength=IGNORE + 1))
    return [int(label) for label in labels if label not in (0, IGNORE)]


def voted(mask_HW: Labels, segments: Sequence[Positions], config: VoteConfig) -> Labels:
    """The mask after the vote of ``segments``; open pixels stay open.

    With ``segment_order=share`` it does not depend on the order of the segments.
    """
    classes = classes_of(mask_HW)
    if not segments or not classes:
        return mask_HW
    flat = mask_HW.ravel()
    counts_NL = np.array([np.bincount(flat[s], minlength=IGNORE + 1) for s in segments])
    counts_NK = counts_NL[:, classes]
    sizes_N = np.array([len(s) for s in segments])
    shares_NK = counts_NK / sizes_N[:, None]
    covers_NK = counts_NK / np.bincount(flat, minlength=IGNORE + 1)[classes]
    claims_NK = (shares_NK > config.segment_share) | (covers_NK >= config.segment_cover)
    if config.segment_order == "class":
        result = _in_class_order(flat, segments, classes, claims_NK)
    else:
        result = _by_share(flat, segments, classes, np.where(claims_NK, shares_NK, -1.0), sizes_N)
    result[flat == IGNORE] = IGNORE
    return result.reshape(mask_HW.shape)


def _by_share(
    flat: Labels,
    segments: Sequence[Positions],
    classes: Sequence[int],
    shares_NK: npt.NDArray[np.float64],
    sizes_N: npt.NDArray[np.int64],
) -> Labels:
    """Each segment goes to the class with the largest share; -1 is no claim."""
    best_N, share_N = shares_NK.argmax(1), shares_NK.max(1)
    result = flat.copy()
    result[np.concatenate(segments)] = 0
    # Where segments overlap, the purest one is painted last; ties go by size, then by class.
    for n in np.lexsort((-best_N, -sizes_N, share_N)):
        if share_N[n] >= 0:
            result[segments[n]] = classes[best_N[n]]
    return result


def _in_class_order(
    flat: Labels,
    segments: Sequence[Positions],
    classes: Sequence[int],
    claims_NK: npt.NDArray[np.bool_],
) -> Labels:
    """As released: a class takes what no class before it took, and paints over those before it."""
    result, is_free = np.zeros_like(flat), np.ones(len(segments), bool)
    for k, label in enumerate(classes):
        is_inside = np.zeros(len(flat), bool)
        for n in np.flatnonzero(is_free).tolist():
            is_inside[segments[n]] = True
        result[(flat == label) & ~is_inside] = label
        for n in np.flatnonzero(is_free & claims_NK[:, k]).tolist():
            result[segments[n]] = label
        is_free &= ~claims_NK[:, k]
    return result
