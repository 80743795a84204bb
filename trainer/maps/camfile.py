"""Class activation maps on disk: one ``.npz`` an image, without pickle."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.errors import DataError
from trainer.files import write_atomic


class Cam(NamedTuple):
    """The maps of one image.

    Attributes:
        classes: ``int16 [k]``, class indices 0..K-1, ascending; only the classes of the image.
        maps: ``float32 [k,h,w]`` in 0..1, at stride 4.
        size: ``(H, W)`` of the image.
        agreement: how much the views agree that the maps were made from, see ``stability``; None
            where that was not measured.
    """

    classes: npt.NDArray[np.int16]
    maps: npt.NDArray[np.float32]
    size: tuple[int, int]
    agreement: float | None = None


def no_maps(size: tuple[int, int]) -> Cam:
    """The maps of an image of (H, W) that shows no class."""
    return Cam(np.zeros(0, np.int16), np.zeros((0, *stride4(size)), np.float32), size)


def cam_path(folder: Path, record_id: str) -> Path:
    """Where the maps of an image are kept."""
    return folder / f"{record_id}.npz"


def stride4(size: tuple[int, int]) -> tuple[int, int]:
    """Size of stored maps: floor((side-1)/4)+1."""
    return (size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1


def write_cam(
    path: Path,
    classes: npt.ArrayLike,
    maps: npt.ArrayLike,
    size: Sequence[int],
    agreement: float | None = None,
) -> None:
    """Store maps ``[k,h,w]`` in 0..1 as float16, whole or not at all. Arguments as in ``Cam``.

    Raises:
        ValueError: shapes that do not belong together, or values that are not finite or outside
            0..1.
        RunError: no space left, or the folder cannot be written.
    """
    indices, values = np.asarray(classes, np.int16), np.asarray(maps)
    if indices.ndim != 1 or values.ndim != 3 or len(indices) != len(values) or len(size) != 2:
        raise ValueError(
            f"classes {indices.shape}, maps {values.shape} and size {tuple(size)} do not belong"
            " together"
        )
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"maps of {path.stem} run from {values.min()} to {values.max()}, not within 0..1"
        )
    # Between 0.5 and 1 float16 steps by 0.0005, far below what a threshold can tell apart.
    arrays: dict[str, Any] = {
        "classes": indices,
        "maps": values.astype(np.float16),
        "size": np.asarray(size, np.int32),
    }
    if agreement is not None:
        arrays["agreement"] = np.asarray(agreement)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomic(path, buffer.getvalue())


def read_cam(path: Path) -> Cam:
    """Maps that ``write_cam`` stored.

    Raises:
        DataError: missing, truncated, or not such a file.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            cam = Cam(
                archive["classes"].astype(np.int16),
                archive["maps"].astype(np.float32),
                (int(archive["size"][0]), int(archive["size"][1])),
                float(archive["agreement"]) if "agreement" in archive else None,
            )
    # A damaged archive fails in many ways, and each of them means the same.
    except Exception as error:
        raise _damaged(path, error) from error
    if cam.classes.ndim != 1 or cam.maps.ndim != 3 or len(cam.classes) != len(cam.maps):
        raise _damaged(path, ValueError(f"classes {cam.classes.shape} and maps {cam.maps.shape}"))
    if not np.isfinite(cam.maps).all():
        raise _damaged(path, ValueError("NaN or inf"))
    return cam


def _damaged(path: Path, error: Exception) -> DataError:
    missing = isinstance(error, FileNotFoundError)
    return DataError(
        f"maps {path} are missing" if missing else f"maps {path} cannot be read: {error}",
        "a .npz with classes [k], maps [k,h,w] and size [2]",
        "delete that file if it is there, and run wsss-trainer fit again: only what is missing is"
        " made",
    )


def upsample_cam(
    maps_khw: npt.NDArray[np.float32], size: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Bilinear up-sampling to ``float32 [k,H,W]`` as torch does with ``align_corners=False``.

    Written in numpy so that worker processes need not load torch.
    """
    rows, columns = maps_khw.shape[1:]
    left, right, right_part = _taps(columns, size[1])
    wide = maps_khw[:, :, left] * (1 - right_part) + maps_khw[:, :, right] * right_part
    top, bottom, bottom_part = _taps(rows, size[0])
    share = bottom_part[:, None]
    full: npt.NDArray[np.float32] = (wide[:, top] * (1 - share) + wide[:, bottom] * share).astype(
        np.float32, copy=False
    )
    return full


def reduced(maps_khw: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Maps larger than ``size`` made that small; smaller ones stay as they are."""
    from PIL import Image

    rows, columns = size
    if not len(maps_khw) or (maps_khw.shape[1] <= rows and maps_khw.shape[2] <= columns):
        return maps_khw
    small = [
        np.asarray(Image.fromarray(m).resize((columns, rows), Image.Resampling.BILINEAR))
        for m in maps_khw
    ]
    values: npt.NDArray[np.float32] = np.clip(np.stack(small), 0, 1)
    return values


def _taps(
    source: int, target: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """For every target position the two source positions and the weight of the second."""
    # torch's rule at the border: before the centre of the first cell only that cell counts.
    centre = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0)
    first = np.minimum(centre.astype(np.int64), source - 1)
    return first, np.minimum(first + 1, source - 1), (centre - first).astype(np.float32)
