"""Figures of masks or maps from elsewhere, with the same words and counts as those of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainer.config import as_dict
from trainer.data.dataset import IGNORE, Dataset, Record, group_count
from trainer.data.formats.opening import open_dataset
from trainer.data.knobs import DataConfig
from trainer.errors import ConfigError, DataError, RunError, UserError, one_of
from trainer.evaluation.bootstrap import miou_interval
from trainer.evaluation.boundary import CSURKA
from trainer.evaluation.figures import Conditions, MaskEvaluation
from trainer.evaluation.foreign import (
    BadFile,
    ForeignCams,
    ForeignMasks,
    Numbering,
    Pixels,
    describe,
    foreign_cams,
    foreign_masks,
)
from trainer.evaluation.foreign_files import Kind, kind_of
from trainer.evaluation.image_counts import ImageCounts, counts_path
from trainer.evaluation.objects import hit_intervals
from trainer.evaluation.over_lists import MaskSource, evaluate_cams, evaluate_folder
from trainer.evaluation.predictions import threshold_cam
from trainer.evaluation.sweep import sweep_thresholds
from trainer.evaluation.threshold import Threshold, choose
from trainer.pool import over_images
from trainer.run import write_json

# The stage of a folder in evaluation.json, so that compare sets it beside that stage of a run.
STAGES: dict[Kind, str] = {"masks": "segment", "cams": "cam"}
# Conditions that files from elsewhere do not tell.
UNKNOWN = (
    "backbone",
    "train_list",
    "tags_from",
    "initial_weights",
    "segmenter",
    "seed",
    "tags",
    "views",
    "crf",
)


@dataclass(frozen=True)
class Folder:
    """A folder to measure, and how.

    Attributes:
        path: masks or maps by image id.
        data: the data set.
        list: of the data set, with true masks.
        kind: ``masks`` or ``cams``; None decides by the files.
        labels: numbering of the classes, see ``foreign.foreign_masks``.
        masks: pixels of masks, see ``foreign.foreign_masks``.
        threshold: of maps, fixed.
        threshold_from: origin of the threshold, see ``threshold.choose``.
        threshold_cams: maps of the list that chooses the threshold; None for ``path``.
        bad: ``stop`` at images without a usable file, or ``skip`` them and say so.
        tolerance: of the boundary F-score.
        protocol: the user's words about how the files were made, for the protocol line.
        stage: of ``evaluation.json``; None for ``STAGES``.
        config: how to read the data set.

    Raises:
        ConfigError: an unknown ``kind`` or ``bad``.
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

    def __post_init__(self) -> None:
        one_of(self.kind or "masks", STAGES, "the kind of folder")
        one_of(self.bad, ("stop", "skip"), "the treatment of bad files")


@dataclass(frozen=True)
class FolderFigures:
    """The figures of a folder.

    Attributes:
        stage: of ``evaluation.json``.
        entry: its entry for the list.
        images: confusions of single images.
        masks: returns the measured label map of an image.
        dataset: the data set.
    """

    stage: str
    entry: dict[str, Any]
    images: ImageCounts
    masks: MaskSource
    dataset: Dataset


def measure_folder(folder: Folder, workers: int | None = None) -> FolderFigures:
    """Check every file of the list, then measure.

    Raises:
        DataError: a list without true masks; or files that are missing, misnamed, of another size
            or with other labels, all listed at once.
        ConfigError: options that contradict each other.
    """
    kind = folder.kind or kind_of(folder.path)
    dataset = open_dataset(folder.data, config=folder.config)
    records = _masked(dataset, folder.list)
    thresholds = (folder.threshold, folder.threshold_from, folder.threshold_cams)
    if kind == "masks" and any(value is not None for value in thresholds):
        raise ConfigError(
            f"{folder.path} holds masks, and masks have no threshold", "--threshold for maps only"
        )
    task = _Task(folder, dataset, workers)
    # All files are read before any is measured, so that one error lists every fault.
    usable, left_out = task.usable(folder.path, kind, records)
    evaluation, entry, masks = (_masks if kind == "masks" else _cams)(task, usable)
    images = evaluation.images
    entry |= {
        "miou_interval": miou_interval(images).report(),
        **hit_intervals(images.objects, images.class_names, images.groups.tolist()),
        "left_out": left_out,
        "extra": task.reader(folder.path, kind).files.others,
        # compare opens the files again, perhaps from another working directory.
        "source": {
            "kind": kind,
            "folder": str(folder.path.resolve()),
            "labels": folder.labels,
            "masks": folder.masks,
            "data": str(folder.data.resolve()),
            "config": as_dict(folder.config),
        },
    }
    return FolderFigures(folder.stage or STAGES[kind], entry, images, masks, dataset)


def holds_figures(folder: Path) -> bool:
    """Whether a folder holds figures of an earlier command."""
    try:
        evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        return all("miou" in entry for lines in evaluation.values() for entry in lines.values())
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def keep(figures: FolderFigures, list_name: str, out: Path) -> None:
    """Write ``evaluation.json`` and the counts to ``out``, beside other stages and lists there.

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


def _masked(dataset: Dataset, name: str) -> list[Record]:
    records = dataset.masked(name)
    if not records:
        raise DataError(
            f"none of the {len(dataset.lists[name])} images of list {name!r} has a true mask",
            "a list whose images have true masks",
            f"one of the lists of {dataset.root}: {', '.join(sorted(dataset.lists))}",
        )
    return records


@dataclass(frozen=True)
class _Task:
    folder: Folder
    dataset: Dataset
    workers: int | None
    readers: dict[Path, ForeignMasks | ForeignCams] = field(default_factory=dict)

    def usable(
        self, path: Path, kind: Kind, records: Sequence[Record]
    ) -> tuple[list[Record], dict[str, str]]:
        """Images with a usable file, and the faults of the others by id."""
        reader = self.reader(path, kind)
        problems: dict[str, UserError] = {}
        usable, labels = [], set[int]()
        work, title = partial(_labels, reader), f"check {path.name}"
        outcomes = over_images(work, records, self.workers, title, True, attrgetter("id"))
        for record, outcome in outcomes:
            if isinstance(outcome, UserError):
                problems[record.id] = outcome
            else:
                usable.append(record)
                labels |= outcome
        # Whoever predicts only images that have a mask file leaves these out.
        blank = {record.id for record in records if self.dataset.is_blank(record)}
        lacks = {name for name in blank & {*problems} if _is_missing(problems[name])}
        if (problems.keys() - lacks and self.folder.bad == "stop") or not usable:
            what = f"{'masks' if kind == 'masks' else 'maps'} of {path}"
            raise describe(problems, len(records), what, reader.files.others, self.dataset.records)
        if IGNORE in labels and labels <= {0, IGNORE}:
            raise _all_open(path, self.dataset.classes)
        return usable, {name: problem.found for name, problem in problems.items()}

    def reader(self, path: Path, kind: Kind) -> Any:
        """``ForeignMasks`` or ``ForeignCams`` of a folder, whose files are looked for once."""
        if path not in self.readers:
            of = (path, self.dataset, self.folder.labels)
            self.readers[path] = (
                foreign_cams(*of) if kind == "cams" else foreign_masks(*of, self.folder.masks)
            )
        return self.readers[path]

    def threshold(self, usable: Sequence[Record]) -> Threshold:
        folder, dataset = self.folder, self.dataset
        source = _threshold_source(folder, dataset)
        path, without = folder.threshold_cams or folder.path, dict[str, str]()
        if source in dataset.lists and (source != folder.list or folder.threshold_cams):
            _, without = self.usable(path, "cams", _masked(dataset, source))
        # Another way to ask for an oracle, which must not go by the name of a list.
        elif source == folder.list:
            source = "oracle"
        value, reader = folder.threshold or 0.0, self.reader(path, "cams")
        return choose(source, value, dataset, usable, reader, without=without, workers=self.workers)

    def conditions(
        self, what: str, usable: Sequence[Record], threshold_from: str | None = None
    ) -> Conditions:
        folder, dataset = self.folder, self.dataset
        return Conditions(
            list=folder.list,
            listed=len(dataset.lists[folder.list]),
            unmasked=len(dataset.lists[folder.list]) - len(dataset.masked(folder.list)),
            blank=sum(map(dataset.is_blank, usable)),
            measured=len(usable),
            groups=group_count(dataset.masked(folder.list)),
            labels=len(dataset.classes) + 1,
            truth=dataset.masks_from,
            method=f"{what} of {folder.path.resolve()}",
            **dict.fromkeys(UNKNOWN),
            threshold_from=threshold_from,
            note=folder.protocol,
            masks=0,
            segments="",
            tagged=0,
        )


def _is_missing(problem: UserError) -> bool:
    return isinstance(problem, BadFile) and problem.fault == "missing"


def _labels(reader: ForeignMasks | ForeignCams, record: Record) -> set[int]:
    """Labels of a mask; none for maps, which are only read to see that they can be."""
    content = reader(record)
    return set(np.unique(content).tolist()) if isinstance(content, np.ndarray) else set()


def _all_open(path: Path, classes: Sequence[str]) -> DataError:
    """Most tools write the one class as 255, which would count as background everywhere."""
    hint = "--masks binary reads 255 as the one class"
    if len(classes) > 1:
        names = f"1 {classes[0]}, 2 {classes[1]}, ..."
        hint = f"save the index of the class ({names}) instead of 255"
    return DataError(
        f"the masks of {path} hold 0 and 255 only, and 255 is a pixel that is left open",
        f"0 for background, 1 to {len(classes)} for the classes",
        hint,
    )


Figures = tuple[MaskEvaluation, dict[str, Any], MaskSource]


def _masks(task: _Task, usable: Sequence[Record]) -> Figures:
    reader, tolerance = task.reader(task.folder.path, "masks"), task.folder.tolerance
    evaluation = evaluate_folder(
        task.dataset, usable, reader, tolerance=tolerance, workers=task.workers
    )
    conditions = task.conditions("masks", usable)
    entry = evaluation.report(conditions.line())
    return evaluation, entry | {"conditions": conditions.report()}, reader


def _cams(task: _Task, usable: Sequence[Record]) -> Figures:
    reader, threshold = task.reader(task.folder.path, "cams"), task.threshold(usable)
    sweep = evaluate_cams(
        task.dataset,
        usable,
        reader,
        sweep_thresholds(threshold.value),
        at=threshold.value,
        tolerance=task.folder.tolerance,
        workers=task.workers,
    )
    assert sweep.chosen is not None
    source = "oracle" if threshold.source == task.folder.list else threshold.source
    conditions = task.conditions("maps", usable, source)
    entry = sweep.report(threshold.value, source, f"{conditions.line()}; {threshold.detail}")
    masks = partial(threshold_cam, reader, threshold.value)
    return sweep.chosen, entry | {"conditions": conditions.report()}, masks


def _threshold_source(folder: Folder, dataset: Dataset) -> str:
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
    return source
