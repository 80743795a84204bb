"""Stage ``sure_masks``: the pseudo masks of the images without a true mask that trains, without
the pixels that are likely wrong.
"""

from __future__ import annotations

from typing import Any

from trainer.context import Context, Stage
from trainer.data.tables.training_masks import LIST
from trainer.ranks import rank
from trainer.refine.sure_masks import sure_levels, write_sure
from trainer.run import Output
from trainer.stages.refine import maps_folder

NAME = "sure_masks"


def stage() -> Stage:
    """The stage after ``refine``."""
    return Stage(NAME, ("refine",), _knobs, _work)


def _knobs(context: Context) -> Any:
    return [context.configs.segment.mask_precision, *context.truth(LIST)]


def _work(context: Context, output: Output) -> None:
    # The first process fills every core with workers; the others would only compete.
    if rank() > 0:
        return
    masks, left_out = context.masks, context.run.left_out
    assert masks is not None
    pseudo, maps = context.run.path / "masks", maps_folder(context)
    images = [record for record in masks.images if record.id not in left_out]
    others = [r for r in context.training if r.id not in masks.ids | left_out]
    precision = context.configs.segment.mask_precision
    levels = sure_levels(masks, images, pseudo, maps, precision)
    output.outputs.update(write_sure(others, pseudo, maps, output.folder, levels))
    names = ("background", *context.dataset.classes)
    output.metrics.update(levels=dict(zip(names, levels.round(2).tolist(), strict=True)))
