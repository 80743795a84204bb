"""Figures of the classifier of a run: its image scores against the tags of every reported list."""

from __future__ import annotations

from typing import Any

from trainer.data.dataset import Dataset, group_count
from trainer.evaluation.image_counts import group_numbers
from trainer.evaluation.image_figures import image_figures
from trainer.evaluation.image_scores import FILE, ImageScores
from trainer.run import Run

CLASSIFIER = "classifier"
"""Its part of ``evaluation.json``: figures of image scores, which have no masks and no counts."""
VIEWS = {1: "plain image", 2: "image and mirror image", 4: "image in four orientations"}
"""What a score is the mean of, by the number of views; runs of earlier versions name none."""


def classifier_figures(run: Run, dataset: Dataset) -> dict[str, Any]:
    """AUROC and average precision on every reported list, by its name."""
    manifest, scores = run.manifest, ImageScores.read(run.path / FILE)
    training = set(dataset.lists[manifest["train_list"]])
    views = VIEWS[run.metrics("scores").get("views", 1)]
    entries = {}
    for name in dataset.reported_lists(manifest["train_list"], manifest["val_list"]):
        records = dataset.subset(name)
        ids = [record.id for record in records]
        figures = image_figures(
            scores.of(ids),
            dataset.tag_matrix(records),
            dataset.classes,
            group_numbers(records),
        )
        seen, groups = len(training & set(ids)), group_count(records)
        count = f"{len(ids)} images" + (f" in {groups} groups" if groups else "")
        line = (
            f"{name} ({count}), tags of {dataset.tags_from}; scores of"
            f" {manifest['method']} on {manifest['backbone']}, trained on"
            f" {manifest['train_list']} tags, seed {manifest['seed']}, {views}; any class: the"
            " largest score"
        )
        if seen:
            line += f"; optimistic: {seen} of the images trained the classifier"
        entries[name] = figures | {"trained_on": seen, "protocol": line}
    return entries
