"""PASCAL VOC layout, also of CVAT's masks and of ``wsss-trainer synth``."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.data.classes import complement, note_spellings, positions_of
from trainer.data.dataset import IGNORE, Dataset, Record
from trainer.data.formats.base import Format
from trainer.data.formats.writing import (
    Writer,
    check_tag_classes,
    lost_objects,
    tag_table,
    text_lines,
)
from trainer.data.image_files import ImageNames, entries, unique, walk
from trainer.data.knobs import DataConfig
from trainer.data.mask_files import MASK_SUFFIXES
from trainer.data.names import composed, folded
from trainer.data.pixels import IMAGE_SUFFIXES
from trainer.data.remarks import Remarks
from trainer.data.tables.columns import find_group
from trainer.data.tables.reading import IMAGE_COLUMNS, Flags, Table, flags, read_table
from trainer.data.tags import FROM_MASKS
from trainer.data.voc.classes import VOC_CLASSES, VOC_TABLE, voc_class_table
from trainer.data.voc.lists import LISTS, read_lists
from trainer.data.voc.xml import read_objects
from trainer.errors import DataError, some

CSV = "image_labels.csv"
XML = "objects of Annotations/*.xml, difficult ones included"
TREE = ("ImageSets", "Annotations", "SegmentationClass", "SegmentationClassAug")
"""Folders that a VOC tree has beside its images."""
Facts = dict[str, tuple[Flags, str]]
"""Tags and group of each image."""


def recognises(root: Path) -> bool:
    """Whether ``root`` has ``JPEGImages/`` and another folder of a VOC tree, or lists of one."""
    if (root / "JPEGImages").is_dir():
        return any((root / name).is_dir() for name in TREE)
    return (root / LISTS).is_dir()


def read(root: Path, config: DataConfig, remarks: Remarks) -> Dataset:
    """Read a VOC tree.

    Records are the images that some list names; without lists, every image. Masks come from
    ``SegmentationClass/``, else ``SegmentationClassAug/``. Classes come from ``classes.json`` or
    CVAT's ``labelmap.txt``; else they are VOC's, or the names of the objects if these are others.
    Tags come from ``image_labels.csv``, else from ``Annotations/*.xml``, else from the masks,
    unless ``labels_from`` says otherwise. Of an image that the source of the tags does not name,
    every class is unknown.

    Raises:
        DataError: no image, no tags, or a damaged table.
    """
    images = _images(root, remarks)
    lists = read_lists(root, images, remarks)
    ids = sorted({i for names in lists.values() for i in names}) or sorted(images)
    masks = _masks(root, images, ids, remarks)
    if not lists:
        remarks.note(f"{root / LISTS} has no list: only 'all' can be used")
    if len(images) > len(ids):
        rest = len(images) - len(ids)
        remarks.note(f"{rest} images in JPEGImages are in no list and are left out")
    remarks.notes += walk(root / "JPEGImages").notes()
    annotations = _by_stem(root / "Annotations", (".xml",), remarks)
    source = _tag_source(root, ids, annotations, masks, config.labels_from, remarks)
    objects = _objects(annotations, ids, remarks) if source == XML else {}
    table = voc_class_table(root, ids, objects, bool(masks))
    facts: Facts = dict.fromkeys(ids, (Flags((), complement((), len(table.names))), ""))
    if source == CSV:
        own = {i: images[i] for i in ids}
        facts |= _csv_facts(root / CSV, own, table.names, config, remarks)
    elif source == XML:
        facts |= _xml_facts(objects, table.names, config, remarks)
    records = {
        key: Record(key, images[key], row.present, masks.get(key), row.unknown, group)
        for key, (row, group) in facts.items()
    }
    return Dataset(
        root=root,
        format="synthetic" if (root / "synthetic.json").is_file() else "voc",
        classes=table.names,
        mask_values=table.values,
        records=records,
        lists=lists,
        tags_from=source,
        masks_from=" and ".join(sorted({mask.parent.name for mask in masks.values()})),
        mask_colours=table.colours,
    )


def _images(root: Path, remarks: Remarks) -> dict[str, Path]:
    images = _by_stem(root / "JPEGImages", IMAGE_SUFFIXES, remarks)
    if not images:
        raise DataError(
            f"{root / 'JPEGImages'} holds no image",
            "files such as 2007_000032.jpg",
            "CVAT exports images only where 'Save images' is on: copy them to JPEGImages",
        )
    return images


def _masks(
    root: Path, images: dict[str, Path], ids: list[str], remarks: Remarks
) -> dict[str, Path]:
    """The mask of each of ``ids`` that has one."""
    folders = [root / name for name in ("SegmentationClassAug", "SegmentationClass")]
    # VOC's own masks go before those of SBD.
    masks = {i: path for f in folders for i, path in _by_stem(f, MASK_SUFFIXES, remarks).items()}
    files = [p for f in folders for p in entries(f) if not p.name.startswith(".") and p.is_file()]
    owners = masks.keys() & images.keys()
    strangers = [path.name for path in files if composed(path.stem) not in owners]
    if strangers:
        remarks.note(
            f"{len(strangers)} files among the masks belong to no image: {some(strangers)}; a mask"
            " is a PNG or TIFF called like its image"
        )
    return {i: masks[i] for i in ids if i in masks}


def _by_stem(folder: Path, suffixes: tuple[str, ...], remarks: Remarks) -> dict[str, Path]:
    files = [
        path
        for path in entries(folder)
        if path.suffix.lower() in suffixes
        and not path.name.startswith(".")
        # A pipe called like an image would block whoever opens it.
        and os.path.isfile(path)
    ]
    return unique(files, folder, remarks, lambda path: composed(path.stem))


def _tag_source(
    root: Path,
    ids: list[str],
    annotations: dict[str, Path],
    masks: dict[str, Path],
    labels_from: str,
    remarks: Remarks,
) -> str:
    """Where tags come from: what ``labels_from`` says, or the best that is there.

    Raises:
        DataError: it is not there.
    """
    there = {
        "csv": (root / CSV).is_file(),
        "xml": not annotations.keys().isdisjoint(ids),
        "masks": bool(masks),
    }
    names = {"csv": CSV, "xml": "Annotations/*.xml", "masks": "masks for the listed images"}
    present = [name for name, is_there in there.items() if is_there]
    choice = labels_from if labels_from != "auto" else next(iter(present), "")
    if not choice:
        raise DataError(
            f"{root} has no tags: neither " + ", nor ".join(names.values()),
            "image_labels.csv with the columns image_id and one 0/1 column a class",
            "wsss-trainer convert cls_labels.npy image_labels.csv makes one from the released"
            " labels",
        )
    if not there[choice]:
        raise DataError(
            f"{root} has no {names[choice]}",
            f"--labels-from for what is there: {some(present) or 'none of the others'}",
        )
    if labels_from == "auto" and choice == "masks":
        remarks.note(
            "no image_labels.csv and no Annotations/*.xml: the tags are the classes seen in the"
            " masks"
        )
    return {"csv": CSV, "xml": XML, "masks": FROM_MASKS}[choice]


def _csv_facts(
    path: Path,
    images: dict[str, Path],
    classes: tuple[str, ...],
    config: DataConfig,
    remarks: Remarks,
) -> Facts:
    """Tags and groups of ``images`` by id."""
    table = read_table(path)
    remarks.notes += table.notes
    name, columns = _table_columns(table, classes)
    others = set(range(len(table.columns))) - {name, *columns}
    group = find_group(table, sorted(others), config, remarks)
    finder = ImageNames(path.parent, list(images.values()), table.cells(name))
    ids = {image: key for key, image in images.items()}
    facts: Facts = {}
    clashes, strangers = [], []
    rows = flags(table, columns, remarks, config.missing)
    for cell, row, belongs in zip(table.cells(name), rows, table.cells(group), strict=True):
        matches = finder.find(cell)
        if len(matches) != 1:
            strangers.append(cell)
        else:
            key, said = ids[matches[0]], (row, belongs)
            if facts.setdefault(key, said) != said:
                clashes.append(key)
    if clashes:
        remarks.problem(
            f"{path} has different tags or groups for the same image: {some(clashes)}",
            "one row an image",
        )
    if strangers:
        remarks.note(
            f"{len(strangers)} rows of {path.name} name no listed image: {some(strangers)}"
        )
    if bare := [key for key in images if key not in facts]:
        remarks.note(
            f"{len(bare)} listed images have no row in {path.name}, so that their classes are"
            f" unknown: {some(bare)}"
        )
    return facts


def _table_columns(table: Table, classes: tuple[str, ...]) -> tuple[int, list[int]]:
    """The column of images, and that of each class.

    Raises:
        DataError: one of them is not there.
    """
    # A class may be called like a column of images, such as "file".
    name = table.find([n for n in IMAGE_COLUMNS if n not in map(folded, classes)])
    there = {folded(column): n for n, column in enumerate(table.columns) if n != name}
    absent = [c for c in classes if folded(c) not in there]
    if name is None or absent:
        lacking = "no column of image names" if name is None else f"no column for {some(absent)}"
        raise DataError(
            f"{table.headings()}: {lacking}",
            f"image_id and one 0/1 column for each of {some(classes, 20)}",
            "write other classes into classes.json",
        )
    return name, [there[folded(c)] for c in classes]


def _objects(annotations: dict[str, Path], ids: list[str], remarks: Remarks) -> dict[str, set[str]]:
    """Names of the objects of each image that has an annotation."""
    objects = read_objects(annotations, ids, remarks)
    if bare := sum(i not in annotations for i in ids):
        remarks.note(
            f"{bare} listed images have no file in Annotations, so that their classes are unknown"
        )
    return objects


def _xml_facts(
    objects: dict[str, set[str]], classes: tuple[str, ...], config: DataConfig, remarks: Remarks
) -> Facts:
    counts = Counter(name for names in objects.values() for name in names)
    index = positions_of(counts, classes)
    if others := sorted(counts.keys() - index.keys()):
        listing = some(f"{name!r} in {counts[name]} images" for name in others)
        remarks.note(f"objects of other classes are ignored: {listing}")
    note_spellings(index, classes, remarks)
    facts: Facts = {}
    for key, names in objects.items():
        tags = tuple(sorted({index[name] for name in names if name in index}))
        unknown = complement(tags, len(classes)) if config.missing == "unknown" else ()
        facts[key] = Flags(tags, unknown), ""
    return facts


class VocWriter(Writer):
    """``JPEGImages/``, ``SegmentationClass/``, ``ImageSets/Segmentation/``, ``image_labels.csv``,
    ``classes.json``.
    """

    name = "voc"

    @property
    def values(self) -> tuple[int, ...]:
        """VOC's own where every class is one of VOC's, else those of the source."""
        classes = self.dataset.classes
        if set(classes) <= set(VOC_CLASSES):
            return tuple(VOC_CLASSES.index(name) + 1 for name in classes)
        return self.dataset.mask_values

    def image(self, record: Record) -> Path:
        """In ``JPEGImages``."""
        return Path("JPEGImages", f"{record.id}{record.image.suffix}")

    def mask(self, record: Record) -> Path:
        """In ``SegmentationClass``, or ``SegmentationClassAug`` where the source has it there."""
        is_sbd = record.mask is not None and record.mask.parent.name == "SegmentationClassAug"
        return Path("SegmentationClassAug" if is_sbd else "SegmentationClass", f"{record.id}.png")

    def check(self) -> None:
        """See ``Writer``."""
        super().check()
        check_tag_classes(self.dataset.classes, self.dataset.records.values())

    def tables(self, descriptions: dict[str, Any]) -> Iterator[tuple[Path, bytes]]:
        """Lists, tags, and the class table where it is not VOC's."""
        data = self.dataset
        for name, ids in self.lists().items():
            yield LISTS / f"{name}.txt", text_lines(ids)
        if (data.classes, self.values) != (VOC_TABLE.names, VOC_TABLE.values):
            classes = [
                {"voc_index": value, "name": name}
                for name, value in zip(data.classes, self.values, strict=True)
            ]
            text = json.dumps({"classes": classes, "ignore": IGNORE}, indent=1)
            yield Path("classes.json"), text.encode()
        yield Path(CSV), tag_table(data.classes, data.records.values())

    def lost(self, descriptions: dict[str, Any]) -> list[str]:
        """Nothing of tags and masks."""
        return lost_objects(self.dataset)


FORMAT = Format(
    rank=10,
    words="a VOC tree",
    layout="VOC (JPEGImages/ and ImageSets/Segmentation/)",
    tags_from=("xml", "csv", "masks"),
    recognises=recognises,
    read=read,
    writer=VocWriter,
)
