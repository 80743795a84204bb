"""Image files below a folder, and the image that a name in a table means."""

from __future__ import annotations

import math
import os
import posixpath
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from trainer.data.names import composed, is_list_name, is_one_line
from trainer.data.pixels import IMAGE_SUFFIXES
from trainer.data.remarks import Remarks
from trainer.errors import some

# Pictures of cameras and of the Web, of kinds that are not read.
OTHER_KINDS = re.compile(
    r"\.(hei[cf]|hif|avif|gif|j2k|jp[2fmx]|jxl|jif|pjpe?g?|dib|psd|tga|pcx|p[bgnp]m|exr|hdr|dcm|dng"
    r"|cr[23]|nef|arw|orf|rw2|raf|raw)",
    re.IGNORECASE,
)
# Folders that systems and programs put beside photographs: thumbnails, previews, deleted files.
SYSTEM_FOLDERS = re.compile(
    r"@(eadir|tmp|recycle|recently-snapshot)|#(recycle|snapshot)|\$recycle\.bin|recycle[dr]"
    r"|system volume information|lost\+found|__macosx|__pycache__",
    re.IGNORECASE,
)

UNREAD = "files of kinds that are not read (save them as JPEG or PNG)"
SYSTEM = "folders of the system or of a program"
CLOSED = "folders that cannot be opened"
BROKEN = "links that lead nowhere"
REPEATED = "links to folders that are read already, or around the data"
SPECIAL = "pipes, sockets or devices called like images"
GLANCE = 1000
"""How many folders to look into before it is certain that a folder is a data set."""
STRANGE = "names with control characters or not in UTF-8"


@dataclass
class Walk:
    """What lies below a folder.

    Attributes:
        root: the folder.
        images: every file with an image suffix, sorted.
        left_out: other things that a user may miss, by the reason.
    """

    root: Path
    images: list[Path] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))

    def add(self, other: Walk) -> None:
        """Add what lies below a folder of this one."""
        self.images += other.images
        for reason, paths in other.left_out.items():
            self.left_out[reason] += paths

    def add_entry(self, path: Path) -> None:
        """Note ``path`` if its name is a reason to leave it out."""
        if reason := passed_over(path.name):
            self.left_out[reason].append(path)

    def notes(self) -> list[str]:
        """For the user: what is left out, counted and named."""
        return [
            f"{len(paths)} {reason} are left out: "
            + some(ascii(str(p)) if reason == STRANGE else p for p in self._inside(paths))
            for reason, paths in sorted(self.left_out.items())
        ]

    def _inside(self, paths: Iterable[Path]) -> list[str]:
        return sorted(inner_name(path, self.root) for path in paths)


def walk(root: Path, skip: Iterable[Path] = (), limit: float = math.inf) -> Walk:
    """Look through ``root`` and every folder below it.

    Hidden files and folders, and ``skip``, are passed over. Links are followed, but never to a
    folder around ``root``; a folder that is reached twice is read once.

    Args:
        root: the folder.
        skip: folders below it that are not looked into.
        limit: how many folders to look into, for a glance at what may be a whole disk.
    """
    listing, skips = Walk(root), set(skip)
    around = {_identity(parent) for parent in root.resolve().parents}
    folders_seen: set[tuple[int, int]] = set()
    # Links come last, so that a folder is listed by the name that leads to it without one.
    folders, links = deque([root]), deque[Path]()
    while (folders or links) and len(folders_seen) < limit:
        folder = folders.popleft() if folders else links.popleft()
        if folder in skips:
            continue
        try:
            place = _identity(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            listing.left_out[CLOSED].append(folder)
            continue
        if place in folders_seen or place in around:
            listing.left_out[REPEATED].append(folder)
            continue
        folders_seen.add(place)
        for entry in entries:
            path = folder / entry.name
            if passed_over(entry.name) is not None:
                listing.add_entry(path)
            elif os.path.isdir(path):
                (links if entry.is_symlink() else folders).append(path)
            else:
                _file(path, listing)
    listing.images.sort()
    return listing


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def passed_over(name: str) -> str | None:
    """The reason to leave something out because of its name: "" if it need not be mentioned, None
    if there is none.
    """
    if not is_one_line(name):
        return STRANGE
    if SYSTEM_FOLDERS.fullmatch(name):
        return SYSTEM
    return "" if name.startswith(".") else None


def _file(path: Path, listing: Walk) -> None:
    if not os.path.exists(path):
        listing.left_out[BROKEN].append(path)
    elif OTHER_KINDS.fullmatch(path.suffix):
        listing.left_out[UNREAD].append(path)
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        if os.path.isfile(path):
            listing.images.append(path)
        else:
            listing.left_out[SPECIAL].append(path)


def entries(folder: Path) -> list[Path]:
    """Paths of what is in a folder, sorted; none if it cannot be opened."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def list_images(root: Path) -> list[Path]:
    """Every image file below ``root``, sorted: see ``walk``."""
    return walk(root).images


def inner_name(path: Path, root: Path) -> str:
    """The relative path of a file below ``root``, with ``/``: faster than ``relative_to``, which
    looks at every part again.
    """
    return "/".join(path.parts[len(root.parts) :])


def image_id(path: Path, root: Path) -> str:
    """Relative path without suffix, ``/`` written as ``__``, in composed form."""
    return composed(posixpath.splitext(inner_name(path, root))[0].replace("/", "__"))


def unique(
    paths: Iterable[Path], root: Path, remarks: Remarks, key: Callable[[Path], str]
) -> dict[str, Path]:
    """The first path of each ``key``; others with the same key are a problem of ``root``."""
    by_key: dict[str, Path] = {}
    twice = [path.name for path in paths if by_key.setdefault(key(path), path) != path]
    if twice:
        remarks.problem(
            f"{root} has {len(twice)} names twice, with different suffixes: {some(twice)}",
            "one file a name: the name without suffix is the id",
            "remove or rename one of each",
        )
    return by_key


class ImageNames:
    """Finds the images that a table or list names.

    A name is a path relative to the folder or a bare file name, with or without suffix. Letter
    case, Unicode form, backslashes and ``%20`` make no difference where the result is one image;
    nor do folders that all names begin with and that are not there, as in paths of another machine.

    Args:
        root: the folder.
        images: its images.
        names: every name in the table.
    """

    def __init__(self, root: Path, images: Sequence[Path], names: Iterable[str]) -> None:
        self.root, self.images = root, images
        self._whole = [f"{_clean(str(place))}/" for place in (root.absolute(), root.resolve())]
        self._tables: list[dict[str, list[Path]]] = []
        self._foreign = 0
        self._foreign = self._count_foreign([self._inside(name) for name in names])

    def find(self, name: str) -> list[Path]:
        """The images that ``name`` may mean: none, one, or several if it is ambiguous."""
        inside = self._inside(name)
        matches = self._find(inside) or self._find(unquote(inside))
        if matches or not os.path.isfile(self.root / inside):
            return matches
        same = self._resolved.get((self.root / inside).resolve())
        return [same] if same else []

    @cached_property
    def _resolved(self) -> dict[Path, Path]:
        """Images by their real paths: a name may go through a link that was not followed."""
        return {path.resolve(): path for path in self.images}

    def _inside(self, name: str) -> str:
        name = _clean(name)
        for root in self._whole:
            if name.startswith(root):
                return name[len(root) :]
        while name.startswith("../"):
            name = name[3:]
        return "/".join(name.split("/")[self._foreign :])

    def _find(self, inside: str) -> list[Path]:
        for number, key in enumerate([inside] * 4 + [inside.casefold()] * 4):
            # Most tables name all images in one way. Other tables of names are made on demand.
            if number == len(self._tables):
                self._tables.append(self._table(number))
            if key in self._tables[number]:
                return self._tables[number][key]
        return []

    def _table(self, number: int) -> dict[str, list[Path]]:
        """Images by path, path without suffix, bare name, and bare name without suffix; from 4 on
        the same in small letters.
        """
        table: dict[str, list[Path]] = defaultdict(list)
        for path in self.images:
            name = _clean(inner_name(path, self.root))
            name = posixpath.basename(name) if number & 2 else name
            name = _stem(name) if number & 1 else name
            table[name.casefold() if number & 4 else name].append(path)
        return dict(table)

    def _count_foreign(self, names: list[str]) -> int:
        """How many folders all ``names`` begin with that are none here; 0 where any name fits."""
        if not names or any(map(self._find, names)):
            return 0
        for count, folders in enumerate(zip(*(name.split("/")[:-1] for name in names)), 1):
            if len(set(folders)) > 1:
                break
            # One image of several lists is not another's namesake: train/1.jpg is not val/1.jpg.
            if is_list_name(folders[0]) and self._has_lists:
                break
            if any(self._find("/".join(name.split("/")[count:])) for name in names):
                return count
        return 0

    @cached_property
    def _has_lists(self) -> bool:
        """Whether the images lie in folders called like lists."""
        folders = {part for path in self.images for part in path.relative_to(self.root).parts[:-1]}
        return any(map(is_list_name, folders))


def _clean(name: str) -> str:
    """``name`` composed, with ``/`` between its parts, and without ``.`` and ``..`` inside."""
    return posixpath.normpath(composed(name.strip()).replace("\\", "/").removeprefix("file://"))


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]
