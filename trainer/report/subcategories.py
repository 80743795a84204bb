"""The sub-categories that a method's preparation found in each class: sizes and images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Dataset, Record
from trainer.data.pixels import read_image
from trainer.pool import over_images
from trainer.report.charts import strip
from trainer.report.facts import Facts
from trainer.report.pictures import Size, fit, photo_address

# The most pictures of all sub-categories together, and of one.
PICTURES, EACH = 240, 6
# Longer side of a picture.
SIDE = 112


@dataclass(frozen=True)
class Small:
    """A photograph: its name, its address and its size."""

    id: str
    source: str
    size: Size


@dataclass(frozen=True)
class Clusters:
    """The sub-categories of a stage.

    Attributes:
        stage: its name.
        ids: the N images.
        members: bool ``[N,S]``, the images of each of all S sub-categories.
        counts: number of sub-categories of each class.
    """

    stage: str
    ids: tuple[str, ...]
    members: npt.NDArray[np.bool_]
    counts: tuple[int, ...]

    def of(self, k: int) -> npt.NDArray[np.bool_]:
        """Members ``[N,s]`` of the sub-categories of class ``k`` with any, largest first."""
        start = sum(self.counts[:k])
        own = self.members[:, start : start + self.counts[k]]
        order = np.argsort(-own.sum(0), kind="stable")
        return own[:, order[: int((own.any(0)).sum())]]


def subcategories(facts: Facts, max_images: int) -> dict[str, Any] | None:
    """Sizes after every stage that clustered, and images of the last; None without any."""
    rounds = [c for stage in facts.stages if (c := _read(facts, stage)) is not None]
    if not rounds:
        return None
    pictures = (
        _pictures(facts.dataset, rounds[-1]) if facts.dataset is not None and max_images > 0 else []
    )
    tables = [{"stage": c.stage, "rows": _sizes(facts, c)} for c in reversed(rounds)]
    return {"tables": tables, "pictures": pictures}


def _read(facts: Facts, stage: str) -> Clusters | None:
    path = facts.run / stage / "subcategories.npz"
    try:
        # Not through trainer.methods.subcategories, which would load torch.
        with np.load(path, allow_pickle=False) as archive:
            ids, members = tuple(map(str, archive["ids"])), archive["labels"].astype(bool)
            counts = tuple(int(n) for n in archive["counts"])
    # Missing, or damaged in one of the many ways of a zip file.
    except Exception:
        return None
    whole = members.shape == (len(ids), sum(counts)) and len(counts) == len(facts.classes)
    return Clusters(stage, ids, members, counts) if whole else None


def _sizes(facts: Facts, clusters: Clusters) -> list[dict[str, Any]]:
    rows = []
    for k, name in enumerate(facts.classes):
        sizes = clusters.of(k).sum(0).tolist()
        label = f"{name}: {', '.join(map(str, sizes))}"
        extremes = [max(sizes, default=0), min(sizes, default=0), sum(sizes)]
        row = {"count": len(sizes), "chart": strip(sizes, "var(--cam)", label)}
        rows.append({"name": name, "label": k + 1, **row, "numbers": extremes})
    return rows


def _pictures(dataset: Dataset, clusters: Clusters) -> list[dict[str, Any]]:
    """The first images of each sub-category, or of the largest of each class if there are many."""
    members = [clusters.of(k) for k in range(len(dataset.classes))]
    groups = max(sum(own.shape[1] for own in members), 1)
    each = min(EACH, max(1, PICTURES // groups))
    limit = max(1, PICTURES // (each * max(len(members), 1)))
    strips = [
        [[clusters.ids[n] for n in np.flatnonzero(own[:, s])[:each]] for s in range(own.shape[1])]
        for own in members
    ]
    ids = dict.fromkeys(i for own in strips for part in own[:limit] for i in part)
    records = [dataset.records[i] for i in ids if i in dataset.records]
    results = over_images(_small, records, None if len(records) > 2 * EACH else 0, "sub-categories")
    images = {record.id: image for record, image in results if isinstance(image, Small)}
    return [
        {
            "name": dataset.classes[k],
            "label": k + 1,
            "strips": [
                (int(members[k][:, s].sum()), [images[i] for i in part if i in images])
                for s, part in enumerate(own[:limit])
            ],
        }
        for k, own in enumerate(strips)
    ]


def _small(record: Record) -> Small:
    photo = read_image(record.image)
    size = fit(photo.shape, SIDE)
    return Small(record.id, photo_address(photo, size, 65), size)
