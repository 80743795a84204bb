"""The layout of a category of MVTec AD: ``train/good``, ``test/<defect>`` and ``ground_truth``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from trainer.data.dataset import Dataset
from trainer.data.formats.base import Format
from trainer.data.formats.class_folders import Layout, folders_of, read_layout
from trainer.data.image_files import entries
from trainer.data.knobs import DataConfig
from trainer.data.mask_files import match_masks
from trainer.data.names import is_list_name, list_name
from trainer.data.remarks import Remarks

TRUTH = "ground_truth"


def recognises(root: Path) -> bool:
    """Whether ``root`` has the folders ``train``, ``test`` and ``ground_truth``."""
    return all(os.path.isdir(root / name) for name in ("train", "test", TRUTH))


def read(root: Path, config: DataConfig, remarks: Remarks) -> Dataset:
    """Read ``<list>/<defect>/<name>.png``, with masks of test images in
    ``ground_truth/<defect>/<name>_mask.png``. Images in a folder ``good`` show no class.

    Raises:
        DataError: names that cannot be those of classes.
    """
    layout = Layout(lists=list(_lists(root)))
    layout.classes = [folders_of(folder, layout) for _, folder in layout.lists]
    dataset = read_layout(root, layout, config, remarks)
    records, test = dataset.records, dataset.lists["test"]
    # Folders below train may have the names of folders below test. Only those of test have masks.
    masks = match_masks([root / TRUTH], root, {key: records[key].image for key in test}, remarks)
    return replace(
        dataset,
        format="mvtec",
        records={key: replace(record, mask=masks.get(key)) for key, record in records.items()},
        masks_from=TRUTH if masks else "",
    )


def _lists(root: Path) -> Iterator[tuple[str, Path]]:
    for folder in entries(root):
        if is_list_name(folder.name) and folder.is_dir():
            yield list_name(folder.name), folder


FORMAT = Format(
    rank=55,
    words="a category of MVTec AD",
    layout="train/, test/ and ground_truth/ as in MVTec AD",
    tags_from=(),
    recognises=recognises,
    read=read,
    masks="binary",
)
