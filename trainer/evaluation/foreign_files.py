"""The files of a folder of masks or maps: their kind, and which of them belong to no image."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from trainer.errors import ConfigError, DataError, some

Kind = Literal["masks", "cams"]

ARRAY_SUFFIXES = (".npy", ".npz")
PICTURES = (".png", ".tif", ".tiff", ".bmp")
MASK_SUFFIXES = (*PICTURES, *ARRAY_SUFFIXES)
OTHER_PICTURES = (".jpg", ".jpeg", ".webp", ".gif")
CAM_SUFFIXES = (".npz", ".npy")
EXPECTED = (
    "masks: <id>.png, .tif or .bmp, or <id>.npy or .npz of one array (labels [H,W] or probabilities"
    " [K+1,H,W]); maps: <id>.npz or <id>.npy"
)


def file_of(folder: Path, name: str, suffixes: Sequence[str]) -> Path | None:
    """The file of an image with one of the suffixes, also spelt .PNG or .Png."""
    for suffix in suffixes:
        for spelling in (suffix, suffix.upper(), suffix[:2].upper() + suffix[2:]):
            if (path := folder / f"{name}{spelling}").exists():
                return path
    return None


def read_array(path: Path) -> npt.NDArray[Any]:
    """The one array of a ``.npy`` or ``.npz`` file; no code in it is run.

    Raises:
        DataError: damaged, pickled objects, or several arrays.
    """
    try:
        # Opened here, because NumPy leaves a damaged archive open.
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            names = content.files
            array: npt.NDArray[Any] | None = content[names[0]] if len(names) == 1 else None
    # A damaged archive fails in many ways, and each of them means the same.
    except Exception as error:
        raise DataError(f"{path} cannot be read: {error}", "an array without objects") from error
    if array is None:
        raise DataError(f"{path} holds {len(names)} arrays: {some(names)}", "one array")
    return array


def kind_of(folder: Path) -> Kind:
    """Whether a folder holds masks or maps.

    Raises:
        DataError: it does not exist, or holds neither.
        ConfigError: it holds both.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder", f"a folder of {EXPECTED}")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    arrays = [path for path in files if path.suffix.lower() in ARRAY_SUFFIXES]
    pictures = {path.suffix.lower() for path in files} & {*PICTURES, *OTHER_PICTURES}
    if pictures and arrays:
        suffixes = sorted(pictures | {path.suffix.lower() for path in arrays})
        raise ConfigError(
            f"{folder} holds {some(suffixes)} files", "one kind", "--kind masks or --kind cams"
        )
    if not pictures and not arrays:
        raise DataError(f"{folder} holds neither masks nor maps", EXPECTED)
    # Three files, since one may be damaged and all of a large folder would take minutes.
    return "masks" if pictures or any(map(_is_mask, arrays[:3])) else "cams"


def _is_mask(path: Path) -> bool:
    """Whether a file holds a label map or probabilities: one array without class names."""
    try:
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                return len(archive.namelist()) == 1
        return bool(np.load(path, mmap_mode="r", allow_pickle=False).ndim in (2, 3))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return False


def strangers(folder: Path, kind: Kind, ids: Collection[str]) -> list[str]:
    """Files of a folder that belong to none of ``ids`` or have another suffix, sorted."""
    suffixes = MASK_SUFFIXES if kind == "masks" else CAM_SUFFIXES
    names, extra = set(ids), []
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        # Desktops and file servers leave hidden files everywhere.
        is_hidden = any(part.startswith(".") for part in inside.parts)
        is_input = path.suffix.lower() in suffixes and inside.with_suffix("").as_posix() in names
        if path.is_file() and not is_hidden and not is_input:
            extra.append(inside.as_posix())
    return sorted(extra)
