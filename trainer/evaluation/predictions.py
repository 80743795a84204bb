"""The label maps behind a figure, read again: for pictures and comparisons."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.config import replace
from trainer.data.dataset import Dataset, Record
from trainer.data.formats.opening import open_dataset, reopen_data
from trainer.data.knobs import DataConfig
from trainer.evaluation.foreign import foreign_cams, foreign_masks
from trainer.evaluation.over_lists import MaskSource, cam_reader, threshold_maps
from trainer.maps.camfile import Cam, upsample_cam
from trainer.run import Run

FOLDERS = {"cam": "cams", "refined": "masks"}
"""Where the stages of ``evaluation.json`` have their files in a run; segmenters have a folder a
list.
"""


def thresholded(
    read: Callable[[Record], Cam], threshold: float, record: Record
) -> npt.NDArray[np.uint8]:
    """Label map ``uint8 [H,W]`` of an image's maps."""
    cam = read(record)
    return threshold_maps(upsample_cam(cam.maps, cam.size), cam.classes, threshold)


def open_predictions(
    folder: Path, stage: str, list_name: str, entry: dict[str, Any]
) -> tuple[Dataset, MaskSource]:
    """The data set and the label maps that an entry of ``folder/evaluation.json`` was measured on.

    Raises:
        DataError: the data set has gone or changed.
        RunError: the folder is no run, and was not written by ``eval --out``.
    """
    source = entry.get("source")
    if source:
        dataset = open_dataset(
            source["data"], config=replace(DataConfig(), source["config"], "data")
        )
        theirs, labels = Path(source["folder"]), source["labels"]
        if source["kind"] == "cams":
            return dataset, partial(
                thresholded, foreign_cams(theirs, dataset, labels), entry["threshold"]
            )
        return dataset, foreign_masks(theirs, dataset, labels, source["masks"])
    dataset = reopen_data(Run.existing(folder).manifest)
    if stage == "cam":
        return dataset, partial(
            thresholded, cam_reader(folder / FOLDERS[stage]), entry["threshold"]
        )
    return dataset, folder / FOLDERS.get(stage, f"{stage}/predictions/{list_name}")
