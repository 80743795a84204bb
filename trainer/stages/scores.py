"""Stage ``scores``: the classifier's score of every class for each training and reported image.

A score is that of the mean logits of the image and its mirror images: those that the training saw
too. Of few images, a classifier learns some that it knows in one orientation only.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trainer.context import Context, Stage
from trainer.data.dataset import Record
from trainer.errors import DataError
from trainer.evaluation.image_scores import FILE, ImageScores, Values
from trainer.ranks import rank
from trainer.run import Output
from trainer.stages.classify import trained_method
from trainer.training.inference import image_logits, orientations

SAVE_EVERY = 30.0
"""Seconds of work that a run loses at most where it is killed."""


def stage() -> Stage:
    """A stage after ``classify``."""
    return Stage("scores", ("classify",), _knobs, _work)


def _knobs(context: Context) -> Any:
    config = context.configs.cams
    # Defaults add nothing to the key, so that runs of earlier versions keep theirs.
    sizes = [config.side] if config.side else []
    up = "upright" if context.configs.classify.upright else "any orientation"
    images = [record.id for record in context.scored]
    return [config.precision, config.pixels, *sizes, up, images]


def _work(context: Context, output: Output) -> None:
    # A few looks at each image, where the maps take about fifteen: no work to share.
    if rank() > 0:
        return
    config, path = context.configs.cams, context.run.path / FILE
    classes = context.dataset.classes
    rows = _earlier(path, classes)
    due = time.monotonic() + SAVE_EVERY

    def keep(records: list[Record], logits: np.ndarray) -> None:
        nonlocal due
        scores = ImageScores.of_logits([record.id for record in records], classes, logits)
        rows.update(zip(scores.ids, scores.scores, strict=True))
        if time.monotonic() >= due:
            _table(list(rows), classes, rows).write(path)
            due = time.monotonic() + SAVE_EVERY

    if missing := [record for record in context.scored if record.id not in rows]:
        image_logits(
            trained_method(context),
            missing,
            config.precision,
            context.device,
            budget=config.whole,
            views=partial(orientations, upright=context.configs.classify.upright),
            workers=config.workers,
            title="scores",
            on_batch=keep,
        )
    _table([record.id for record in context.scored], classes, rows).write(path)
    output.outputs.update(count=len(context.scored), made=len(missing))
    output.metrics["views"] = 2 if context.configs.classify.upright else 4


def _earlier(path: Path, classes: tuple[str, ...]) -> dict[str, Values]:
    """The scores that an interrupted run left, by image."""
    if not path.exists():
        return {}
    try:
        table = ImageScores.read(path)
    except DataError:
        return {}
    return dict(zip(table.ids, table.scores)) if table.class_names == classes else {}


def _table(ids: list[str], classes: tuple[str, ...], rows: dict[str, Values]) -> ImageScores:
    return ImageScores(tuple(ids), classes, np.stack([rows[name] for name in ids]))
