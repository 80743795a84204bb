"""The curve: figures against the number of true masks, from the finished runs.

Several runs of one point differ in seed or draw. Their figure is the mean of their mean IoU. Its
interval resamples the images of the validation list, the same ones for all points, and the runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.budget.runs import ALONE, ASK, BOTH, RANDOM, TAGS, Member
from trainer.evaluation.bootstrap import compare_paired, miou_interval
from trainer.evaluation.image_counts import ImageCounts, counts_path
from trainer.report.facts import BUDGET
from trainer.run import Run, write_json

FULL = "segment_full"
Counts = list[ImageCounts]
"""Of each run of a point."""
Point = tuple[str, str, int]
"""System, way and number of masks."""


def write_curve(
    run: Path, name: str, runs: Sequence[Member], seconds: Sequence[float], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Write ``budget.json`` into a run, and return its content.

    Args:
        run: the first one.
        name: list that is measured.
        runs: all of them, finished.
        seconds: of work a mask.
        facts: what else the file is to say.
    """
    points: dict[Point, list[Member]] = {}
    for member in runs:
        points.setdefault((member.system, member.way, member.count), []).append(member)
    systems = {
        point: [_counts(m.folder, m.stage, name) for m in own] for point, own in points.items()
    }
    bases = points[TAGS, "", 0]
    has_bound = all(counts_path(base.folder, FULL, name).exists() for base in bases)
    bound = [_counts(base.folder, FULL, name) for base in bases] if has_bound else None
    content = {
        **facts,
        "list": name,
        "images": len(systems[TAGS, "", 0][0].ids),
        "seconds": list(seconds),
        "key": Run.existing(run).key("segment"),
        "full": miou_interval(bound).ends() if bound else None,
        "points": [
            {
                "system": system,
                "chosen": way,
                "masks": count,
                "minutes": {f"{each:g}": round(count * each / 60, 1) for each in seconds},
                "miou": miou_interval(systems[system, way, count]).ends(),
                "deviation": _deviation(own, name),
                "weak_full": _ratio(bound, systems[system, way, count]),
                "against": _against(systems, (system, way, count)),
                "runs": [_entry(member, run, name) for member in own],
            }
            for (system, way, count), own in points.items()
        ],
    }
    write_json(run / BUDGET, content)
    return content


def _counts(run: Path, stage: str, name: str) -> ImageCounts:
    return ImageCounts.read(counts_path(run, stage, name))


def _deviation(runs: Sequence[Member], name: str) -> float | None:
    """Standard deviation of the mean IoU over runs; None for one run."""
    return float(np.std([_miou(m, name) for m in runs], ddof=1)) if len(runs) > 1 else None


def _miou(member: Member, name: str) -> float:
    evaluation = json.loads((member.folder / "evaluation.json").read_text())
    return float(evaluation[member.stage][name]["miou"])


def _ratio(full: Counts | None, weak: Counts) -> dict[str, float | None] | None:
    return compare_paired(full, weak).ratio.ends() if full else None


def _against(systems: Mapping[Point, Counts], point: Point) -> dict[str, dict[str, float | None]]:
    """Differences from the points that a point is to be compared with, by their name."""
    system, way, count = point
    others: dict[str, Point] = {}
    if count:
        others[TAGS] = (TAGS, "", 0)
    if system == BOTH:
        others[ALONE] = (ALONE, way, count)
    if way == ASK:
        others[RANDOM] = (system, RANDOM, count)
        others[f"{2 * count} {RANDOM}"] = (system, RANDOM, 2 * count)
    return {
        name: compare_paired(systems[other], systems[point]).difference.ends()
        for name, other in others.items()
        if other in systems
    }


def _entry(member: Member, run: Path, name: str) -> dict[str, Any]:
    return {
        "run": str(member.folder.relative_to(run)),
        "seed": member.seed,
        "draw": member.draw,
        "miou": _miou(member, name),
    }
