"""Figures of masks or maps that others made, in the same words and with the same counts as those of
a run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainer.config import as_dict
from trainer.data.dataset import IGNORE, Dataset, Record
from trainer.data.formats.opening import open_dataset
from trainer.data.knobs import DataConfig
from trainer.errors import ConfigError, DataError, RunError, UserError
from trainer.evaluation.bootstrap import miou_interval
from trainer.evaluation.boundary import CSURKA
from trainer.evaluation.figures import Conditions, MaskEvaluation
from trainer.evaluation.foreign import (
    ForeignCams,
    ForeignMasks,
    Numbering,
    Pixels,
    describe,
    foreign_cams,
    foreign_masks,
)
from trainer.evaluation.foreign_files import Kind, kind_of, strangers
from trainer.evaluation.image_counts import ImageCounts, counts_path
from trainer.evaluation.over_lists import (
    MaskSource,
    evaluate_cams,
    evaluate_folder,
    sweep_thresholds,
)
from trainer.evaluation.predictions import thresholded
from trainer.evaluation.threshold import Threshold, choose
from trainer.pool import over_images
from trainer.run import write_json

STAGES: dict[Kind, str] = {"masks": "segment", "cams": "cam"}
"""Under which stage of ``evaluation.json`` a folder stands, so that it can be compared with that of
a run.
"""


@dataclass(frozen=True)
class Folder:
    """A folder to measure, and how.

    Attributes:
        path: masks or maps by image id.
        data: the data set.
        list: of the data set, with true masks.
        kind: masks or maps; None to look.
        labels: how classes are numbered, see ``foreign.open_folder``.
        masks: what masks hold: class indices, the colours of the VOC palette, or ``binary``.
        threshold: of maps, fixed.
        threshold_from: who chooses it, see ``refine.threshold.choose``.
        threshold_cams: maps of the list that it is chosen on; None for ``path``.
        bad: what becomes of images without a usable file: ``stop``, or ``skip`` them and say so.
        tolerance: of the boundary F-score.
        protocol: what the user knows about how they were made, for the protocol line.
        stage: of ``evaluation.json``; None for ``STAGES``.
        config: how the data set is read.
    """

    path: Path
    data: Path
    list: str
    kind: Kind | None = None
    labels: Numbering = "ours"
    masks: Pixels = "index"
    threshold: float | None = None
    threshold_from: str | None = None
    threshold_cams: Path | None = None
    bad: Literal["stop", "skip"] = "stop"
    tolerance: float = CSURKA
    protocol: str = ""
    stage: str | None = None
    config: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True)
class FolderFigures:
    """What was measured.

    Attributes:
        stage: of ``evaluation.json``.
        entry: its entry for the list.
        images: confusions of single images.
        masks: reads the label map of an image, as it was measured.
        dataset: the data set.
    """

    stage: str
    entry: dict[str, Any]
    images: ImageCounts
    masks: MaskSource
    dataset: Dataset


def measure_folder(
    folder: Folder, workers: int | None = None, progress: bool = False
) -> FolderFigures:
    """Check every file of the list, then measure.

    Raises:
        DataError: a list without true masks; or files that are missing, misnamed, of another size
            or with other labels, all listed at once.
        ConfigError: options that contradict each other.
    """
    dataset = open_dataset(folder.data, config=folder.config)
    records, kind = _listed(dataset, folder.list), folder.kind or kind_of(folder.path)
    if kind == "masks" and (
        folder.threshold is not None or folder.threshold_from or folder.threshold_cams
    ):
        raise ConfigError(
            f"{folder.path} holds masks, and masks have no threshold", "--threshold for maps only"
        )
    check = _Check(folder, dataset, workers, progress)
    usable, left_out = check.usable(folder.path, kind, records)
    measured, entry, masks = (_masks if kind == "masks" else _cams)(check, usable)
    entry |= {
        "miou_interval": miou_interval(measured.images).report(),
        "left_out": left_out,
        "extra": strangers(folder.path, kind, dataset.records),
        "source": {
            "kind": kind,
            "folder": str(folder.path.resolve()),
            "labels": folder.labels,
            "masks": folder.masks,
            "data": str(folder.data.resolve()),
            "config": as_dict(folder.config),
        },
    }
    return FolderFigures(folder.stage or STAGES[kind], entry, measured.images, masks, dataset)


def holds_figures(folder: Path) -> bool:
    """Whether figures of an earlier command are kept in a folder."""
    try:
        kept = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        return all("miou" in entry for lines in kept.values() for entry in lines.values())
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def keep(figures: FolderFigures, list_name: str, out: Path) -> None:
    """Write ``evaluation.json`` and the counts to ``out``, beside figures of other stages and lists
    that are there.

    Raises:
        RunError: ``out`` is a run, whose figures are its own; or it cannot be written.
    """
    if (out / "manifest.json").exists():
        raise RunError(f"{out} is a run, which has figures of its own", "another folder for --out")
    path = out / "evaluation.json"
    evaluation = json.loads(path.read_text()) if path.exists() else {}
    figures.images.write(counts_path(out, figures.stage, list_name))
    evaluation.setdefault(figures.stage, {})[list_name] = figures.entry
    write_json(path, evaluation)


def _listed(dataset: Dataset, name: str) -> list[Record]:
    records = dataset.masked(name)
    if not records:
        raise DataError(
            f"all {len(dataset.lists[name])} images of list {name!r} have no true mask",
            "a list whose images have true masks",
            f"one of the lists of {dataset.root}: {', '.join(sorted(dataset.lists))}",
        )
    return records


@dataclass(frozen=True)
class _Check:
    """What every step needs, and the look at single files that comes before any figure."""

    folder: Folder
    dataset: Dataset
    workers: int | None
    progress: bool

    def usable(
        self, path: Path, kind: Kind, records: Sequence[Record]
    ) -> tuple[list[Record], dict[str, str]]:
        """Images whose file can be used, and what is wrong with those of the others."""
        reader = self.cams(path) if kind == "cams" else self.masks(path)
        problems: dict[str, UserError] = {}
        found, title = [], f"check {path.name}"
        shown: set[int] = set()
        outcomes = over_images(
            partial(_try, reader), records, self.workers, title, self.progress, lambda r: r.id
        )
        for record, problem in outcomes:
            if isinstance(problem, UserError):
                problems[record.id] = problem
            else:
                found.append(record)
                shown |= problem or set()
        if problems and (self.folder.bad == "stop" or not found):
            what = f"{'masks' if kind == 'masks' else 'maps'} of {path}"
            extra = strangers(path, kind, self.dataset.records)
            raise describe(problems, len(records), what, extra, self.dataset.records)
        if IGNORE in shown and shown <= {0, IGNORE}:
            raise _all_open(path, self.dataset.classes)
        return found, {name: problem.found for name, problem in problems.items()}

    def masks(self, path: Path) -> ForeignMasks:
        return foreign_masks(path, self.dataset, self.folder.labels, self.folder.masks)

    def cams(self, path: Path) -> ForeignCams:
        return foreign_cams(path, self.dataset, self.folder.labels)

    def conditions(self, what: str, measured: int, threshold_from: str | None = None) -> Conditions:
        folder, dataset = self.folder, self.dataset
        return Conditions(
            list=folder.list,
            listed=len(dataset.lists[folder.list]),
            unmasked=len(dataset.lists[folder.list]) - len(dataset.masked(folder.list)),
            measured=measured,
            labels=len(dataset.classes) + 1,
            truth=dataset.masks_from,
            method=f"{what} of {folder.path.resolve()}",
            backbone=None,
            train_list=None,
            tags_from=None,
            initial_weights=None,
            segmenter=None,
            seed=None,
            tags=None,
            views=None,
            crf=None,
            threshold_from=threshold_from,
            note=folder.protocol,
        )


def _try(reader: ForeignMasks | ForeignCams, record: Record) -> set[int]:
    """Labels that a mask shows; nothing for maps."""
    read = reader(record)
    return set(np.unique(read).tolist()) if isinstance(read, np.ndarray) else set()


def _all_open(path: Path, classes: Sequence[str]) -> DataError:
    """Masks as most tools write one class: 255 would count as background everywhere."""
    one = len(classes) == 1
    return DataError(
        f"the masks of {path} hold 0 and 255 only, and 255 is a pixel that is left open",
        f"0 for background, 1 to {len(classes)} for the classes",
        "--masks binary reads 255 as the one class"
        if one
        else f"save the index of the class (1 {classes[0]}, 2 {classes[1]}, ...) instead of 255",
    )


Figures = tuple[MaskEvaluation, dict[str, Any], MaskSource]


def _masks(check: _Check, usable: Sequence[Record]) -> Figures:
    folder, reader = check.folder, check.masks(check.folder.path)
    measured = evaluate_folder(
        check.dataset,
        usable,
        reader,
        tolerance=folder.tolerance,
        workers=check.workers,
        progress=check.progress,
    )
    conditions = check.conditions("masks", len(usable))
    return (
        measured,
        measured.report(conditions.line()) | {"conditions": conditions.report()},
        reader,
    )


def _cams(check: _Check, usable: Sequence[Record]) -> Figures:
    folder, reader = check.folder, check.cams(check.folder.path)
    threshold = _threshold(check, usable)
    swept = evaluate_cams(
        check.dataset,
        usable,
        reader,
        sweep_thresholds(threshold.value),
        at=threshold.value,
        tolerance=folder.tolerance,
        workers=check.workers,
        progress=check.progress,
    )
    assert swept.chosen is not None
    said = "oracle" if threshold.source == folder.list else threshold.source
    conditions = check.conditions("maps", len(usable), said)
    entry = swept.report(threshold.value, said, f"{conditions.line()}; {threshold.detail}")
    masks = partial(thresholded, reader, threshold.value)
    return swept.chosen, entry | {"conditions": conditions.report()}, masks


def _threshold(check: _Check, usable: Sequence[Record]) -> Threshold:
    folder, dataset = check.folder, check.dataset
    if folder.threshold is not None and folder.threshold_from not in (None, "fixed"):
        raise ConfigError(
            "a --threshold, and a --threshold-from that would choose another", "one of them"
        )
    if folder.threshold_from == "fixed" and folder.threshold is None:
        raise ConfigError("--threshold-from fixed without a value", "--threshold 0.3")
    source = folder.threshold_from or ("label_free" if folder.threshold is None else "fixed")
    if folder.threshold_cams and source not in dataset.lists:
        raise ConfigError(
            f"--threshold-cams, and the threshold is {source}", "--threshold-from LIST"
        )
    path, without = folder.threshold_cams or folder.path, dict[str, str]()
    if source in dataset.lists and (source != folder.list or folder.threshold_cams):
        _, without = check.usable(path, "cams", _listed(dataset, source))
    elif source == folder.list:
        source = "oracle"
    return choose(
        source,
        folder.threshold or 0.0,
        dataset,
        usable,
        check.cams(path),
        without=without,
        workers=check.workers,
        progress=check.progress,
    )
