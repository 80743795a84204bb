"""Train a segmenter on masks; which segmenter is a knob."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer import config as knobs
from trainer.data.dataset import IGNORE, Record, read_index_png
from trainer.data.loader import Samples
from trainer.data.pixels import image_size, read_image
from trainer.data.sampling import MixedOrder
from trainer.data.sizes import PIXELS, enlarged, shrunk, working_size
from trainer.data.transforms import Rng
from trainer.errors import DataError, UserError
from trainer.pool import raise_together
from trainer.run import Metrics, Output
from trainer.segmenters.base import Pixels, Segmenter
from trainer.segmenters.config import NETWORK_KNOBS
from trainer.training.batch_norms import adapt
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
    record: Record,
    rng: Rng,
    segmenter: Segmenter,
    read_mask: ReadMask,
    true_ids: frozenset[str] = frozenset(),
) -> dict[str, torch.Tensor]:
    """Training view of an image and of its mask; with a teacher also which labels the image can
    have, ``possible`` bool ``[L]``; with true masks of some images also ``is_true``, whether it is
    one of them.

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
    config, extra = segmenter.config, dict[str, torch.Tensor]()
    size = working_size(mask.shape, PIXELS, side=config.side)
    pixels, mask = shrunk(pixels, size), enlarged(mask, size)
    if true_ids:
        is_true = record.id in true_ids
        extra["is_true"] = torch.tensor(is_true)
        if is_true and rng.random() < config.mask_centred:
            side = math.ceil(config.crop / min(config.scale))
            pixels, mask = around_object(pixels, mask, side, rng)
    if config.teacher != "none":
        possible = torch.zeros(segmenter.num_classes + 1, dtype=torch.bool)
        possible[[0, *(k + 1 for k in record.possible)]] = True
        extra["possible"] = possible
    image, label = segmenter.sample(pixels, mask, rng)
    if config.tag_loss:
        extra["tags"] = visible_tags(label, record, segmenter.num_classes)
    return {"image": image, "label": label, **extra}


def visible_tags(label_HW: torch.Tensor, record: Record, count: int) -> torch.Tensor:
    """What a view shows of each of ``count`` classes, ``float32 [K]``: 1 where a pixel has its
    label, 0 where the image cannot show it, and NaN where the view may have missed it.
    """
    tags = torch.zeros(count)
    tags[list(record.possible)] = torch.nan
    own = np.setdiff1d(label_HW, (0, IGNORE)).astype(np.int64)
    tags[own - 1] = 1
    return tags


def around_object(
    pixels_HW3: Pixels, mask_HW: Pixels, side: int, rng: Rng
) -> tuple[Pixels, Pixels]:
    """The window of ``side`` pixels around a pixel of a class in the mask, and its mask; the whole
    image where the mask shows no class. Small classes are drawn as often as large ones.
    """
    labels = np.setdiff1d(mask_HW, (0, IGNORE))
    if not len(labels):
        return pixels_HW3, mask_HW
    places = np.argwhere(mask_HW == rng.choice(labels))
    place = places[rng.integers(len(places))]
    sides = zip(place, mask_HW.shape, strict=True)
    rows, columns = (
        slice(low := int(np.clip(p - side // 2, 0, max(0, most - side))), low + side)
        for p, most in sides
    )
    return pixels_HW3[rows, columns], mask_HW[rows, columns]


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
    true_records: Sequence[Record] = (),
) -> None:
    """Train ``network`` on the masks that ``read_mask`` returns and write ``model.pt``, which says
    what it is.

    Of ``true_records``, it returns true masks: where there are others too, half of each batch are
    drawn from them.
    """
    config, true_ids = segmenter.config, frozenset(record.id for record in true_records)
    order = None
    if records and true_records:
        order = MixedOrder(records, len(true_records), config.negatives, config.balance, seed)
    make = partial(make_sample, segmenter=segmenter, read_mask=read_mask, true_ids=true_ids)
    samples = Samples([*records, *true_records], make, seed, order)
    adapt(getattr(network, "backbone", None), config.bn, samples)
    trainer = Trainer(
        network,
        segmenter.loss,
        segmenter.groups(network),
        samples,
        config,
        output.folder,
        metrics,
        seed,
        device,
    )
    segmenter.teacher = trainer.teacher
    trainer.run()
    trainer.save(output, identity | {k: knobs.as_dict(config)[k] for k in NETWORK_KNOBS})
