"""The files of a folder of masks or maps: their kind, and which of them belong to no image."""

from __future__ import annotations

import zipfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import Dataset
from trainer.data.mask_files import name_owner, name_tables
from trainer.data.names import composed
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


@dataclass(frozen=True)
class Files:
    """The files of a folder of masks or maps.

    Attributes:
        used: the file of each image that has one, by id.
        unclear: by id, names of files that have equal claims to be that of the image.
        others: names of the files that are not used, sorted.
    """

    used: dict[str, Path]
    unclear: dict[str, list[str]]
    others: list[str]


def files_of(folder: Path, dataset: Dataset, kind: Kind) -> Files:
    """The file of each image: the one called by its id, else the one with another name that a mask
    of the image may have (see ``match_masks``), such as its relative path.
    """
    suffixes = (*MASK_SUFFIXES, *OTHER_PICTURES) if kind == "masks" else CAM_SUFFIXES
    images = {record.id: record.image for record in dataset.records.values()}
    tables = name_tables(dataset.root, images)
    files = {path: path.relative_to(folder) for path in sorted(folder.rglob("*"))}
    # Desktops and file servers leave hidden files everywhere.
    files = {p: name for p, name in files.items() if p.is_file() and not _is_hidden(name)}
    exact, named = defaultdict[str, list[Path]](list), defaultdict[str, list[Path]](list)
    for path, inside in files.items():
        name = composed(inside.with_suffix("").as_posix())
        if path.suffix.lower() not in suffixes:
            continue
        if name in images:
            exact[name].append(path)
        elif owner := name_owner(name.casefold(), tables):
            named[owner].append(path)
    used, unclear = {}, {}
    for owner, paths in (named | exact).items():
        paths.sort(key=lambda path: suffixes.index(path.suffix.lower()))
        # A file called by the id is meant, whatever lies beside it.
        rivals = [p for p in paths if owner not in exact and p.suffix.lower() in MASK_SUFFIXES]
        if len(rivals) > 1:
            unclear[owner] = [files[path].as_posix() for path in rivals]
        else:
            used[owner] = paths[0]
    others = files.keys() - used.values()
    return Files(used, unclear, sorted(files[path].as_posix() for path in others))


def _is_hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


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
        suffixes = sorted({path.suffix.lower() for path in files})
        raise DataError(
            f"{folder} holds neither masks nor maps (found: {some(suffixes) or 'nothing'})",
            EXPECTED,
            "unpack archives; save tensors of torch and other arrays with numpy.save",
        )
    # Three files, since one may be damaged and all of a large folder would take minutes.
    return "masks" if pictures or any(map(_is_mask, arrays[:3])) else "cams"


def _is_mask(path: Path) -> bool:
    """Whether a file holds a label map or probabilities: one array without class names."""
    try:
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                return len(archive.namelist()) == 1
        return bool(np.load(path, mmap_mode="r", allow_pickle=False).ndim in (2, 3, 4))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return False
