"""One folder a class; each image has one tag."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from unicodedata import normalize

from trainer.data.classes import table_of_tags
from trainer.data.dataset import Dataset, Record
from trainer.data.formats.base import Format
from trainer.data.formats.writing import Writer, is_grouped
from trainer.data.image_files import (
    BROKEN,
    CLOSED,
    GLANCE,
    SPECIAL,
    UNREAD,
    Walk,
    entries,
    image_id,
    passed_over,
    unique,
    walk,
)
from trainer.data.knobs import NEGATIVE_FOLDERS, DataConfig
from trainer.data.mask_files import masks_beside
from trainer.data.names import IGNORE_NAMES, folded, is_background, is_list_name, list_name
from trainer.data.pixels import IMAGE_SUFFIXES
from trainer.data.remarks import Remarks
from trainer.errors import DataError, some
from trainer.outputs import is_portable
from trainer.run import is_run

MASKS = "masks beside their images (such as a_mask.png beside a.png)"
OTHERS = ("annotations", "imagesets", "images", "jpegimages", "labels", "masks", "segmentation")
"""What folders of other formats begin with. Where one of them is, the folders beside it are no
classes.
"""
PARTS = ("image", "img", "imgs", "gt", "groundtruth", "ground_truth")
"""Whole names of such folders."""


@dataclass
class Layout:
    """How folders are classes.

    Attributes:
        lists: name and folder of each list.
        classes: the class folders of each list.
        empty: folders without any picture, and folders of runs.
        obstacles: why the folders cannot be classes, in words.
    """

    lists: list[tuple[str, Path]] = field(default_factory=list)
    classes: list[list[Path]] = field(default_factory=list)
    empty: list[Path] = field(default_factory=list)
    obstacles: list[str] = field(default_factory=list)


def recognises(root: Path) -> bool:
    """Whether every folder in ``root`` (or in its folders ``train*``, ``val*``, ``test*``) is empty
    or a class with images in it.
    """
    layout = _layout(root)
    return bool(layout.lists) and not layout.obstacles


def obstacles(root: Path) -> list[str]:
    """Why folders with images cannot be classes, in words; empty where there are no such
    folders.
    """
    return _layout(root).obstacles


def read(root: Path, config: DataConfig, remarks: Remarks) -> Dataset:
    """Read ``<class>/<image>``, or ``<list>/<class>/<image>``. Images in a folder ``background`` or
    ``good`` show no class: see ``DataConfig.negative``.

    Raises:
        DataError: names that cannot be those of classes.
    """
    return read_layout(root, _layout(root), config, remarks)


def read_layout(root: Path, layout: Layout, config: DataConfig, remarks: Remarks) -> Dataset:
    """Read the class folders of ``layout``. See ``read`` for errors."""
    folders = Counter(folder.name for group in layout.classes for folder in group)
    negative = {name for name in folders if config.is_negative(name, folder=True)}
    counts = Counter({n: c for n, c in folders.items() if n not in negative})
    rest = "unknown" if config.missing == "unknown" else "not there (--set data.missing=unknown)"
    remarks.note(f"every image has the one tag of its folder; the other classes count as {rest}")
    table = table_of_tags(counts, root, remarks)
    below = Walk(root)
    owners: dict[Path, tuple[str, str]] = {}
    for (name, _), group in zip(layout.lists, layout.classes, strict=True):
        for folder in group:
            inside = walk(folder)
            if masks := masks_beside(inside.images):
                inside.left_out[MASKS] = sorted(masks)
                inside.images = [path for path in inside.images if path not in masks]
            below.add(inside)
            if folded(folder.name) not in IGNORE_NAMES:
                owners |= dict.fromkeys(inside.images, (name, folder.name))
    images = unique(owners, root, remarks, lambda path: image_id(path, root))
    _note(root, negative, layout, below, remarks)
    lists: dict[str, list[str]] = {name: [] for name, _ in layout.lists}
    records = {}
    for key, path in images.items():
        name, folder_name = owners[path]
        tags = table.positions([folder_name])
        is_open = config.missing == "unknown" and folder_name not in negative
        records[key] = Record(key, path, tags, unknown=table.complement(tags) if is_open else ())
        lists[name].append(key)
    return Dataset(
        root=root,
        format="folders",
        classes=table.names,
        mask_values=tuple(range(1, len(table.names) + 1)),
        records=records,
        lists={name: tuple(ids) for name, ids in lists.items()},
        tags_from="the folder of each image",
    )


def _note(
    root: Path, negative: Iterable[str], layout: Layout, below: Walk, remarks: Remarks
) -> None:
    for name in sorted(negative):
        state = "are left out" if folded(name) in IGNORE_NAMES else "show none of the classes"
        usual = "" if is_background(name) else " (--set data.negative=none makes it a class)"
        remarks.note(f"the images of folder {name!r} {state}{usual}")
    if layout.empty:
        names = some(_inside(root, layout.empty))
        remarks.note(
            f"{len(layout.empty)} folders without images, or of runs, are left out: {names}"
        )
    for parent in (root, *(folder for _, folder in layout.lists if folder != root)):
        for entry in entries(parent):
            below.add_entry(entry)
    remarks.notes += below.notes()


def _layout(root: Path) -> Layout:
    """How the folders in ``root`` are classes; without lists where they are something else."""
    layout = Layout()
    folders = folders_of(root, layout)
    outer = [f for f in folders if is_list_name(f.name) and not _has_image(f)]
    # All folders are called like lists and have no images of their own: the classes are one level
    # below.
    if outer and outer == folders:
        layout.lists = [(list_name(folder.name), folder) for folder in outer]
        layout.classes = [folders_of(folder, layout) for folder in outer]
    elif folders:
        layout.lists, layout.classes = [("all", root)], [folders]
    classes = [folder for group in layout.classes for folder in group]
    foreign = any(_is_part(folder.name) for folder in (*folders, *classes))
    if foreign or (not outer and not any(map(_has_image, classes))):
        return Layout()
    if outer and outer != folders:
        others = [folder for folder in folders if folder not in outer]
        layout.obstacles = [
            f"beside the lists {some(_inside(root, outer))} stand other folders with images:"
            f" {some(_inside(root, others))}"
        ]
    else:
        layout.obstacles = list(_obstacles(root, layout, classes))
    return layout


def _is_part(name: str) -> bool:
    """Whether a folder is called like a part of another format."""
    return name.lower().startswith(OTHERS) or name.lower() in PARTS


def _obstacles(root: Path, layout: Layout, folders: list[Path]) -> Iterator[str]:
    """Why ``folders`` cannot be the folders of classes."""
    classes = [folder for folder in folders if _has_image(folder)]
    others = {f: walk(f, limit=GLANCE).images for f in folders if f not in classes}
    lists = [folder for folder in classes if is_list_name(folder.name)]
    names = {folded(folder.name) for folder in classes} - IGNORE_NAMES
    for paths, words in (
        ([f for (_, f), group in zip(layout.lists, layout.classes) if not group], "no class in"),
        ([f for f, images in others.items() if images], "images only in folders below"),
        (
            [f for f, images in others.items() if not images],
            "no picture that can be read (HEIC? permission?) in",
        ),
        (lists if lists == classes else [], "images of no class in"),
        (
            [path for _, folder in layout.lists for path in _images_in(folder)],
            "images beside the folders of classes:",
        ),
        (classes if len(names) == 1 else [], "images of one class only:"),
    ):
        if paths:
            yield f"{words} {some(_inside(root, paths))}"


def _inside(root: Path, paths: Iterable[Path]) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def folders_of(parent: Path, layout: Layout) -> list[Path]:
    """Folders in ``parent`` with pictures, readable or not; the others go to ``layout.empty``."""
    full = []
    for path in entries(parent):
        if passed_over(path.name) is not None or not os.path.isdir(path):
            continue
        if _has_image(path):
            full.append(path)
        elif is_run(path) or any(map(is_run, entries(path))):
            layout.empty.append(path)
        else:
            below = walk(path, limit=GLANCE)
            pictures = below.images or below.left_out.keys() & {UNREAD, SPECIAL, CLOSED, BROKEN}
            (full if pictures else layout.empty).append(path)
    return full


def _images_in(folder: Path) -> Iterator[Path]:
    for path in entries(folder):
        hidden = passed_over(path.name) is not None
        if path.suffix.lower() in IMAGE_SUFFIXES and not hidden and os.path.isfile(path):
            yield path


def _has_image(folder: Path) -> bool:
    return next(_images_in(folder), None) is not None


class FoldersWriter(Writer):
    """``<list>/<class>/<image>``, for the lists that train and measure by default."""

    name = "folders"

    def image(self, record: Record) -> Path | None:
        """Images with one tag, and negatives in a folder ``background``."""
        name = next((name for name, ids in self._split.items() if record.id in ids), None)
        if name is None or not (len(record.tags) == 1 or record.is_negative):
            return None
        label = self.dataset.classes[record.tags[0]] if record.tags else "background"
        return Path("" if name == "all" else name, label, f"{record.id}{record.image.suffix}")

    @cached_property
    def _split(self) -> dict[str, frozenset[str]]:
        data = self.dataset
        names = [name for use in ("val", "train") if (name := data.default_list(use))]
        return {name: frozenset(data.lists[name]) for name in names or ["all"]}

    def check(self) -> None:
        """See ``Writer``; the name of each class must be a folder name on every system."""
        super().check()
        tags = {r.tags[0] for r in self.dataset.records.values() if len(r.tags) == 1}
        names = [self.dataset.classes[k] for k in sorted(tags)]
        # Images in a folder "good" would be read as negatives.
        bad = [n for n in names if DataConfig().is_negative(n, folder=True)]
        bad += [n for n in names if not is_portable(n) or _is_part(n)]
        if bad:
            raise DataError(
                f"{len(bad)} class names cannot be those of folders: {some(map(repr, bad))}",
                'names without / \\ : * ? " < > |, without dots and spaces at their ends, and not'
                f" those of other formats' folders ({', '.join((*OTHERS, *PARTS))}) or of negatives"
                f" ({', '.join(sorted(NEGATIVE_FOLDERS))})",
                "rename the classes, or --to csv",
            )
        first: dict[str, str] = {}
        for name in names:
            other = first.setdefault(normalize("NFC", name).casefold(), name)
            if other != name:
                raise DataError(
                    f"the classes {other!r} and {name!r} are one folder on many systems",
                    "names that differ in more than upper and lower case",
                    "rename one of them",
                )

    def tables(self, descriptions: dict[str, Any]) -> Iterator[tuple[Path, bytes]]:
        """No table."""
        return iter(())

    def lost(self, descriptions: dict[str, Any]) -> list[str]:
        """Images with several tags or none that is known, unknown classes, groups, other lists,
        masks.
        """
        records = self.dataset.records.values()
        several = sum(len(record.tags) > 1 for record in records)
        none = sum(not record.tags and not record.is_negative for record in records)
        partly = sum(len(record.tags) == 1 and bool(record.unknown) for record in records)
        return [
            f"{several} images with several tags and {none} whose tags are unknown",
            *([f"which classes of {partly} images are unknown"] if partly else []),
            *(["groups"] if is_grouped(records) else []),
            f"lists other than {' and '.join(map(repr, self._split))}",
            "all masks",
        ]


FORMAT = Format(
    rank=60,
    words="a folder with one folder a class",
    layout="one folder a class",
    tags_from=(),
    recognises=recognises,
    read=read,
    writer=FoldersWriter,
)
