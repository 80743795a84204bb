"""Figures of runs that differ in their seed alone: mean, deviation, and an interval over images and
seeds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from trainer.errors import RunError
from trainer.evaluation.bootstrap import compare_paired, miou_interval
from trainer.evaluation.conditions import differences
from trainer.evaluation.figures import restated
from trainer.evaluation.image_counts import ImageCounts, counts_path
from trainer.evaluation.measure import Entries, Figures, current_evaluation, in_convention
from trainer.evaluation.measure_classifier import CLASSIFIER
from trainer.evaluation.metrics import DEFAULT
from trainer.seed_folder import is_seed_folder, seed_runs

PLAIN = ("confusion", "objects", "conditions")
"""Parts of an entry that have no deviation worth telling."""
OF_ONE = ("worst", "weak_full", "sweep")
"""Parts of an entry that have no mean; every run sweeps thresholds of its own."""


def evaluation_of(path: Path, convention: str = DEFAULT) -> Entries:
    """Figures of a run, or of a folder of runs of several seeds, measured now where needed.

    Raises:
        RunError: neither of them.
        DataError: the data set has gone or changed.
    """
    if is_seed_folder(path):
        return over_seeds(seed_evaluations(path), convention)
    evaluation = current_evaluation(path)
    return evaluation if convention == DEFAULT else in_convention(path, evaluation, convention)


def seed_evaluations(folder: Path) -> dict[Path, Entries]:
    """``evaluation.json`` of every run of a folder of ``fit --seeds``, in the order of the seeds.

    Raises:
        RunError: no run has begun there.
    """
    runs = seed_runs(folder)
    if not runs:
        raise RunError(
            f"{folder} holds no run yet", "runs of several seeds", "the same fit command once more"
        )
    return {path: current_evaluation(path) for path in runs.values()}


def over_seeds(runs: Mapping[Path, Entries], convention: str = DEFAULT) -> Entries:
    """The figures of several runs in the form of ``evaluation.json``, every number the mean.

    An entry has three further parts: ``deviation`` (the sample deviation of every number; None for
    one run), ``seeds`` (mean IoU, threshold and protocol of each run), and ``cautions`` (what the
    runs do not have in common). ``miou_interval`` is over images and seeds.

    Args:
        runs: folder -> ``evaluation.json``.
        convention: of ``metrics.CONVENTIONS``.

    Raises:
        DataError: counts are missing.
    """
    result: Entries = {}
    places = {(stage, name): None for e in runs.values() for stage in e for name in e[stage]}
    for stage, name in places:
        have = {path: e[stage][name] for path, e in runs.items() if name in e.get(stage, {})}
        if stage == CLASSIFIER:
            entry = _mean_entry(list(have.values()))
        else:
            figures = [(read_counts(path, stage, name), e) for path, e in have.items()]
            entry = mean_figures(figures, convention)
            if stage == "segment":
                entry |= _weak_full(list(have), name, [e for _, e in figures], convention)
        lacking = [path.name for path in runs if path not in have]
        if lacking:
            entry["cautions"].insert(0, f"without {', '.join(lacking)}, which lacks these figures")
        result.setdefault(stage, {})[name] = entry
    return result


def read_counts(run: Path, stage: str, name: str) -> ImageCounts:
    """Counts of single images of a run's stage on a list."""
    return ImageCounts.read(counts_path(run, stage, name))


def mean_figures(figures: Sequence[Figures], convention: str = DEFAULT) -> dict[str, Any]:
    """The entry of one stage and list over several runs; see ``over_seeds``."""
    entries = [restated(entry, counts, convention) for counts, entry in figures]
    entry = _mean_entry(entries)
    both = set.intersection(*(set(counts.ids) for counts, _ in figures))
    ids = [name for name in figures[0][0].ids if name in both]
    common = [counts.select(ids) for counts, _ in figures]
    entry["miou_interval"] = miou_interval(common, convention).report()
    for _, other in figures[1:]:
        texts = differences(figures[0][1], other)
        entry["cautions"] += [text for text in texts if text not in entry["cautions"]]
    return entry


def _mean_entry(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    entry: dict[str, Any] = _tree(entries, fmean, skip=OF_ONE)
    entry["deviation"] = _tree(entries, _deviation, skip=(*OF_ONE, *PLAIN))
    entry["protocol"] = _protocol([e["protocol"] for e in entries])
    seeds = [_seed_of(e["protocol"]) for e in entries]
    if "conditions" in entry:
        entry["conditions"] |= {"seed": None, "seeds": [int(seed) for seed in seeds]}
    entry["seeds"] = {
        seed: {key: e.get(key) for key in ("miou", "threshold", "protocol") if key in e}
        for seed, e in zip(seeds, entries, strict=True)
    }
    entry["cautions"] = []
    return entry


def _tree(values: Sequence[Any], merge: Callable[[list[Any]], Any], skip: Sequence[str]) -> Any:
    """Trees of one form merged number by number; what differs and is no number is left out."""
    first = values[0]
    if isinstance(first, Mapping):
        keys = [k for k in first if k not in skip and "interval" not in k]
        both = [k for k in keys if all(k in value for value in values)]
        return {k: _tree([value[k] for value in values], merge, skip) for k in both}
    if isinstance(first, list) and len({len(value) for value in values}) == 1:
        return [_tree(list(parts), merge, skip) for parts in zip(*values, strict=True)]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        # Equal whole numbers, such as counts of images, stay whole.
        same = merge is fmean and len(set(values)) == 1
        return first if same else merge(list(values))
    return first if merge is fmean and all(value == first for value in values) else None


def _deviation(values: list[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


_SEED = re.compile(r", seed (\d+)")


def _seed_of(protocol: str) -> str:
    match = _SEED.search(protocol)
    assert match, protocol
    return match[1]


def _protocol(lines: Sequence[str]) -> str:
    seeds = [_seed_of(line) for line in lines]
    if len(lines) == 1:
        return lines[0]
    words = ", ".join(seeds[:-1]) + f" and {seeds[-1]}"
    texts = {_SEED.sub(f", mean over the seeds {words}", line, count=1) for line in lines}
    text = _SEED.sub(f", mean over the seeds {words}", lines[0], count=1)
    # Thresholds that are chosen for each run stand in its line.
    return text if len(texts) == 1 else f"{text} (of seed {seeds[0]}; other seeds by themselves)"


def _weak_full(
    paths: Sequence[Path], name: str, entries: Sequence[Mapping[str, Any]], convention: str
) -> dict[str, Any]:
    if not all("weak_full" in entry for entry in entries):
        return {}
    full, weak = (
        [read_counts(path, stage, name) for path in paths] for stage in ("segment_full", "segment")
    )
    return {"weak_full": compare_paired(full, weak, convention).report()}
