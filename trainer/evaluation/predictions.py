"""The label maps behind a figure, for pictures and comparisons."""

from __future__ import annotations

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
from trainer.evaluation.over_lists import CamReader, MaskSource, cam_reader, threshold_maps
from trainer.maps.camfile import upsample_cam
from trainer.run import Run


def threshold_cam(reader: CamReader, threshold: float, record: Record) -> npt.NDArray[np.uint8]:
    """Label map ``uint8 [H,W]`` of an image's maps at a threshold."""
    cam = reader(record)
    return threshold_maps(upsample_cam(cam.maps, cam.size), cam.classes, threshold)


def open_predictions(
    folder: Path, stage: str, list_name: str, entry: dict[str, Any]
) -> tuple[Dataset, MaskSource]:
    """The data set and the label maps of an entry of ``folder/evaluation.json``.

    Raises:
        DataError: the data set is missing or has changed.
        RunError: the folder is no run, and ``eval --out`` did not write it.
    """
    cams: CamReader
    if source := entry.get("source"):
        config = replace(DataConfig(), source["config"], "data")
        dataset = open_dataset(source["data"], config=config)
        theirs, labels = Path(source["folder"]), source["labels"]
        if source["kind"] == "masks":
            return dataset, foreign_masks(theirs, dataset, labels, source["masks"])
        cams = foreign_cams(theirs, dataset, labels)
    else:
        dataset = reopen_data(Run.existing(folder).manifest)
        if stage == "refined":
            return dataset, folder / "masks"
        if stage != "cam":
            return dataset, folder / stage / "predictions" / list_name
        # A run stores maps as scores: their masks are cut again at the threshold of the figure.
        cams = cam_reader(folder / "cams")
    return dataset, partial(threshold_cam, cams, entry["threshold"])
