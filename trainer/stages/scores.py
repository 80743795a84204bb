"""Stage ``scores``: the classifier's score of every class for each training and reported image."""

from __future__ import annotations

from typing import Any

from trainer.context import Context, Stage
from trainer.evaluation.image_scores import FILE, ImageScores
from trainer.run import Output
from trainer.stages.classify import trained_method
from trainer.training.devices import rank
from trainer.training.inference import Budget, image_logits


def stage() -> Stage:
    """A stage after ``classify``."""
    return Stage("scores", ("classify",), _knobs, _work)


def _knobs(context: Context) -> Any:
    config = context.configs.cams
    return [config.precision, config.pixels, [record.id for record in context.scored]]


def _work(context: Context, output: Output) -> None:
    # One look at each image, where the maps take about fifteen: no work to share.
    if rank() > 0:
        return
    config, records = context.configs.cams, context.scored
    logits = image_logits(
        trained_method(context),
        records,
        config.precision,
        context.device,
        budget=Budget(config.batch, config.pixels),
        workers=config.workers,
        title="scores",
    )
    ids, classes = [record.id for record in records], context.dataset.classes
    ImageScores.of_logits(ids, classes, logits).write(context.run.path / FILE)
    output.outputs.update(count=len(records))
