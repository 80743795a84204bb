"""Runs and folders to measure, made from true masks without any training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.dataset import Dataset
from trainer.data.formats.opening import open_dataset
from trainer.data.palette import write_index_png
from trainer.maps.camfile import cam_path, write_cam


def spoilt(truth: np.ndarray, share: float, rng: np.random.RandomState) -> np.ndarray:
    """A label map whose objects are eaten from one side, ``share`` of their pixels."""
    pred = np.where(truth == 255, 0, truth).astype(np.uint8)
    for label in np.unique(pred[pred > 0]):
        rows, columns = np.nonzero(pred == label)
        limit = np.quantile(columns, min(1.0, share * rng.uniform(0.5, 1.5)))
        pred[rows[columns < limit], columns[columns < limit]] = 0
    return pred


def write_masks(
    dataset: Dataset, folder: Path, share: float, names: list[str] | None = None
) -> None:
    """``<id>.png`` of every record."""
    rng = np.random.RandomState(0)
    for name in names or list(dataset.records):
        write_index_png(
            folder / f"{name}.png", spoilt(dataset.read_mask(dataset.records[name]), share, rng)
        )


def write_cams(dataset: Dataset, folder: Path, share: float) -> None:
    """``<id>.npz`` of every record."""
    rng = np.random.RandomState(0)
    for record in dataset.records.values():
        pred = spoilt(dataset.read_mask(record), share, rng)
        noise = rng.uniform(0, 0.4, pred[::4, ::4].shape)
        maps = [np.where(pred[::4, ::4] == tag + 1, 0.6 + noise, noise) for tag in record.tags]
        write_cam(
            cam_path(folder, record.id),
            record.tags,
            np.reshape(maps, (-1, *noise.shape)),
            pred.shape,
        )


def write_run(
    path: Path, data: Path, share: float, full: float | None = None, **segment: Any
) -> Path:
    """A run directory as ``fit`` leaves it before ``evaluate``, all its predictions spoilt by
    ``share``.

    Args:
        path: the run.
        data: a data set with lists train and val.
        share: of every object that is missed.
        full: the same of the segmenter that learnt from true masks; None for none.
        segment: other values of knobs.
    """
    dataset = open_dataset(data)
    write_cams(dataset, path / "cams", share)
    write_masks(dataset, path / "masks", share)
    for name in ("train", "val"):
        write_masks(dataset, path / "segment" / "predictions" / name, share)
        if full is not None:
            write_masks(dataset, path / "segment_full" / "predictions" / name, full)
    done: dict[str, Any] = {"status": "done", "key": f"{share}{full}", "outputs": {}, "metrics": {}}
    stages = dict.fromkeys(
        ("cams", "refine", "segment", *(["segment_full"] if full is not None else [])), done
    )
    stages["cams"] = done | {"metrics": {"protocol": "psa", "scales": [1.0, 0.5]}}
    stages["refine"] = done | {
        "metrics": {
            "threshold": 0.4,
            "threshold_from": "label_free",
            "threshold_detail": "background threshold 0.4",
        }
    }
    manifest = {
        "format": 1,
        "stages": stages,
        "method": "cam",
        "backbone": "resnet18",
        "seed": 0,
        "train_list": "train",
        "val_list": "val",
        "supervision": segment.pop("supervision", "ImageNet tags"),
        "data": {"path": str(data), "classes": list(dataset.classes)},
        "config": {
            "evaluate": {},
            "refine": {"refine": "crf", "crf": "P7", "crf_after_walk": False},
            "segment": {"scales": [1.0], "flip": True, "crf": "none", **segment},
        },
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path
