"""Stage ``refine``: the threshold of the maps, and the pseudo masks."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from trainer.config import as_dict
from trainer.context import Context, Stage, results_of
from trainer.data.tables.training_masks import LIST
from trainer.evaluation.threshold import Threshold, calibration, choose
from trainer.ranks import rank
from trainer.refine.pseudo_masks import make_pseudo_masks
from trainer.refine.vote import NONE, VoteConfig, make_vote
from trainer.run import Output
from trainer.stages.tuning import tune


def stage(after: str) -> Stage:
    """The stage that turns the maps of the stage ``after`` into masks."""
    return Stage("refine", (after,), _knobs, _work, folder="masks")


def _knobs(context: Context) -> Any:
    config = context.configs.refine
    sources = dict.fromkeys((config.threshold_from, LIST if config.crf == LIST else "fixed"))
    vote = make_vote(config, context.dataset, context.mapped)
    # Before the first stage: maps may take hours.
    vote.check_sizes(context.mapped)
    # Knobs of a vote that is not held are left out, so that runs of earlier versions keep their
    # keys. The files count, not the folder that they lie in.
    of_vote = {name: getattr(config, name) for name in as_dict(VoteConfig())}
    knobs = {name: value for name, value in results_of(config).items() if name not in of_vote}
    votes = [] if config.segments == NONE else [{**of_vote, "segments": vote.fingerprint}]
    return [knobs, *votes, *(text for source in sources for text in context.truth(source))]


def _work(context: Context, output: Output) -> None:
    # The first process fills every core with workers; the others would only compete.
    if rank() > 0:
        return
    config, maps = context.configs.refine, maps_folder(context)
    threshold = threshold_of(context, maps, config.threshold_from)
    if LIST in (config.threshold_from, config.crf):
        config, threshold, rows = tune(context, maps, threshold)
        output.metrics.update(crf=config.crf if config.with_crf else "none", tuning=rows)
    summary = make_pseudo_masks(
        context.dataset,
        context.mapped,
        maps,
        output.folder,
        config,
        threshold.value,
    )
    output.outputs.update(count=summary.pop("count"))
    output.metrics.update(
        summary, threshold_from=threshold.source, threshold_detail=threshold.detail
    )


def maps_folder(context: Context) -> Path:
    """The maps that masks are made from: after the walk where there is one."""
    walks = context.configs.refine.refine in ("affinity", "irn")
    return context.run.path / ("walk" if walks else "cams")


def threshold_of(context: Context, folder: Path, source: str) -> Threshold:
    """The background threshold of the maps in a folder; ``source`` as in ``RefineConfig``."""
    config, masks = context.configs.refine, context.masks
    if config.score == "rest" and folder == maps_folder(context):
        alpha = context.configs.affinity.walk_alpha
        detail = f"no threshold: (1 - max)^{alpha:g} walks along as background"
        return Threshold(0.0, "fixed", detail)
    return choose(
        source,
        config.threshold,
        masks if masks and source == LIST else context.dataset,
        context.labelled,
        folder,
        for_masks=True,
        without=context.run.left_out,
    )


def calibrated_by(context: Context) -> str:
    """Where the threshold of the maps before a walk comes from. A fixed threshold is one of the
    maps after the walk and says nothing of these.
    """
    source = context.configs.refine.threshold_from
    return "label_free" if source == "fixed" else source


# Several stages ask, and the answer reads every map.
@lru_cache(maxsize=1)
def power(context: Context) -> float:
    """What maps are raised to, so that the published constants of a walk fit them."""
    if not context.configs.refine.calibrate:
        return 1.0
    folder = context.run.path / "cams"
    return calibration(threshold_of(context, folder, calibrated_by(context)).value)
