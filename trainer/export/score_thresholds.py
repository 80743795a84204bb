"""The score from which a class counts as present, for the graphs and the card of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.data.dataset import Dataset
from trainer.evaluation.image_scores import FILE, ImageScores
from trainer.evaluation.metrics import finite_or_none
from trainer.evaluation.score_threshold import (
    IMAGES,
    NEUTRAL,
    ScoreThreshold,
    spread,
    thresholds_on,
)
from trainer.export.training_images import graph_on_images
from trainer.nets.graphs import SegmenterGraph
from trainer.run import Run


def classifier_thresholds(run: Run, dataset: Dataset) -> list[ScoreThreshold] | None:
    """Of the image scores that the run has; None for a run without them."""
    if "scores" not in run.complete:
        return None
    records = dataset.subset(run.manifest["train_list"])
    scores = ImageScores.read(run.path / FILE).of([record.id for record in records])
    return thresholds_on(scores, dataset, records)


def segmenter_thresholds(run: Run, dataset: Dataset, graph: SegmenterGraph) -> list[ScoreThreshold]:
    """Of the scores that the graph itself gives to training images; at least 0.5.

    A class that is nowhere more likely than all others together wins few pixels or none: a lower
    threshold would call present what the mask does not show.
    """
    records = spread(dataset.subset(run.manifest["train_list"]), IMAGES)
    rows = []
    for _, copied, image_1HW3 in graph_on_images(graph, records, "score thresholds"):
        results = [copied.run(view)[0] for view in copied.views(image_1HW3)]
        rows.append(copied.scores(results, 1)[0].cpu().numpy())
    return thresholds_on(np.stack(rows).astype(np.float64), dataset, records, least=NEUTRAL)


def card_entry(
    thresholds: Sequence[ScoreThreshold], class_names: Sequence[str], source: str
) -> dict[str, Any]:
    """What a card's ``thresholds`` says of them.

    ``score`` is the smallest, for servers that know one number only: with it no class of a mask
    counts as absent.
    """
    values = [threshold.value for threshold in thresholds]
    f1 = {name: finite_or_none(t.f1) for name, t in zip(class_names, thresholds, strict=True)}
    return {
        "score": min(values),
        "scores": values,
        "scores_from": (
            f"largest F1 on the tags of {source}, median of the choices without each of 5 folds;"
            " 0.5 for a class with too few images, at least 0.5 for a segmenter; the images also"
            " trained the model"
        ),
        "scores_f1": f1,
    }
