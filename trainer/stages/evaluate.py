"""Stage ``evaluate``: figures of the maps, the masks and the segmenters, on every list with true
masks.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from trainer.context import Context, Stage
from trainer.evaluation.measure import FOLDER, evaluation_facts, measure, measured_stages
from trainer.ranks import rank
from trainer.run import Output


def stage(names: Collection[str]) -> Stage:
    """The stage that measures those of the stages ``names`` that have figures."""
    return Stage("evaluate", measured_stages(names), _knobs, _work, FOLDER)


def _knobs(context: Context) -> Any:
    return evaluation_facts(context.dataset, context.measured_lists, context.configs.evaluate)


def _work(context: Context, output: Output) -> None:
    # Counting uses worker processes of its own, and all figures go into one file.
    if rank() == 0:
        config = context.configs.evaluate
        measure(context.run, context.dataset, context.measured_lists, config, output)
