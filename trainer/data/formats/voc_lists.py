"""Image lists of PASCAL VOC: one id a line, or columns of paths and marks, as tools write them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container
from pathlib import Path

from trainer.data.dataset import complain, some
from trainer.data.formats.cells import list_name
from trainer.data.names import composed
from trainer.data.pixels import IMAGE_SUFFIXES
from trainer.errors import DataError

LISTS = Path("ImageSets", "Segmentation")
MAIN = Path("ImageSets", "Main")
SBD_NAMES = ("train_aug", "trainaug")
Lists = dict[str, tuple[str, ...]]
Problems = list[DataError] | None

SUFFIX = "|".join(re.escape(suffix) for suffix in IMAGE_SUFFIXES)
FILE = re.compile(rf"(.+?)(?:{SUFFIX})(?=\s|$)", re.IGNORECASE)
"""A path up to the first suffix of an image that ends a word."""
MARKED = re.compile(r".*\s(?:-1|0|1)")
"""A line of a list of one class, which says whether each image shows it."""


def read_lists(root: Path, images: dict[str, Path], problems: Problems) -> Lists:
    """The lists of ``ImageSets/Segmentation``; without any, those of ``ImageSets/Main`` but for the
    lists of single classes.

    Args:
        root: of the VOC tree.
        images: image files by id.
        problems: collects what is wrong instead of raising it; the lines concerned are left out.

    Raises:
        DataError: an unreadable list, or one that names an image twice or one that is not there.
    """
    files = sorted((root / LISTS).glob("*.txt"))
    lists: Lists = {}
    for path in files or sorted((root / MAIN).glob("*.txt")):
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            complain(
                DataError(f"{path} cannot be read: {error}", "one image id a line, UTF-8"), problems
            )
            continue
        lines = [line.strip() for line in lines if line.strip()]
        if path.parent.name == MAIN.name and "_" in path.stem and all(map(MARKED.match, lines)):
            continue
        ids = [list_id(line, images) for line in lines]
        once = dict.fromkeys(ids)
        if len(once) < len(ids):
            twice = [i for i, count in Counter(ids).items() if count > 1]
            found = f"{path} names {len(twice)} images twice: {some(twice)}"
            complain(DataError(found, "every image once"), problems)
        absent = [i for i in once if i not in images]
        if absent:
            complain(
                DataError(
                    f"{path} names {len(absent)} images that are not there: {some(absent)}",
                    f"each of them in {root / 'JPEGImages'}",
                    "bring the images, or take the lines out of the list",
                ),
                problems,
            )
        name = "train_aug" if path.stem.lower() in SBD_NAMES else list_name(path.stem)
        lists[name] = tuple(i for i in once if i in images)
    return lists


def list_id(line: str, known: Container[str]) -> str:
    r"""The id that a list line means.

    It may be bare (any text, with blanks or not), a file name, a path of any system
    (``JPEGImages\a.jpg``, ``C:\data\a.jpg``), or the first of several columns: a path and the path
    of a mask, or an id and marks.

    Args:
        line: without blanks at its ends.
        known: the ids that there are.
    """
    line = composed(line)
    if line in known:
        return line
    file = FILE.match(line)
    if file:
        return _last(file[1])
    column = re.split(r"\t|\s+(?=[/\\])", line)[0]
    words = re.split(r"(\s+)", column)
    for end in range(len(words), 0, -2):
        name = _last("".join(words[:end]))
        if name in known:
            return name
    return _last(words[0])


def _last(path: str) -> str:
    return re.split(r"[/\\]", path)[-1].strip()
