"""Train a segmenter on masks, load it, and predict; which segmenter is a knob
(``trainer.segmenters``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer import config as knobs
from trainer.data.dataset import Record, read_index_png
from trainer.data.loader import Samples
from trainer.data.palette import write_index_png
from trainer.data.pixels import image_size, read_image
from trainer.data.sizes import enlarged, shrunk
from trainer.data.transforms import CAFFE_PIXELS, MEAN, STD, Rng, normalise
from trainer.errors import DataError, UserError
from trainer.pool import Work, over_images, raise_together
from trainer.refine.crf import DenseCrf, Float, preset, unary_from_softmax
from trainer.run import Metrics, Stage
from trainer.segmenters import make_segmenter
from trainer.segmenters.base import Pixels, Segmenter
from trainer.segmenters.config import NETWORK_KNOBS, SCRATCH, SegmentConfig
from trainer.training.devices import shard
from trainer.training.inference import Budget, finite, inference, iterate_views
from trainer.training.loop import train
from trainer.training.model_file import knobs_of, read_model, save_model

__all__ = [
    "SCRATCH",
    "SegmentConfig",
    "load",
    "make_sample",
    "predict",
    "read_pseudo_mask",
    "train_segmenter",
]

ReadMask = Callable[[Record], np.ndarray]
Guess = tuple[Record, Float]
BATCH = 4


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
    found = f"the mask of {record.id!r} is {mask[1]}x{mask[0]}, its image {image[1]}x{image[0]}"
    return found, "masks of the image's size"


def make_sample(
    record: Record, rng: Rng, segmenter: Segmenter, read_mask: ReadMask
) -> tuple[torch.Tensor, ...]:
    """Training view of an image and of its mask, and with a teacher the labels ``bool [L]`` that
    the image can have.

    Raises:
        DataError: a mask of another size, or with labels that no class has.
    """
    pixels, mask = read_image(record.image), read_mask(record)
    if mask.shape != pixels.shape[:2]:
        raise DataError(*_other_size(record, mask.shape, pixels.shape))
    labels = np.unique(mask)
    if len(wrong := labels[(labels > segmenter.num_classes) & (labels != 255)]):
        raise DataError(
            f"the mask of {record.id!r} has the label {wrong[0]}",
            f"0 to {segmenter.num_classes}, or 255 for open pixels",
        )
    image, label = segmenter.sample(pixels, mask, rng)
    if segmenter.config.teacher == "none":
        return image, label
    possible = torch.zeros(segmenter.num_classes + 1, dtype=torch.bool)
    possible[[0, *(k + 1 for k in record.tags)]] = True
    return image, label, possible


def train_segmenter(
    segmenter: Segmenter,
    network: nn.Module,
    records: Sequence[Record],
    read_mask: ReadMask,
    stage: Stage,
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
    last = train(
        network,
        segmenter.loss,
        segmenter.groups(network),
        Samples(records, make, seed),
        config,
        stage.folder,
        metrics,
        seed,
        metrics.stage,
        None,
        device,
        teacher=config.teacher != "none",
    )
    save_model(
        stage.folder, network, identity | {k: knobs.as_dict(config)[k] for k in NETWORK_KNOBS}
    )
    stage.metrics.update({k: float(f"{v:.6g}") for k, v in last.items()})
    stage.outputs.update(count=1, weights="model.pt", images=len(records))


def load(
    path: Path, expected: dict[str, Any], config: SegmentConfig | None = None
) -> tuple[Segmenter, nn.Module, dict[str, Any]]:
    """The trained segmenter of a ``model.pt``: how it is asked, its network in evaluation mode, and
    what it is.

    Args:
        path: the file.
        expected: entries of its identity that must agree; see ``classify.read_weights`` for errors.
        config: where knobs of the test come from.
    """
    identity, state = read_model(path, expected)
    made = knobs_of({k: identity[k] for k in NETWORK_KNOBS if k in identity})
    config = knobs.replace(config or SegmentConfig(), made, "segment")
    segmenter = make_segmenter(config, identity["backbone"], len(identity["classes"]))
    network = segmenter.build()
    network.load_state_dict(state)
    return segmenter, network.eval(), identity


def predict(
    segmenter: Segmenter,
    network: nn.Module,
    records: Sequence[Record],
    folder: Path,
    title: str,
    device: str = "auto",
    values: Sequence[int] = (),
) -> None:
    """Write a label map a record: the segmenter's probabilities, CRF, arg-max. What is there and
    loads is kept. ``values`` are those of the classes in the files, if not 1 to K.
    """
    config = segmenter.config
    table = np.array([0, *(values or range(1, segmenter.num_classes + 1))], np.uint8)
    missing = shard([r for r in records if not _readable(folder / f"{r.id}.png")])
    write = partial(_write, folder, table, config.crf, config.crf_image)
    workers = 0 if config.crf == "none" else None
    with inference(network, config.test_precision, device) as target:
        guesses = _probabilities(segmenter, network, missing, target)
        work = Work(_pixels, config.pixels)
        outcomes = over_images(write, guesses, workers, title, True, _name, len(missing), work)
        for _, problem in outcomes:
            if problem is not None:
                raise problem


def crf_picture(pixels: Pixels, kind: str) -> Pixels:
    """What the dense CRF sees of an image, ``uint8 [H,W,3]`` (spec refine-segment 2.4); channel
    order does not matter to it.
    """
    if kind == "raw":
        return pixels
    if kind == "meansub_wrap":
        return np.asarray(
            np.trunc(normalise(pixels, CAFFE_PIXELS)).astype(np.int64) % 256, np.uint8
        )
    restored = (normalise(pixels) * np.array(STD, np.float32) + np.array(MEAN, np.float32)) * 255
    return np.asarray(restored.clip(0, 255), np.uint8)


def _probabilities(
    segmenter: Segmenter, network: nn.Module, records: Sequence[Record], target: torch.device
) -> Iterator[Guess]:
    """Each record with its probabilities ``float32 [L,h,w]`` at the size that it is looked at."""
    config = segmenter.config
    budget = Budget(BATCH, config.pixels, max(config.scales))
    for batch in iterate_views(records, segmenter.views(), budget, config.workers):
        chance = segmenter.probabilities(
            network, [images.to(target) for images in batch.images], batch.working
        )
        chance = finite(chance.cpu(), "probabilities")
        yield from zip(batch.records, chance.numpy())


def _write(folder: Path, table: Pixels, crf: str, crf_image: str, guess: Guess) -> None:
    record, chance = guess
    if crf != "none":
        kernels = preset(crf)
        image = shrunk(read_image(record.image), (chance.shape[1], chance.shape[2]))
        field = DenseCrf(
            crf_picture(image, crf_image),
            kernels.gaussian,
            kernels.bilateral,
            "auto",
        )
        chance = field.infer(unary_from_softmax(chance), kernels.iterations)
    mask = enlarged(table[chance.argmax(0)], image_size(record.image))
    write_index_png(folder / f"{record.id}.png", mask)


def _name(guess: Guess) -> str:
    return guess[0].id


def _pixels(guess: Guess) -> int:
    return int(guess[1][0].size)


def _readable(path: Path) -> bool:
    try:
        read_index_png(path)
    except DataError:
        return False
    return True
