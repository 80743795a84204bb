"""What the preparations of a method found: the sub-categories of each class, their sizes, and
images of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape as esc

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Dataset, Record
from trainer.data.pixels import read_image
from trainer.errors import DataError, UserError
from trainer.pool import over_images
from trainer.report.facts import Facts
from trainer.report.page import details, note, table
from trainer.report.row import thumb_size, thumbnail
from trainer.report.sections import label_cell

#: Pictures of all sub-categories together, and of one at most.
PICTURES, EACH = 240, 6
#: Longer side of a picture.
SIDE = 112


@dataclass(frozen=True)
class Clusters:
    """The sub-categories that a stage left: images, ``bool [N,S]`` who is in which, and how many
    each class has.
    """

    stage: str
    ids: tuple[str, ...]
    members: npt.NDArray[np.bool_]
    counts: tuple[int, ...]

    def of(self, k: int) -> npt.NDArray[np.bool_]:
        """Members ``[N,s]`` of the sub-categories of class ``k`` that have any, largest first."""
        start = sum(self.counts[:k])
        own = self.members[:, start : start + self.counts[k]]
        order = np.argsort(-own.sum(0), kind="stable")
        return own[:, order[: int((own.any(0)).sum())]]


def subcategories(facts: Facts, max_images: int) -> str:
    """Sizes after every stage that clustered, and images of the last one's; empty for methods
    without sub-categories.
    """
    found = [c for stage in facts.stages if (c := _read(facts, stage)) is not None]
    if not found:
        return ""
    lead = (
        "The clusters of training images that the second head of the classifier learns to tell"
        " apart, class by class."
    )
    last = found[-1]
    parts = [f"<p>{lead}</p>", _sizes(facts, last)]
    parts += [details(f"After {c.stage}", _sizes(facts, c)) for c in reversed(found[:-1])]
    if facts.dataset is not None and max_images > 0:
        parts.append(details("Images of each sub-category", _pictures(facts, facts.dataset, last)))
    return "".join(parts)


def _read(facts: Facts, stage: str) -> Clusters | None:
    path = facts.run / stage / "subcategories.npz"
    try:
        # Not by trainer.methods.subcategories, which would load torch.
        with np.load(path, allow_pickle=False) as stored:
            ids, members = tuple(map(str, stored["ids"])), stored["labels"].astype(bool)
            counts = tuple(int(n) for n in stored["counts"])
    except Exception:  # Missing or damaged in any of a zip file's ways.
        return None
    whole = members.shape == (len(ids), sum(counts)) and len(counts) == len(facts.classes)
    return Clusters(stage, ids, members, counts) if whole else None


def _sizes(facts: Facts, clusters: Clusters) -> str:
    rows = []
    for k, name in enumerate(facts.classes):
        sizes = clusters.of(k).sum(0).tolist()
        rows.append(
            [
                label_cell(facts, k + 1),
                str(len(sizes)),
                _strip(sizes, f"{name}: {', '.join(map(str, sizes))}"),
                str(max(sizes, default=0)),
                str(min(sizes, default=0)),
                str(sum(sizes)),
            ]
        )
    head = (
        "Class",
        "#Sub-categories",
        "Share of images, largest first",
        "#Largest",
        "#Smallest",
        "#Images",
    )
    return table(head, rows, f"After {clusters.stage}", "sortable strips")


def _strip(sizes: Sequence[int], label: str) -> str:
    total, left, drawn = max(sum(sizes), 1), 0, ""
    for i, size in enumerate(sizes):
        place = f'x="{100 * left / total:.2f}%" width="{100 * size / total:.2f}%"'
        drawn += (
            f'<rect {place} height="10" fill="var(--cam)"'
            f' fill-opacity="{1 if i % 2 == 0 else 0.55}"/>'
        )
        left += size
    return (
        '<svg class="bars" width="100%" height="10" role="img"'
        f' aria-label="{esc(label)}">{drawn}</svg>'
    )


def _pictures(facts: Facts, dataset: Dataset, clusters: Clusters) -> str:
    """The first images of each sub-category; with very many of them, of the largest of each
    class.
    """
    own = {k: clusters.of(k) for k in range(len(facts.classes))}
    groups = max(sum(o.shape[1] for o in own.values()), 1)
    each = min(EACH, max(1, PICTURES // groups))
    kept = max(1, PICTURES // (each * max(len(own), 1)))
    chosen = {
        (k, s): np.flatnonzero(o[:, s])[:each]
        for k, o in own.items()
        for s in range(min(o.shape[1], kept))
    }
    ids = dict.fromkeys(clusters.ids[n] for rows in chosen.values() for n in rows)
    records = [dataset.records[i] for i in ids if i in dataset.records]
    results = over_images(_small, records, None if len(records) > 2 * EACH else 0, "sub-categories")
    made = {record.id: html for record, html in results if not isinstance(html, UserError)}
    body = ""
    for k in own:
        strips = "".join(
            f"<li><small>{int(own[k][:, s].sum())}</small>"
            f"{''.join(made.get(clusters.ids[n], '') for n in rows)}</li>"
            for (c, s), rows in chosen.items()
            if c == k
        )
        body += f'<h4>{label_cell(facts, k + 1)}</h4><ul class="clusters">{strips}</ul>'
    return body


def _small(record: Record) -> str:
    try:
        photo = read_image(record.image)
    except DataError as error:
        return note(error.found)
    width, height = size = thumb_size(photo, SIDE)
    return (
        f'<img src="{thumbnail(photo, size, 70)}" alt="{esc(record.id)}" title="{esc(record.id)}" '
        f'width="{width}" height="{height}" loading="lazy" decoding="async">'
    )
