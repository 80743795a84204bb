"""Train a segmenter on masks; which segmenter is a knob."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer import config as knobs
from trainer.data.dataset import Record, read_index_png
from trainer.data.loader import Samples
from trainer.data.pixels import image_size, read_image
from trainer.data.transforms import Rng
from trainer.errors import DataError, UserError
from trainer.pool import raise_together
from trainer.run import Metrics, Output
from trainer.segmenters.base import Segmenter
from trainer.segmenters.config import NETWORK_KNOBS
from trainer.training.loop import Trainer

ReadMask = Callable[[Record], np.ndarray]


def read_pseudo_mask(record: Record, folder: Path) -> np.ndarray:
    """The refined mask of an image.

    Raises:
        DataError: it is missing or damaged.
    """
    return read_index_png(folder / f"{record.id}.png")


def check_masks(records: Sequence[Record], folder: Path) -> None:
    """Look at the header of every mask before hours are spent on the first of them.

    Raises:
        DataError: masks that are missing, damaged or not of their image's size, listed together.
    """
    problems: list[UserError] = []
    for record in records:
        try:
            _check_mask(record, folder / f"{record.id}.png")
        except DataError as error:
            problems.append(error)
    raise_together(problems, len(records), "masks cannot be trained on")


def _check_mask(record: Record, path: Path) -> None:
    if not path.exists():
        raise DataError(
            f"{path} is missing",
            "a mask of every image",
            "bring it back, or make the masks in a new --run",
        )
    mask, image = image_size(path), image_size(record.image)
    if mask != image:
        raise DataError(*_other_size(record, mask, image))


def _other_size(record: Record, mask: Sequence[int], image: Sequence[int]) -> tuple[str, str]:
    problem = f"the mask of {record.id!r} is {mask[1]}x{mask[0]}, its image {image[1]}x{image[0]}"
    return problem, "masks of the image's size"


def make_sample(
    record: Record, rng: Rng, segmenter: Segmenter, read_mask: ReadMask
) -> dict[str, torch.Tensor]:
    """Training view of an image and of its mask; with a teacher also which labels the image can
    have, ``possible`` bool ``[L]``.

    Raises:
        DataError: a mask of another size, or with labels that no class has.
    """
    pixels, mask = read_image(record.image), read_mask(record)
    if mask.shape != pixels.shape[:2]:
        raise DataError(*_other_size(record, mask.shape, pixels.shape))
    # ``check_masks`` reads headers only, which do not tell the values.
    labels = np.unique(mask)
    if len(wrong := labels[(labels > segmenter.num_classes) & (labels != 255)]):
        raise DataError(
            f"the mask of {record.id!r} has the label {wrong[0]}",
            f"0 to {segmenter.num_classes}, or 255 for open pixels",
        )
    image, label = segmenter.sample(pixels, mask, rng)
    if segmenter.config.teacher == "none":
        return {"image": image, "label": label}
    possible = torch.zeros(segmenter.num_classes + 1, dtype=torch.bool)
    possible[[0, *(k + 1 for k in record.possible)]] = True
    return {"image": image, "label": label, "possible": possible}


def train_segmenter(
    segmenter: Segmenter,
    network: nn.Module,
    records: Sequence[Record],
    read_mask: ReadMask,
    output: Output,
    metrics: Metrics,
    seed: int,
    identity: dict[str, Any],
    device: str = "auto",
) -> None:
    """Train ``network`` on the masks that ``read_mask`` returns and write ``model.pt``, which says
    what it is.
    """
    config = segmenter.config
    make = partial(make_sample, segmenter=segmenter, read_mask=read_mask)
    trainer = Trainer(
        network,
        segmenter.loss,
        segmenter.groups(network),
        Samples(records, make, seed),
        config,
        output.folder,
        metrics,
        seed,
        device,
    )
    segmenter.teacher = trainer.teacher
    trainer.run()
    trainer.save(output, identity | {k: knobs.as_dict(config)[k] for k in NETWORK_KNOBS})
