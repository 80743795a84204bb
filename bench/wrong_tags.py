"""Measure the list of tags that look wrong: flip some tags, and count how many of them it finds.

    python bench/wrong_tags.py DATA --weights FILE --lists train val

A share of the entries of the 0/1 table of tags is flipped, drawn by the seed. The list is cut where
it has as many entries as were flipped: its precision there is also its recall. Features are those
of the backbone on its initial weights, which have seen none of the tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import command_line
import numpy as np
from own_data import mean_and_deviation

from trainer.data.dataset import Dataset, Record
from trainer.data.formats.opening import open_dataset
from trainer.nets import build_backbone
from trainer.review.asking import Looks
from trainer.review.wrong_tags import wrong_tags
from trainer.training.inference import image_logits
from trainer.weights.cache import find_weights
from trainer.weights.loading import load_backbone

Entry = tuple[str, int]
"""An image, and a class."""


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", default="mobilenet_v2", help="network of the features")
    parser.add_argument("--weights", help="its weights; fit's default")
    parser.add_argument("--lists", nargs="+", default=["train"], help="each is measured by itself")
    parser.add_argument("--share", type=float, default=0.1, help="share of the entries to flip")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    args = parser.parse_args()
    dataset, network = open_dataset(args.data), build_backbone(args.backbone)
    load_backbone(network, find_weights(args.backbone, args.weights))
    for name in args.lists:
        records = dataset.subset(name)
        features = image_logits(Looks(network), records, device="cpu", title="features")
        values = [
            100 * precision(features, dataset, records, args.share, seed)
            for seed in range(args.seeds)
        ]
        flips = len(flipped(dataset, records, args.share, 0)[1])
        print(f"list {name}, {len(records)} images, {flips} flips: {mean_and_deviation(values)} %")


def precision(
    features: np.ndarray, dataset: Dataset, records: Sequence[Record], share: float, seed: int
) -> float:
    """Share of flipped entries among the first ones of the list, as many as were flipped."""
    spoiled, flips = flipped(dataset, records, share, seed)
    listed = wrong_tags(features, dataset, spoiled, seed)[: len(flips)]
    return len({(entry.id, entry.k) for entry in listed} & flips) / len(flips)


def flipped(
    dataset: Dataset, records: Sequence[Record], share: float, seed: int
) -> tuple[list[Record], set[Entry]]:
    """The records with flipped tags, and which entries are flipped. Unknown tags stay."""
    tags = dataset.tag_matrix(records)
    rows, columns = np.nonzero(np.isfinite(tags))
    order = np.random.default_rng(seed).permutation(len(rows))[: round(share * len(rows))]
    tags[rows[order], columns[order]] = 1 - tags[rows[order], columns[order]]
    spoiled = [
        replace(record, tags=tuple(np.flatnonzero(row == 1).tolist()))
        for record, row in zip(records, tags, strict=True)
    ]
    return spoiled, {(records[rows[n]].id, int(columns[n])) for n in order}


if __name__ == "__main__":
    main()
