"""The one way to open a data set, whatever its format."""

from __future__ import annotations

import dataclasses
import importlib
import os
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.config import replace
from trainer.data.dataset import Dataset
from trainer.data.formats import folder
from trainer.data.formats.base import Format
from trainer.data.formats.unrecognised import unrecognised
from trainer.data.knobs import DataConfig
from trainer.data.remarks import Remarks
from trainer.data.tables.corrections import corrected
from trainer.data.tables.lists import with_lists
from trainer.data.tags import FROM_MASKS, with_mask_tags
from trainer.errors import DataError, some
from trainer.outputs import is_inner


def formats() -> list[Format]:
    """Every format, in the order in which they are tried."""
    package = importlib.import_module("trainer.data.formats")
    names = (module.name for module in pkgutil.iter_modules(package.__path__))
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    return sorted((m.FORMAT for m in modules if hasattr(m, "FORMAT")), key=lambda form: form.rank)


def open_dataset(
    path: str | Path, problems: list[DataError] | None = None, config: DataConfig | None = None
) -> Dataset:
    """Open a data set of any format.

    Args:
        path: the folder.
        problems: collects what contradicts itself, and the entries concerned are left out; without
            it, the first problem is raised.
        config: how to read it where there is a choice.

    Raises:
        DataError: no folder, no known format, files that contradict each other, or no tags where
            ``labels_from`` looks for them.
    """
    root, config, remarks = Path(path), config or DataConfig(), Remarks(problems)
    form = _format_of(root)
    if config.labels_from not in ("auto", *form.tags_from):
        raise DataError(
            f"{root} is {form.words}: it has no tags from {config.labels_from}",
            f"--labels-from {' or '.join((*form.tags_from, 'auto'))}",
        )
    if config.masks == DataConfig.masks:
        config = dataclasses.replace(config, masks=form.masks)
    dataset = with_lists(form.read(root, config, remarks), config, remarks)
    _check_names(dataset, remarks)
    if form is not folder.FORMAT and (table := folder.table_file(root)):
        remarks.note(f"{table.name} is not read: {root} is {form.words}")
    lists = {**dataset.lists, "all": tuple(dataset.records)}
    dataset = dataclasses.replace(dataset, lists=lists, config=config)
    if config.labels_from == "masks" or dataset.tags_from == FROM_MASKS:
        dataset = with_mask_tags(dataset, remarks)
    remarks.notes += _tag_notes(dataset)
    return dataclasses.replace(dataset, notes=tuple(remarks.notes))


def _tag_notes(dataset: Dataset) -> Iterator[str]:
    """What trains where no list says so; how many images show no class, and of how many that is
    not known.
    """
    records = dataset.records.values()
    negatives = sum(record.is_negative for record in records)
    partly = [record for record in records if record.unknown]
    bare = sum(len(record.unknown) == len(dataset.classes) for record in partly)
    lists = [name for name in dataset.lists if name != "all"]
    if lists and not dataset.default_list("train"):
        yield (
            f"no list is called train: fit trains on all images, those of {some(lists)} too"
            " (--train-list names a list)"
        )
    if negatives:
        yield f"{negatives} of {len(records)} images show none of the classes"
    if partly:
        every = f"; of {bare} of them nothing is known" if bare else ""
        yield f"{len(partly)} of {len(records)} images have unknown classes{every}"


def _format_of(root: Path) -> Format:
    if not root.is_dir():
        advice = f"pass its folder, {root.parent}, or unpack it if it is an archive"
        raise DataError(
            f"{root} is not a folder",
            "a data folder",
            advice if root.is_file() else "wsss-trainer synth data/ makes one to play with",
        )
    if not os.access(root, os.R_OK | os.X_OK):
        raise DataError(f"{root} cannot be opened", "a data folder that you may read")
    choices = formats()
    form = next((choice for choice in choices if choice.recognises(root)), None)
    if form is None:
        raise unrecognised(root, choices)
    return form


def _check_names(dataset: Dataset, remarks: Remarks) -> None:
    # Outputs are called after images and lists, and these names may come from inside of files.
    for what, names in (("images", dataset.records), ("lists", dataset.lists)):
        if outside := [name[:60] for name in names if not is_inner(name)]:
            remarks.problem(
                f"{dataset.root} has {what} whose names cannot be file names"
                f" ({len(outside)}): {some(outside)}",
                "names without '..', without '/' at their ends, and of at most 200 bytes",
                "rename them",
            )


def reopen_data(manifest: Mapping[str, Any]) -> Dataset:
    """The data set of a run, read with the run's own config, with the tags that it was trained on.

    Raises:
        DataError: it is gone or has changed.
    """
    config = replace(DataConfig(), manifest.get("config", {}).get("data", {}), "data")
    dataset = open_dataset(manifest.get("data", {}).get("path", ""), config=config)
    masks = manifest.get("masks") or {}
    dataset = corrected(dataset, masks.get("tags", {}))
    return dataclasses.replace(dataset, withheld=frozenset(masks.get("ids", ())))
