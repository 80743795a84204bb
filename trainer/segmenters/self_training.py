"""The masks of the next round of self-training: what the segmenter predicts for the images that
trained it, as far as their tags allow.

Self-training repeats a training on the network's own confident predictions (Lee, "Pseudo-Label",
ICML 2013 workshop; Zoph et al., "Rethinking Pre-training and Self-training", NeurIPS 2020). Tags
are certain, so they filter the predictions twice. A class that the tags exclude gets probability 0
before the rest is divided anew. And a class that an image shows by its tag must show: where the
network finds no pixel of it, the pixels of the mask that trained the network stay. Without this
rule, small objects that a network has missed once would be background in all later rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from trainer.data.dataset import IGNORE, Record, read_index_png
from trainer.data.palette import write_index_png
from trainer.data.pixels import image_size
from trainer.data.sizes import enlarged
from trainer.files import is_whole
from trainer.ranks import shard
from trainer.refine.crf import Float
from trainer.segmenters.base import Pixels, Segmenter
from trainer.segmenters.prediction import Guess, sharpened, write_guesses


def write_round(
    segmenter: Segmenter,
    network: nn.Module,
    records: Sequence[Record],
    former: Path,
    folder: Path,
    crf: str,
    title: str,
    device: str = "auto",
) -> None:
    """Write the mask of every record for the next round; masks that exist and load stay.

    Args:
        segmenter: with the knobs of the test and of self-training.
        network: that the masks in ``former`` have trained.
        records: the images that trained it.
        former: folder of the masks that trained it.
        folder: of the new masks.
        crf: preset of the dense CRF, or ``none``.
        title: of the progress bar.
        device: ``auto``, ``cpu`` or ``cuda``.
    """
    config = segmenter.config
    missing = [r for r in shard(records) if not is_whole(read_index_png, folder / f"{r.id}.png")]
    write = partial(_write, folder, former, crf, config.crf_image, config.round_confidence)
    # A CRF takes a core for each image; without one, writing is all that is left to do.
    workers = 0 if crf == "none" else None
    write_guesses(segmenter, network, missing, write, workers, title, device)


def _write(
    folder: Path, former: Path, crf: str, crf_image: str, confidence: float, guess: Guess
) -> None:
    record, chance = guess
    name = f"{record.id}.png"
    labels = np.array([0, *(k + 1 for k in record.possible)], np.uint8)
    chance = sharpened(record, allowed(chance, labels), crf, crf_image)
    mask = enlarged(confident_labels(chance, labels, confidence), image_size(record.image))
    write_index_png(folder / name, with_tags(mask, read_index_png(former / name), record.tags))


def allowed(chance_LHW: Float, labels: Pixels) -> Float:
    """Probabilities ``float32 [len(labels),H,W]`` of ``labels`` alone, which sum to 1."""
    chance = chance_LHW[labels]
    # Where the network is certain of an excluded class, the others may all be 0.
    floor = np.float32(1e-7)
    return np.asarray((chance + floor) / (chance + floor).sum(0), np.float32)


def confident_labels(chance_CHW: Float, labels: Pixels, confidence: float) -> Pixels:
    """``uint8 [H,W]``: the most probable of ``labels``, 255 where its probability is below
    ``confidence``.
    """
    sure = chance_CHW.max(0) >= confidence
    return np.where(sure, labels[chance_CHW.argmax(0)], np.uint8(IGNORE))


def with_tags(mask_HW: Pixels, former_HW: Pixels, tags: Sequence[int]) -> Pixels:
    """The mask with the pixels that ``former_HW`` has of each tagged class that it lacks."""
    mask = mask_HW.copy()
    for label in (k + 1 for k in tags):
        if not (mask_HW == label).any():
            mask[former_HW == label] = label
    return mask
