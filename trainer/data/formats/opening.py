"""The one way in to a data set, whatever its format."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.config import replace
from trainer.data.dataset import Dataset, complain, some
from trainer.data.formats import class_folders, coco, folder, mva, voc, xml_folder
from trainer.data.formats.unrecognised import unrecognised
from trainer.data.knobs import DataConfig
from trainer.data.tags import FROM_MASKS, with_mask_tags
from trainer.errors import DataError
from trainer.outputs import is_inner

READERS = (voc, coco, folder, mva, xml_folder, class_folders)
"""The first that recognises a folder reads it."""


def open_dataset(
    path: str | Path, problems: list[DataError] | None = None, config: DataConfig | None = None
) -> Dataset:
    """Open a data set, whatever its format (VOC, COCO, folder + CSV, synthetic, MVA's lists, one
    folder a class).

    Args:
        problems: where to put what contradicts itself, leaving out the entries concerned; without
            it, the first problem is raised.
        config: how to read it where there is a choice.

    Raises:
        DataError: nothing is there, nothing is recognised, the files contradict each other, or
            ``labels_from`` asks for tags that are not there.
    """
    root, config = Path(path), config or DataConfig()
    if not root.is_dir():
        raise DataError(
            f"{root} is not a folder",
            "a data folder",
            "wsss-trainer synth data/ makes one to play with",
        )
    if not os.access(root, os.R_OK | os.X_OK):
        raise DataError(f"{root} cannot be opened", "a data folder that you may read")
    reader = next((module for module in READERS if module.recognises(root)), None)
    if reader is None:
        raise unrecognised(root, lambda place: any(r.recognises(place) for r in READERS))
    dataset: Dataset = reader.read(root, problems, config)
    _check_names(dataset, problems)
    if dataset.tags_from == FROM_MASKS:
        dataset = with_mask_tags(dataset, problems)
    untagged = [record.id for record in dataset.records.values() if not record.tags]
    if untagged:
        note = f"{len(untagged)} images have no tag: {some(untagged)}"
        dataset = dataclasses.replace(dataset, notes=(*dataset.notes, note))
    return dataset


def _check_names(dataset: Dataset, problems: list[DataError] | None) -> None:
    """Outputs are called after images and lists, whose names may come from inside of files."""
    for what, names in (("images", dataset.records), ("lists", dataset.lists)):
        if outside := [name for name in names if not is_inner(name)]:
            found = f"{dataset.root} has {what} whose names cannot be those of files"
            complain(
                DataError(
                    f"{found} ({len(outside)}): {some(name[:60] for name in outside)}",
                    "names without '..' and without '/' at their ends, of at most 200 bytes",
                    "rename them",
                ),
                problems,
            )


def reopen_data(manifest: Mapping[str, Any]) -> Dataset:
    """The data set of a run, read as the run read it.

    Raises:
        DataError: it has gone or changed.
    """
    config = replace(DataConfig(), manifest.get("config", {}).get("data", {}), "data")
    return open_dataset(manifest.get("data", {}).get("path", ""), config=config)
