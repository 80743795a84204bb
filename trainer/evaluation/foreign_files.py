"""The files of a folder that others made: which there are, of what kind, and which are not used."""

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
MASK_SUFFIXES = (".png", *ARRAY_SUFFIXES)
OTHER_PICTURES = (".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
CAM_SUFFIXES = (".npz", ".npy")
LOOKED_AT = 3
"""Arrays of a folder that tell whether it holds masks or maps."""

EXPECTED = (
    "masks: <id>.png, or <id>.npy or .npz of one array (labels [H,W] or probabilities [K+1,H,W]);"
    " maps: <id>.npz or <id>.npy"
)


def file_of(folder: Path, name: str, suffixes: Sequence[str]) -> Path | None:
    """The file of an image with one of the suffixes, in small or capital letters."""
    for suffix in suffixes:
        for written in (suffix, suffix.upper(), suffix[:2].upper() + suffix[2:]):
            if (path := folder / f"{name}{written}").exists():
                return path
    return None


def read_array(path: Path) -> npt.NDArray[Any]:
    """The one array of a ``.npy`` or ``.npz`` file; no code in it is run.

    Raises:
        DataError: damaged, pickled objects, or several arrays.
    """
    try:
        # Opened here: NumPy leaves a damaged archive open.
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            if len(loaded.files) != 1:
                raise DataError(
                    f"{path} holds the arrays {some(loaded.files) or 'of nothing'}", "one array"
                )
            array: npt.NDArray[Any] = loaded[loaded.files[0]]
            return array
    except DataError:
        raise
    # A damaged archive fails in many ways, and each of them means the same.
    except Exception as error:
        raise DataError(f"{path} cannot be read: {error}", "an array without objects") from error


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
    pictures = {path.suffix.lower() for path in files} & {".png", *OTHER_PICTURES}
    if pictures and arrays:
        found = sorted(pictures | {path.suffix.lower() for path in arrays})
        raise ConfigError(
            f"{folder} holds {some(found)} files", "one kind", "--kind masks or --kind cams"
        )
    if not pictures and not arrays:
        raise DataError(f"{folder} holds neither masks nor maps", EXPECTED)
    return "masks" if pictures or any(map(_is_mask, arrays[:LOOKED_AT])) else "cams"


def _is_mask(path: Path) -> bool:
    """Whether an array file is a label map or probabilities: one array without class names."""
    try:
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                return len(archive.namelist()) == 1
        return bool(np.load(path, mmap_mode="r", allow_pickle=False).ndim in (2, 3))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return False


def strangers(folder: Path, kind: Kind, ids: Collection[str]) -> list[str]:
    """Files of a folder that are not used: called after none of ``ids``, or of no kind that is
    read; sorted.
    """
    suffixes = MASK_SUFFIXES if kind == "masks" else CAM_SUFFIXES
    known = set(ids)
    left = []
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        used = path.suffix.lower() in suffixes and inside.with_suffix("").as_posix() in known
        if path.is_file() and not hidden and not used:
            left.append(inside.as_posix())
    return sorted(left)
