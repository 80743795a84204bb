"""Load a trained segmenter and predict masks with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer import config as knobs
from trainer.data.dataset import Dataset, Record, read_index_png
from trainer.data.palette import write_index_png
from trainer.data.pixels import image_size, read_image
from trainer.data.sizes import enlarged, shrunk, tiled_pixels
from trainer.data.transforms import CAFFE_PIXELS, MEAN, STD, normalise
from trainer.errors import one_of
from trainer.evaluation.score_threshold import IMAGES, NEUTRAL, spread, thresholds_on
from trainer.files import is_whole
from trainer.maps.camfile import cam_path, read_cam, reduced, stride4, write_cam
from trainer.pool import Work, over_images
from trainer.ranks import shard
from trainer.refine.crf import DenseCrf, Float, preset, unary_from_softmax
from trainer.segmenters import make_segmenter
from trainer.segmenters.base import Pixels, Segmenter
from trainer.segmenters.config import NETWORK_KNOBS, SegmentConfig
from trainer.training.inference import Budget, finite, inference, iterate_views
from trainer.training.model_file import knobs_of, read_model

Guess = tuple[Record, Float]
BATCH = 4
FLOOR = 0.01
"""Classes that are nowhere as probable have no map: most of them, and most of the disk space."""


def load(
    path: Path, expected: dict[str, Any], config: SegmentConfig | None = None
) -> tuple[Segmenter, nn.Module, dict[str, Any]]:
    """The trained segmenter of a ``model.pt``, its network in evaluation mode, and its identity.

    Args:
        path: the file.
        expected: entries of the identity that must agree; see ``read_model`` for errors.
        config: for the knobs of the test.
    """
    identity, state = read_model(path, expected)
    network_knobs = knobs_of({k: identity[k] for k in NETWORK_KNOBS if k in identity})
    config = knobs.replace(config or SegmentConfig(), network_knobs, "segment")
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
    maps: Path | None = None,
    least: Sequence[float] = (),
) -> None:
    """Write a label map per record: the segmenter's probabilities, CRF, arg-max.

    Files that exist and load stay as they are.

    Args:
        segmenter: with the knobs of the test.
        network: its network.
        records: images.
        folder: of the label maps.
        title: of the progress bar.
        device: ``auto``, ``cpu`` or ``cuda``.
        values: of the classes in the files, by default 1 to K.
        maps: folder for the probabilities, as maps at stride 4 of the classes that reach ``FLOOR``
            somewhere; None keeps none.
        least: probability that each class must reach somewhere to be in a mask; empty for none.
    """
    config = segmenter.config
    table = np.array([0, *(values or range(1, segmenter.num_classes + 1))], np.uint8)
    missing = [r for r in shard(records) if not _is_there(r, folder, maps)]
    write = partial(_write, folder, table, config.crf, config.crf_image, maps, list(least))
    workers = 0 if config.crf == "none" else None
    write_guesses(segmenter, network, missing, write, workers, title, device)


def verdict(
    segmenter: Segmenter,
    network: nn.Module,
    dataset: Dataset,
    records: Sequence[Record],
    title: str,
    device: str = "auto",
) -> list[float]:
    """The probability that each class must reach somewhere in an image to be shown, from the tags
    of training images: as the exported graph chooses it.
    """
    rows: dict[str, Float] = {}
    some = spread(records, IMAGES)

    def keep(guess: Guess) -> None:
        rows[guess[0].id] = guess[1][1:].max((1, 2))

    write_guesses(segmenter, network, some, keep, 0, title, device)
    scores = np.stack([rows[record.id] for record in some]).astype(np.float64)
    return [t.value for t in thresholds_on(scores, dataset, some, NEUTRAL)]


def write_guesses(
    segmenter: Segmenter,
    network: nn.Module,
    records: Sequence[Record],
    write: Callable[[Guess], None],
    workers: int | None,
    title: str,
    device: str = "auto",
) -> None:
    """Call ``write`` with each record and its probabilities ``float32 [L,h,w]`` at the working
    size, in ``workers`` processes.
    """
    config = segmenter.config
    with inference(network, config.test_precision, device) as target:
        guesses = _probabilities(segmenter, network, records, target)
        work = Work(_pixels, config.pixels)
        outcomes = over_images(write, guesses, workers, title, True, _name, len(records), work)
        for _, problem in outcomes:
            if problem is not None:
                raise problem


def crf_picture(pixels: Pixels, kind: str) -> Pixels:
    """The image ``uint8 [H,W,3]`` that the dense CRF sees; its channel order does not matter.

    Raises:
        ConfigError: an unknown kind.
    """
    one_of(kind, ("raw", "meansub_wrap", "denormalised"), "the image of the CRF")
    if kind == "raw":
        return pixels
    if kind == "meansub_wrap":
        # deeplab-pytorch casts the image minus the mean to 8 bits, where negative values wrap.
        whole = np.trunc(normalise(pixels, CAFFE_PIXELS)).astype(np.int64)
        return np.asarray(whole % 256, np.uint8)
    # LargeFOV's code undoes the normalisation and cuts off fractions.
    values = (normalise(pixels) * np.array(STD, np.float32) + np.array(MEAN, np.float32)) * 255
    return np.asarray(values.clip(0, 255), np.uint8)


def _probabilities(
    segmenter: Segmenter, network: nn.Module, records: Sequence[Record], target: torch.device
) -> Iterator[Guess]:
    """Each record with its probabilities ``float32 [L,h,w]`` at the working size."""
    config = segmenter.config
    pixels = tiled_pixels(config.pixels, config.tile)
    budget = Budget(BATCH, pixels, max(config.scales), side=config.side)
    for batch in iterate_views(records, segmenter.views(), budget, config.workers):
        views = [images.to(target) for images in batch.images]
        chance = segmenter.probabilities(network, views, batch.working)
        yield from zip(batch.records, finite(chance.cpu(), "probabilities").numpy())


def _is_there(record: Record, folder: Path, maps: Path | None) -> bool:
    """Whether the files of an image are whole."""
    mask = is_whole(read_index_png, folder / f"{record.id}.png")
    return mask and (maps is None or is_whole(read_cam, cam_path(maps, record.id)))


def _write(
    folder: Path,
    table: Pixels,
    crf: str,
    crf_image: str,
    maps: Path | None,
    least: Sequence[float],
    guess: Guess,
) -> None:
    record, chance = guess
    size = image_size(record.image)
    scores = chance[1:].max((1, 2))
    chance = sharpened(record, chance, crf, crf_image)
    if maps is not None:
        own = np.flatnonzero(chance[1:].max((1, 2)) >= FLOOR)
        values = reduced(np.ascontiguousarray(chance[1 + own], np.float32), stride4(size))
        write_cam(cam_path(maps, record.id), own, values.clip(0, 1), size)
    if least:
        chance = np.concatenate([chance[:1], chance[1:] * (scores >= least)[:, None, None]])
    mask = enlarged(table[chance.argmax(0)], size)
    write_index_png(folder / f"{record.id}.png", mask)


def sharpened(record: Record, chance_LHW: Float, crf: str, crf_image: str) -> Float:
    """Probabilities after the dense CRF ``crf`` on the image, or as they are for ``none``."""
    # One label alone is certain, and the CRF's back end refuses it.
    if crf == "none" or len(chance_LHW) == 1:
        return chance_LHW
    kernels = preset(crf)
    image = shrunk(read_image(record.image), (chance_LHW.shape[1], chance_LHW.shape[2]))
    field = DenseCrf(crf_picture(image, crf_image), kernels.gaussian, kernels.bilateral)
    return field.infer(unary_from_softmax(chance_LHW), kernels.iterations)


def _name(guess: Guess) -> str:
    return guess[0].id


def _pixels(guess: Guess) -> int:
    return int(guess[1][0].size)
