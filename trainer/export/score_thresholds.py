"""The score from which a class counts as present, for the graphs and the card of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.data.dataset import Dataset, Record
from trainer.evaluation.image_counts import group_numbers
from trainer.evaluation.image_scores import FILE, ImageScores, Values
from trainer.evaluation.metrics import finite_or_none
from trainer.evaluation.score_threshold import LOW, NEUTRAL, ScoreThreshold, choose_score_thresholds
from trainer.export.training_images import graph_on_images
from trainer.nets.graphs import SegmenterGraph
from trainer.run import Run

IMAGES = 300
"""How many training images a segmenter looks at, at most: one forward pass each."""


def classifier_thresholds(run: Run, dataset: Dataset) -> list[ScoreThreshold] | None:
    """Of the image scores that the run has; None for a run without them."""
    if "scores" not in run.complete:
        return None
    records = dataset.subset(run.manifest["train_list"])
    scores = ImageScores.read(run.path / FILE).of([record.id for record in records])
    return _chosen(scores, dataset, records)


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
    return _chosen(np.stack(rows).astype(np.float64), dataset, records, least=NEUTRAL)


def spread(records: Sequence[Record], most: int) -> list[Record]:
    """At most ``most`` records with as many as possible of the rare classes: each class and the
    negatives in turn give their next image.
    """
    queues: dict[int, list[Record]] = {}
    for record in records:
        for k in record.tags or (-1,):
            queues.setdefault(k, []).append(record)
    chosen: dict[str, Record] = {}
    rounds = max(map(len, queues.values()), default=0)
    for number in range(rounds):
        for queue in queues.values():
            if number < len(queue) and len(chosen) < most:
                chosen[queue[number].id] = queue[number]
    return [record for record in records if record.id in chosen]


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


def _chosen(
    scores: Values, dataset: Dataset, records: Sequence[Record], least: float = LOW
) -> list[ScoreThreshold]:
    tags = dataset.tag_matrix(records).astype(np.float64)
    return choose_score_thresholds(scores, tags, group_numbers(records), least)
