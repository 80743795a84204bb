"""The mask file of each image, by its name."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from trainer.data.image_files import UNREAD, inner_name, walk
from trainer.data.names import composed
from trainer.data.remarks import Remarks
from trainer.errors import some

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
ENDING = re.compile(r"[_.-](masks?|labels?|gt|seg)(_?[0-9]+)?", re.IGNORECASE)
"""What a mask may be called in addition to the name of its image; tools number several masks."""


def match_masks(
    folders: Iterable[Path], root: Path, images: Mapping[str, Path], remarks: Remarks
) -> dict[str, Path]:
    """The mask of each image that has one, by id.

    A mask has the relative path, the id, or the file name of its image, and the suffix of a
    lossless format (``.png``, ``.TIF``). The name may end with the image's own suffix
    (``a.jpg.png``) or ``_mask`` and the like.

    Args:
        folders: where masks are.
        root: the data folder.
        images: image files by id.
        remarks: gets two masks for one image, and files that belong to no image.
    """
    folders = list(folders)
    # Names of 100,000 images take seconds.
    tables = name_tables(root, images) if folders else []
    masks: dict[str, Path] = {}
    strangers, twice = [], []
    for folder in folders:
        files = walk(folder)
        arrays = sorted(folder.rglob("*.np[yz]"))
        for path in (*files.images, *files.left_out.get(UNREAD, ()), *arrays):
            name = composed(path.relative_to(folder).with_suffix("").as_posix()).casefold()
            owner = name_owner(name, tables) if path.suffix.lower() in MASK_SUFFIXES else None
            if owner is None:
                strangers.append(path.relative_to(root).as_posix())
            elif owner in masks:
                twice.append(f"{masks[owner].relative_to(root)} and {path.relative_to(root)}")
            else:
                masks[owner] = path
    if twice:
        remarks.problem(
            f"{root} has two masks for the same image ({len(twice)}): {some(twice)}",
            "one mask an image",
            "remove or rename one of each",
        )
    if strangers:
        remarks.note(
            f"{len(strangers)} files among the masks belong to no image, or to several:"
            f" {some(strangers)}; a mask is a PNG or TIFF called like its image"
        )
    return masks


def name_tables(root: Path, images: Mapping[str, Path]) -> list[dict[str, list[str]]]:
    """Ids by the names that their masks may have, the most exact names first."""
    tables: list[dict[str, list[str]]] = [defaultdict(list) for _ in range(4)]
    for key, path in images.items():
        name = composed(inner_name(path, root)).casefold()
        # Images below images/ usually have their masks at the same place below masks/.
        names = (name, name.partition("/")[2], posixpath.basename(name))
        tables[0][key.casefold()].append(key)
        for table, name in zip(tables[1:], names, strict=True):
            for spelling in (name, posixpath.splitext(name)[0]):
                table[spelling].append(key)
    return tables


def name_owner(name: str, tables: list[dict[str, list[str]]]) -> str | None:
    """The image that a file of this name belongs to; None for none, or several.

    Args:
        name: path below the folder without suffix, in composed form and small letters.
        tables: see ``name_tables``.
    """
    for spelling in (name, without_ending(name)):
        for table in tables:
            if len(table.get(spelling, ())) == 1:
                return table[spelling][0]
    return None


def without_ending(name: str) -> str:
    """A name without ``_mask`` and the like at its end."""
    ends = [match.start() for match in ENDING.finditer(name) if match.end() == len(name)]
    return name[: ends[0]] if ends else name


def masks_beside(images: Iterable[Path]) -> set[Path]:
    """Those of ``images`` that are masks of others in the same folder: ``a_mask.png`` beside
    ``a.jpg``.
    """
    names = {path.with_suffix("") for path in images}
    return {
        path
        for path in images
        if path.suffix.lower() in MASK_SUFFIXES
        and (owner := without_ending(path.stem)) != path.stem
        and path.parent / owner in names
    }
