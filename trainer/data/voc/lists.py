"""Image lists of PASCAL VOC: one id a line, or columns of paths and marks, as tools write them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container
from pathlib import Path

from trainer.data.image_files import entries
from trainer.data.names import composed, list_name
from trainer.data.pixels import IMAGE_SUFFIXES
from trainer.data.remarks import Remarks
from trainer.data.tables.reading import read_text
from trainer.errors import DataError, some

LISTS = Path("ImageSets", "Segmentation")
MAIN = Path("ImageSets", "Main")
SBD_NAMES = ("train_aug", "trainaug")
Lists = dict[str, tuple[str, ...]]

SUFFIX = "|".join(re.escape(suffix) for suffix in IMAGE_SUFFIXES)
FILE = re.compile(rf"(.+?)(?:{SUFFIX})(?=\s|$)", re.IGNORECASE)
"""A path up to the first image suffix that ends a word."""
MARKED = re.compile(r".*\s(?:-1|0|1)")
"""A line of a list of one class, which marks whether each image shows it."""


def read_lists(root: Path, images: dict[str, Path], remarks: Remarks) -> Lists:
    """The lists of ``ImageSets/Segmentation``; if there are none, those of ``ImageSets/Main`` that
    are not lists of a single class.

    Args:
        root: of the VOC tree.
        images: image files by id.
        remarks: gets unreadable lists, and images that a list names twice or that are not there.
    """
    lists: Lists = {}
    for path in _list_files(root / LISTS) or _list_files(root / MAIN):
        try:
            text, notes = read_text(path)
        except DataError as error:
            remarks.add(error)
            continue
        remarks.notes += notes
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        # Main has a list for each class, such as cat_train.txt, which marks every image.
        if path.parent.name == MAIN.name and "_" in path.stem and all(map(MARKED.match, lines)):
            continue
        counts = Counter(list_id(line, images) for line in lines)
        if twice := [i for i, count in counts.items() if count > 1]:
            remarks.problem(
                f"{path} names {len(twice)} images twice: {some(twice)}", "every image once"
            )
        if absent := [i for i in counts if i not in images]:
            remarks.problem(
                f"{path} names {len(absent)} images that are not there: {some(absent)}",
                f"each of them in {root / 'JPEGImages'}",
                "bring the images, or take the lines out of the list",
            )
        name = "train_aug" if path.stem.lower() in SBD_NAMES else list_name(path.stem)
        lists[name] = tuple(i for i in counts if i in images)
    return lists


def _list_files(folder: Path) -> list[Path]:
    return [
        path
        for path in entries(folder)
        if path.suffix.lower() == ".txt" and not path.name.startswith(".") and path.is_file()
    ]


def list_id(line: str, ids: Container[str]) -> str:
    r"""The id that a line of a list means.

    The line holds an id (any text, with blanks or not), a file name, a path of any system
    (``JPEGImages\a.jpg``, ``C:\data\a.jpg``), or several columns of which the first is such a
    name: a path and the path of a mask, or an id and marks.

    Args:
        line: without blanks at its ends.
        ids: of the images that there are.
    """
    line = composed(line)
    if line in ids:
        return line
    if file := FILE.match(line):
        return _last(file[1])
    column = re.split(r"\t|\s+(?=[/\\])", line)[0]
    words = re.split(r"(\s+)", column)
    # Ids may have blanks: the longest beginning that is an id counts.
    for end in range(len(words), 0, -2):
        name = _last("".join(words[:end]))
        if name in ids:
            return name
    return _last(words[0])


def _last(path: str) -> str:
    return re.split(r"[/\\]", path)[-1].strip()
