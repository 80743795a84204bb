"""Contrast of segments: features of one segment alike, those of different segments apart.

Kweon and Yoon, "From SAM to CAMs: Exploring Segment Anything Model for Weakly Supervised Semantic
Segmentation", CVPR 2024 ("S2C"). Segments have no class; they come from a tool such as SAM, or are
super-pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from trainer.data.coco.segments import SUFFIXES, Positions, read_segments, segment_files
from trainer.data.dataset import Record
from trainer.data.pixels import image_size
from trainer.data.superpixels import Ids, make_superpixels, read_ids, renumbered, write_ids
from trainer.errors import ConfigError
from trainer.files import file_sha256, is_whole
from trainer.methods.inputs import Input
from trainer.methods.preparation import Preparation, Workshop
from trainer.methods.tag_loss import EPS
from trainer.pool import each_image
from trainer.ranks import rank
from trainer.run import Output
from trainer.training.collectives import process_mean

SUPERPIXELS = "superpixels"
STAGE = "segments"
"""The stage that makes the segments, and its folder."""
WIDTH = 256
"""Channels of the head whose features are compared, as in S2C."""


def contrast_loss(features_BDhw: torch.Tensor, segments_Bhw: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of naming the segment of each cell by the cosine of its feature to the mean of
    every segment of the image.

    The means are fixed targets, as in S2C: gradient goes through the cells only. It is the mean
    over the cells of an image that lie in a segment, then over the images that have any; 0 for
    none.

    Args:
        features_BDhw: of any length.
        segments_Bhw: ids, int64; 0 is no segment.
    """
    losses = []
    for features_Dn, ids_n in zip(
        F.normalize(features_BDhw, dim=1).flatten(2), segments_Bhw.flatten(1)
    ):
        inside = ids_n > 0
        if not inside.any():
            continue
        cells_nD = features_Dn[:, inside].T
        # A small segment may have no cell, so ids have gaps.
        numbers, index_n = torch.unique(ids_n[inside], return_inverse=True)
        sums_ND = torch.zeros(len(numbers), cells_nD.shape[1]).to(cells_nD)
        # The sum has the direction of the mean.
        sums_ND = sums_ND.index_add(0, index_n, cells_nD.detach())
        losses.append(F.cross_entropy(cells_nD @ F.normalize(sums_ND, dim=1).T, index_n))
    count = torch.tensor(len(losses), device=features_BDhw.device)
    total = torch.stack(losses).sum() if losses else 0 * features_BDhw.sum()
    return total / process_mean(count).clamp(min=EPS)


def index_map(segments: Sequence[Positions], size: tuple[int, int]) -> Ids:
    """Ids from 1 on, ``uint16 [H,W]``, 0 for none; where segments overlap, the smaller one."""
    ids = np.zeros(size[0] * size[1], np.uint16)
    for number, segment in enumerate(sorted(segments, key=len, reverse=True), 1):
        ids[segment] = number
    return ids.reshape(size)


def check_folder(segments: str) -> None:
    """Refuse a folder that is not there.

    Raises:
        ConfigError: as said.
    """
    if segments != SUPERPIXELS and not Path(segments).is_dir():
        raise ConfigError(
            f"method.segments={segments} is no folder",
            "superpixels, or a folder with a label PNG or a JSON of COCO run lengths an image",
        )


def segment_stage(segments: str, count: int) -> Preparation:
    """The stage that writes the ids of the segments of every image.

    Args:
        segments: ``superpixels`` or a folder.
        count: super-pixels of an image.
    """
    if segments == SUPERPIXELS:
        return Preparation(STAGE, {SUPERPIXELS: count}, False, partial(_make_superpixels, count))
    folder = Path(segments)
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    facts = tuple((p, p.stat().st_size, p.stat().st_mtime_ns) for p in files)
    return Preparation(STAGE, {"sha256": _content(facts)}, False, partial(_copy_segments, folder))


def with_segments(run: Path) -> dict[str, Input]:
    """The segments as an entry of the samples: ids 1, 2, ... ``int64 [H,W]``, 0 for none."""
    read = partial(_read, folder=run / STAGE)
    # Numbered anew after the crop, which leaves few of them.
    return {"segments": Input(read, follows_image=True, finish=renumbered)}


@cache
def _content(facts: tuple[tuple[Path, int, int], ...]) -> str:
    """Hash of files. A plan asks for it several times; sizes and times tell if they changed."""
    digest = hashlib.sha256()
    for path, *_ in facts:
        digest.update(repr((path.name, file_sha256(path))).encode())
    return digest.hexdigest()


def _read(record: Record, folder: Path) -> Ids:
    if not record.tags:
        # Images without a class have no file.
        return np.zeros(image_size(record.image), np.uint16)
    return read_ids(folder / f"{record.id}.png")


def _make_superpixels(count: int, shop: Workshop, stage: Output) -> None:
    if rank() == 0:
        make_superpixels(shop.records, stage.folder, count, progress=True)
        stage.outputs.update(count=len(shop.records))


def _copy_segments(folder: Path, shop: Workshop, stage: Output) -> None:
    if rank() > 0:
        return
    files = segment_files(folder, shop.dataset, shop.records, "--set method.segments=superpixels")
    each_image(
        partial(_copy_one, files, stage.folder),
        shop.records,
        "segments cannot be used, all others are ready",
        None,
        "segments",
        True,
        lambda record: record.id,
    )
    stage.outputs.update(count=len(shop.records))


def _copy_one(files: Mapping[str, Path], folder: Path, record: Record) -> None:
    path = folder / f"{record.id}.png"
    if not is_whole(read_ids, path):
        size = image_size(record.image)
        write_ids(path, index_map(read_segments(files[record.id], size), size))
