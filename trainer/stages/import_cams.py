"""Stage ``cams`` from a folder of maps that others made: ours (.npz), and the .npy of PSA, SEAM,
CPN, IRN, VWE and MVA.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Dataset, Record
from trainer.data.pickles import read_pickled_dict
from trainer.data.pixels import image_size
from trainer.errors import DataError, RunError
from trainer.maps.camfile import Cam, cam_path, read_cam, stride4, write_cam
from trainer.pool import over_images, raise_together
from trainer.run import Stage


def import_cams(
    dataset: Dataset,
    records: Sequence[Record],
    folder: Path,
    stage: Stage,
    bad: Literal["stop", "skip"] = "stop",
    workers: int | None = None,
    progress: bool = False,
) -> None:
    """Write ``<id>.npz`` of every tagged record from ``folder``'s ``<id>.npz`` or ``<id>.npy``;
    files that load are kept.

    Args:
        dataset: the data set of ``records``.
        records: images.
        folder: maps by image id.
        stage: of the run.
        bad: ``stop`` raises after all that can be read was read; ``skip`` leaves those images out
            and notes them.
        workers: processes; None for one a core, 0 for none.
        progress: show a bar.

    Raises:
        DataError: no such folder, or maps that are missing, damaged, of another size or of other
            classes, listed.
        RunError: no space left.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder", "a folder of <id>.npz or <id>.npy maps")
    foreign = sorted(
        p.name
        for p in folder.iterdir()
        if p.suffix in (".npz", ".npy") and p.stem not in dataset.records
    )
    work = partial(_import_one, len(dataset.classes), folder, stage.folder)
    problems, left_out = [], []
    for record, outcome in over_images(
        work, records, workers, "maps", progress, lambda record: record.id
    ):
        if isinstance(outcome, RunError):
            raise outcome
        if isinstance(outcome, DataError):
            problems.append(outcome)
            left_out.append(record.id)
    if bad == "stop":
        raise_together(
            problems, len(records), "images have no usable maps (cams.bad=skip leaves them out)"
        )
    if len(left_out) == sum(bool(record.tags) for record in records):
        raise_together(problems, len(records), "images have no usable maps: none is left")
    stage.outputs.update(
        count=len(records) - len(left_out),
        taken_from=str(folder),
        left_out=left_out,
        foreign=foreign,
    )


def read_foreign(path: Path, size: tuple[int, int], as_evaluated: bool = False) -> Cam:
    """Maps of a ``.npy`` file of the released repositories, each over its maximum, in 0..1.

    PSA, SEAM, CPN: ``{class: float32 [H,W]}``. IRN, VWE, MVA: ``{"keys": int [k], "cam":
    [k,h,w]}``, tensors or arrays.

    Args:
        path: the file.
        size: of the image.
        as_evaluated: as the released scripts measure maps: ``high_res [k,H,W]`` where IRN's kind
            has it, and values that lie in 0..1 as they are. The size of full maps is then their
            own.

    Raises:
        DataError: something else, or a pickle that would run code (it is not run).
    """
    try:
        content = read_pickled_dict(path)
        part = "high_res" if as_evaluated and "high_res" in content else "cam"
        named = "keys" in content
        keys, maps = (
            (content["keys"], content[part]) if named else (list(content), list(content.values()))
        )
        classes = np.asarray(keys, np.int16)
        values = (
            np.stack([np.asarray(m, np.float32) for m in maps])
            if len(maps)
            else np.zeros((0, 1, 1), np.float32)
        )
        if not np.isfinite(values).all() or values.ndim != 3 or len(classes) != len(values):
            raise ValueError(f"classes {classes.shape} and maps {values.shape}")
    except Exception as error:
        raise DataError(
            f"maps {path} cannot be read: {error}",
            "a pickled dict of class maps as PSA, SEAM, CPN, IRN, VWE or MVA write",
        ) from error
    values = np.maximum(values, 0)
    if not as_evaluated or values.max(initial=0) > 1:
        values = values / np.maximum(values.max((1, 2), keepdims=True), 1e-5)
    full = as_evaluated and len(values) and (part == "high_res" or not named)
    order = np.argsort(classes)
    return Cam(classes[order], values[order], (values.shape[1], values.shape[2]) if full else size)


def _import_one(num_classes: int, folder: Path, out: Path, record: Record) -> None:
    target, size = cam_path(out, record.id), image_size(record.image)
    if _loads(target):
        return
    if not record.tags:
        write_cam(target, [], np.zeros((0, 1, 1), np.float32), size)
        return
    own, theirs = cam_path(folder, record.id), folder / f"{record.id}.npy"
    cam = read_foreign(theirs, size) if theirs.exists() and not own.exists() else read_cam(own)
    if cam.size != size:
        raise DataError(
            f"maps of {record.id} are for {cam.size} pixels and the image has {size}",
            "maps of this image",
        )
    if set(cam.classes.tolist()) != set(record.tags):
        found = f"maps of {record.id} are of the classes {cam.classes.tolist()}"
        if cam.classes.max(initial=-1) >= num_classes:
            raise DataError(found, f"0 to {num_classes - 1}: the class tables differ")
        raise DataError(found, f"those of its tags, {sorted(record.tags)}")
    write_cam(target, cam.classes, _reduced(cam.maps, stride4(size)), size)


def _reduced(maps_khw: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Maps larger than ``size`` made that small; smaller ones stay as they are."""
    from PIL import Image

    rows, columns = size
    if maps_khw.shape[1] <= rows and maps_khw.shape[2] <= columns:
        return maps_khw
    small = [
        np.asarray(Image.fromarray(m).resize((columns, rows), Image.Resampling.BILINEAR))
        for m in maps_khw
    ]
    clipped: npt.NDArray[np.float32] = np.clip(np.stack(small), 0, 1)
    return clipped


def _loads(path: Path) -> bool:
    try:
        return bool(read_cam(path).size)
    except DataError:
        return False
