"""One folder a class, each image with one tag (spec refine-segment 11)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainer.data.dataset import Dataset, Record, check_classes, complain, some
from trainer.data.formats.cells import list_name
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
    walk,
)
from trainer.data.knobs import DataConfig
from trainer.data.names import (
    IGNORE_NAMES,
    folded,
    in_order,
    is_background,
    one_spelling,
    spelling_notes,
)
from trainer.data.pixels import IMAGE_SUFFIXES
from trainer.errors import DataError
from trainer.run import is_run

Problems = list[DataError] | None
SPLITS = ("train", "val", "test")
OTHERS = ("annotations", "imagesets", "images", "jpegimages", "labels", "masks", "segmentation")
"""Folders of other formats: where one of them is, the folders beside it are no classes."""


@dataclass
class _Layout:
    """How folders are classes.

    Attributes:
        lists: name and folder of each list.
        classes: the class folders of each list.
        empty: folders without any picture, and those of runs: they count for nothing.
        obstacles: what keeps the folders from being classes, in words.
    """

    lists: list[tuple[str, Path]] = field(default_factory=list)
    classes: list[list[Path]] = field(default_factory=list)
    empty: list[Path] = field(default_factory=list)
    obstacles: list[str] = field(default_factory=list)


def recognises(root: Path) -> bool:
    """Whether every folder in ``root`` (or in its folders ``train*``, ``val*``, ``test*``) is a
    class with images in it, or empty.
    """
    layout = _layout(root)
    return bool(layout.lists) and not layout.obstacles


def obstacles(root: Path) -> list[str]:
    """What keeps folders with images from being read as classes, in words; none where there are no
    such folders.
    """
    return _layout(root).obstacles


def read(root: Path, problems: Problems, config: DataConfig) -> Dataset:
    """Read ``<class>/<image>``, or ``<list>/<class>/<image>``. Ids are relative paths without
    suffix, ``/`` as ``__``. Images in a folder ``background`` have no tag.

    Args:
        problems: collects what is wrong instead of raising it; the entries concerned are left out.
        config: how to read it.

    Raises:
        DataError: two images with the same id, or tags asked for from elsewhere.
    """
    if config.labels_from != "auto":
        raise DataError(
            f"{root} has one folder a class, no {config.labels_from}", "--labels-from auto"
        )
    layout = _layout(root)
    folders = Counter(folder.name for group in layout.classes for folder in group)
    spellings = one_spelling(Counter({n: c for n, c in folders.items() if not is_background(n)}))
    classes, _ = in_order(set(spellings.values()))
    check_classes(classes, root)
    everything = Walk(root)
    records: dict[str, Record] = {}
    lists: dict[str, list[str]] = {name: [] for name, _ in layout.lists}
    twice = []
    for (name, _), group in zip(layout.lists, layout.classes, strict=True):
        for folder in group:
            inside = walk(folder)
            everything.add(inside)
            if folded(folder.name) in IGNORE_NAMES:
                continue
            label = spellings.get(folder.name)
            tags = (classes.index(label),) if label else ()
            for path in inside.images:
                key = image_id(path, root)
                if key in records:
                    twice.append(path.name)
                else:
                    records[key] = Record(key, path, tags)
                    lists[name].append(key)
    if twice:
        found = f"{root} has {len(twice)} names twice, with different suffixes: {some(twice)}"
        complain(DataError(found, "one file a name", "remove or rename one of each"), problems)
    return Dataset(
        root,
        "folders",
        classes,
        tuple(range(1, len(classes) + 1)),
        records,
        {name: tuple(ids) for name, ids in lists.items()} | {"all": tuple(records)},
        "the folder of each image",
        tuple(_notes(root, folders, layout, spellings, everything)),
        config=config,
    )


def _notes(
    root: Path, folders: Iterable[str], layout: _Layout, spellings: dict[str, str], found: Walk
) -> Iterator[str]:
    yield "every image has the one tag of its folder; others that it shows are unknown"
    yield from spelling_notes(spellings)
    for name in sorted(filter(is_background, folders)):
        ignored = folded(name) in IGNORE_NAMES
        yield f"the images of folder {name!r} " + ("are left out" if ignored else "have no tag")
    if layout.empty:
        names = some(_inside(root, layout.empty))
        yield f"{len(layout.empty)} folders without images, or of runs, are left out: {names}"
    for parent in (root, *(folder for _, folder in layout.lists if folder != root)):
        for entry in entries(parent):
            found.add_entry(entry)
    yield from found.notes()


def _layout(root: Path) -> _Layout:
    """How the folders in ``root`` are classes; without lists where they are something else."""
    layout = _Layout()
    folders = _folders(root, layout)
    outer = [f for f in folders if f.name.lower().startswith(SPLITS) and not _has_image(f)]
    if outer and outer == folders:
        layout.lists = [(list_name(folder.name), folder) for folder in outer]
        layout.classes = [_folders(folder, layout) for folder in outer]
    elif folders:
        layout.lists, layout.classes = [("all", root)], [folders]
    classes = [folder for group in layout.classes for folder in group]
    foreign = any(folder.name.lower().startswith(OTHERS) for folder in (*folders, *classes))
    if foreign or (not outer and not any(map(_has_image, classes))):
        return _Layout()
    if outer and outer != folders:
        others = [folder for folder in folders if folder not in outer]
        layout.obstacles = [
            f"beside the lists {some(_inside(root, outer))} stand other folders with images:"
            f" {some(_inside(root, others))}"
        ]
    else:
        layout.obstacles = list(_obstacles(root, layout, classes))
    return layout


def _obstacles(root: Path, layout: _Layout, folders: list[Path]) -> Iterator[str]:
    """What is wrong with ``folders`` as the folders of classes."""
    classes = [folder for folder in folders if _has_image(folder)]
    others = [folder for folder in folders if folder not in classes]
    lists = [folder for folder in classes if folder.name.lower().startswith(SPLITS)]
    names = {folded(folder.name) for folder in classes} - IGNORE_NAMES
    beside = [path for _, folder in layout.lists for path in _images_in(folder)]
    for paths, words in (
        ([f for (_, f), group in zip(layout.lists, layout.classes) if not group], "no class in"),
        ([f for f in others if walk(f, limit=GLANCE).images], "images only in folders below"),
        (
            [f for f in others if not walk(f, limit=GLANCE).images],
            "no picture that can be read (HEIC? permission?) in",
        ),
        (lists if lists == classes else [], "images of no class in"),
        (beside, "images beside the folders of classes:"),
        (classes if len(names) == 1 else [], "images of one class only:"),
    ):
        if paths:
            yield f"{words} {some(_inside(root, paths))}"


def _inside(root: Path, paths: Iterable[Path]) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def _folders(parent: Path, layout: _Layout) -> list[Path]:
    """Folders in ``parent`` with pictures, also such as cannot be read; the others are noted."""
    filled = []
    for path in entries(parent):
        if passed_over(path.name) is not None or not os.path.isdir(path):
            continue
        if _has_image(path):
            filled.append(path)
        elif is_run(path) or any(map(is_run, entries(path))):
            layout.empty.append(path)
        else:
            found = walk(path, limit=GLANCE)
            pictures = found.images or found.left_out.keys() & {UNREAD, SPECIAL, CLOSED, BROKEN}
            (filled if pictures else layout.empty).append(path)
    return filled


def _images_in(folder: Path) -> Iterator[Path]:
    for path in entries(folder):
        hidden = passed_over(path.name) is not None
        if path.suffix.lower() in IMAGE_SUFFIXES and not hidden and os.path.isfile(path):
            yield path


def _has_image(folder: Path) -> bool:
    return next(_images_in(folder), None) is not None
