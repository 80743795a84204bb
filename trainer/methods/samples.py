"""Training samples of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trainer.data.dataset import Record
from trainer.data.pixels import read_image
from trainer.data.superpixels import make_segments, read_segments, renumbered
from trainer.data.transforms import Rng, classify_planes
from trainer.methods.base import Method
from trainer.methods.recipes import ClassifyConfig
from trainer.methods.subcategories import Subcategories
from trainer.run import Output
from trainer.training.devices import rank, shard, wait_for_all


def method_loss(
    module: Method, images: torch.Tensor, tags: torch.Tensor, *more: Any
) -> dict[str, torch.Tensor]:
    """The method's loss, in the form that the loop calls: ``more`` is the generator, after what
    else a sample has.
    """
    *extra, rng = more
    return module.loss(images, tags, rng, *extra)


def make_sample(
    record: Record,
    rng: Rng,
    config: ClassifyConfig,
    num_classes: int,
    superpixels: Path | None = None,
    subcategories: Subcategories | None = None,
) -> tuple[torch.Tensor, ...]:
    """Training view and 0/1 tags of a record.

    With a folder of ``superpixels`` also their ids 1, 2, ... in the view, with ``subcategories``
    also their labels.
    """
    ids = [] if superpixels is None else [read_segments(record, superpixels)]
    image, cut = classify_planes(
        read_image(record.image), ids, rng, config.resize, config.crop, config.jitter
    )
    tags = torch.zeros(num_classes)
    tags[list(record.tags)] = 1
    labels = [] if subcategories is None else [subcategories.of(record.id)]
    return (image, tags, *(torch.from_numpy(renumbered(plane)) for plane in cut), *labels)


def prepare_superpixels(
    records: Sequence[Record], count: int, config: ClassifyConfig, output: Output
) -> Path:
    """Folder of the images' super-pixels, beside the stage's: they outlive a change of the
    training.
    """
    folder = output.folder.parent / "superpixels" / str(count)
    workers = None if config.workers < 0 else config.workers
    make_segments(shard(records), folder, count, workers, progress=rank() == 0)
    wait_for_all()
    return folder
