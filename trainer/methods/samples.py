"""Training samples of a classifier."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from trainer.data.dataset import Record
from trainer.data.pixels import read_image
from trainer.data.transforms import Rng, classify_planes
from trainer.methods.inputs import NO_INPUTS, Input
from trainer.methods.recipes import ClassifyConfig


def make_sample(
    record: Record,
    rng: Rng,
    config: ClassifyConfig,
    num_classes: int,
    inputs: Mapping[str, Input] = NO_INPUTS,
) -> dict[str, torch.Tensor]:
    """Training view of a record, its tags ``[K]``, 1 present, 0 absent, NaN unknown, and the
    further ``inputs`` under their names.
    """
    planes = {name: i.read(record) for name, i in inputs.items() if i.follows_image}
    image, views = classify_planes(
        read_image(record.image),
        list(planes.values()),
        rng,
        config.resize,
        config.crop,
        config.jitter,
        config.upright,
    )
    tags = torch.zeros(num_classes)
    tags[list(record.tags)] = 1
    tags[list(record.unknown)] = torch.nan
    values = {name: i.read(record) for name, i in inputs.items() if not i.follows_image}
    values |= zip(planes, views)
    extra = {name: torch.from_numpy(inputs[name].finish(value)) for name, value in values.items()}
    return {"image": image, "tags": tags, **extra}
