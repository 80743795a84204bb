"""Load a trained segmenter and predict masks with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer import config as knobs
from trainer.data.dataset import Record, read_index_png
from trainer.data.palette import write_index_png
from trainer.data.pixels import image_size, read_image
from trainer.data.sizes import enlarged, shrunk
from trainer.data.transforms import CAFFE_PIXELS, MEAN, STD, normalise
from trainer.errors import DataError
from trainer.pool import Work, over_images
from trainer.refine.crf import DenseCrf, Float, preset, unary_from_softmax
from trainer.segmenters import make_segmenter
from trainer.segmenters.base import Pixels, Segmenter
from trainer.segmenters.config import NETWORK_KNOBS, SegmentConfig
from trainer.training.devices import shard
from trainer.training.inference import Budget, finite, inference, iterate_views
from trainer.training.model_file import knobs_of, read_model

Guess = tuple[Record, Float]
BATCH = 4


def load(
    path: Path, expected: dict[str, Any], config: SegmentConfig | None = None
) -> tuple[Segmenter, nn.Module, dict[str, Any]]:
    """The trained segmenter of a ``model.pt``: how it is asked, its network in evaluation mode, and
    what it is.

    Args:
        path: the file.
        expected: entries of its identity that must agree; see ``read_model`` for errors.
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
