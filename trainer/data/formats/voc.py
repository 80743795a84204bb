"""PASCAL VOC layout, also that of CVAT's masks and of ``wsss-trainer synth``."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from trainer.data.colours import Colour
from trainer.data.dataset import IGNORE, Dataset, Record, check_classes, complain, some
from trainer.data.formats.labelmap import NAME as LABELMAP
from trainer.data.formats.labelmap import read_labelmap
from trainer.data.formats.tables import IMAGE_COLUMNS, flags, read_table
from trainer.data.formats.voc_lists import LISTS, Lists, read_lists
from trainer.data.formats.voc_xml import read_objects
from trainer.data.image_files import ImageNames, entries, walk
from trainer.data.knobs import DataConfig
from trainer.data.names import composed, folded, one_spelling, spelling_notes
from trainer.data.pixels import IMAGE_SUFFIXES
from trainer.data.tags import FROM_MASKS
from trainer.errors import DataError

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
CSV = "image_labels.csv"
XML = "objects of Annotations/*.xml, difficult ones included"
VOC_ID = re.compile(r"20(07|08|09|10|11|12)_\d{6}")
TREE = ("ImageSets", "Annotations", "SegmentationClass", "SegmentationClassAug")
"""Folders that a VOC tree has beside its images."""
Problems = list[DataError] | None
Tags = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class ClassTable:
    """Class names, the value of each in mask files, and colours where masks have their own."""

    classes: tuple[str, ...] = VOC_CLASSES
    values: tuple[int, ...] = tuple(range(1, 21))
    colours: dict[Colour, int] = field(default_factory=dict)


def recognises(root: Path) -> bool:
    """Whether ``root`` has ``JPEGImages/`` and another folder of a VOC tree, or lists of one."""
    if (root / "JPEGImages").is_dir():
        return any((root / name).is_dir() for name in TREE)
    return (root / LISTS).is_dir()


def read(root: Path, problems: Problems, config: DataConfig) -> Dataset:
    """Read a VOC tree.

    Records are the images that some list names (without lists: every image). Masks come from
    ``SegmentationClass/``, else ``SegmentationClassAug/``. Classes come from ``classes.json``
    (``{"classes": [{"voc_index": 8, "name": "cat"}, ...], "ignore": 255}``) or CVAT's
    ``labelmap.txt``, else they are the 20 of VOC, or those of the XML files where these are others.
    Tags come from ``image_labels.csv``, else from the objects of ``Annotations/*.xml`` (difficult
    ones included, parts not), else from the masks, or from what ``labels_from`` says.

    Args:
        problems: collects what is wrong instead of raising it; the entries concerned are left out.
        config: how to read it. Where ``tags_from`` is the masks, the tags are still missing.

    Raises:
        DataError: no image, a list that names an image which is not there, duplicate ids, a damaged
        table, no tags.
    """
    images = _by_stem(root / "JPEGImages", IMAGE_SUFFIXES, problems)
    if not images:
        raise DataError(
            f"{root / 'JPEGImages'} holds no image",
            "files such as 2007_000032.jpg",
            "CVAT exports images only where 'Save images' is on: copy them to JPEGImages",
        )
    lists = read_lists(root, images, problems)
    ids = sorted({i for names in lists.values() for i in names}) or sorted(images)
    masks = _by_stem(root / "SegmentationClassAug", (".png",), problems)
    masks |= _by_stem(root / "SegmentationClass", (".png",), problems)
    notes = _list_notes(root, lists, len(images) - len(ids)) + walk(root / "JPEGImages").notes()
    source = _tag_source(root, ids, masks, config.labels_from, notes)
    objects = _objects(root, ids, notes, problems) if source == XML else {}
    table = _class_table(root, ids, objects, any(i in masks for i in ids))
    tags: Tags = {}
    if source == CSV:
        tags = _csv_tags(root / CSV, {i: images[i] for i in ids}, table.classes, notes, problems)
    elif source == XML:
        tags = _xml_tags(objects, table.classes, notes)
    records = {i: Record(i, images[i], tags.get(i, ()), masks.get(i)) for i in ids}
    folders = Counter(masks[i].parent.name for i in ids if i in masks)
    return Dataset(
        root=root,
        format="synthetic" if (root / "synthetic.json").is_file() else "voc",
        classes=table.classes,
        mask_values=table.values,
        records=records,
        lists={**lists, "all": tuple(ids)},
        tags_from=source,
        notes=tuple(notes),
        masks_from=" and ".join(sorted(folders)),
        config=config,
        mask_colours=table.colours,
    )


def _by_stem(folder: Path, suffixes: tuple[str, ...], problems: Problems) -> dict[str, Path]:
    files: dict[str, Path] = {}
    twice = []
    for path in entries(folder):
        wrong = path.name.startswith(".") or path.suffix.lower() not in suffixes
        # A pipe called like an image would be waited for without end.
        if wrong or not os.path.isfile(path):
            continue
        key = composed(path.stem)
        if key in files:
            twice.append(path.name)
        files.setdefault(key, path)
    if twice:
        complain(
            DataError(
                f"{folder} has {len(twice)} names twice, with different suffixes: {some(twice)}",
                "one file a name: the name without suffix is the id",
                "remove or rename one of each",
            ),
            problems,
        )
    return files


def _class_table(
    root: Path, ids: list[str], objects: dict[str, set[str]], masked: bool
) -> ClassTable:
    """The table that the data set brings, that of VOC, or the names of the objects."""
    if (root / "classes.json").is_file():
        return _read_table(root / "classes.json")
    if (root / LABELMAP).is_file():
        classes, colours = read_labelmap(root / LABELMAP)
        return ClassTable(classes, tuple(range(1, len(classes) + 1)), colours)
    names = one_spelling(Counter(name for shown in objects.values() for name in shown))
    known = {folded(name) for name in names.values()} & set(VOC_CLASSES)
    from_voc = 2 * sum(bool(VOC_ID.fullmatch(i)) for i in ids) >= len(ids)
    if not names or (from_voc and known):
        return ClassTable()
    if len(known) == len(set(names.values())):
        # Masks of VOC's tools have VOC's numbers whatever the photographs.
        values = sorted(VOC_CLASSES.index(name) + 1 for name in known)
        return ClassTable(tuple(VOC_CLASSES[value - 1] for value in values), tuple(values))
    own = sorted(set(names.values()))
    if masked and len(own) > 1:
        raise DataError(
            f"{root} has masks and no class table, and its annotations name other classes than"
            f" VOC's: {some(own)}",
            'classes.json: {"classes": [{"voc_index": 1, "name": "'
            + own[0]
            + '"}, ...], "ignore": 255}, with the value of each class in the masks',
        )
    check_classes(own, root / "Annotations")
    return ClassTable(tuple(own), tuple(range(1, len(own) + 1)))


def _read_table(path: Path) -> ClassTable:
    shape = '{"classes": [{"voc_index": 8, "name": "cat"}, ...], "ignore": 255}'
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        entries = [(str(entry["name"]), int(entry["voc_index"])) for entry in table["classes"]]
        ignore = int(table.get("ignore", IGNORE))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read: {type(error).__name__}: {error}", shape) from error
    names, values = [name for name, _ in entries], [value for _, value in entries]
    check_classes(names, path)
    if (
        ignore != IGNORE
        or len(set(values)) < len(values)
        or not all(0 < value < IGNORE for value in values)
    ):
        raise DataError(
            f"{path} has the mask values {values} and ignores {ignore}",
            "different values 1 to 254; ignore 255",
        )
    return ClassTable(tuple(names), tuple(values))


def _list_notes(root: Path, lists: Lists, unlisted: int) -> list[str]:
    notes = []
    if not lists:
        notes.append(f"{root / LISTS} has no list: only 'all' can be used")
    if unlisted:
        notes.append(f"{unlisted} images in JPEGImages are in no list and are left out")
    return notes


def _tag_source(
    root: Path, ids: list[str], masks: dict[str, Path], labels_from: str, notes: list[str]
) -> str:
    """Where the tags come from: what ``labels_from`` says if it is there, else the best that is."""
    listed = set(ids)
    there = {
        "csv": (root / CSV).is_file(),
        "xml": any((root / "Annotations" / f"{i}.xml").is_file() for i in ids),
        "masks": bool(masks.keys() & listed),
    }
    chosen = (
        labels_from
        if labels_from != "auto"
        else next((name for name, has in there.items() if has), "any")
    )
    if not there.get(chosen):
        names = {
            "csv": "image_labels.csv",
            "xml": "Annotations/*.xml",
            "masks": "masks for the listed images",
        }
        if chosen in names:
            others = some((name for name, has in there.items() if has), 3) or "none of the others"
            raise DataError(
                f"{root} has no {names[chosen]}", f"--labels-from for what is there: {others}"
            )
        raise DataError(
            f"{root} has no tags: neither " + ", nor ".join(names.values()),
            "image_labels.csv with the columns image_id and one 0/1 column a class",
            "wsss-trainer convert cls_labels.npy image_labels.csv makes one from the released"
            " labels",
        )
    if labels_from == "auto" and chosen == "masks":
        notes.append(
            "no image_labels.csv and no Annotations/*.xml: the tags are the classes seen in the"
            " masks"
        )
    return {"csv": CSV, "xml": XML, "masks": FROM_MASKS}[chosen]


def _csv_tags(
    path: Path,
    images: dict[str, Path],
    classes: tuple[str, ...],
    notes: list[str],
    problems: Problems,
) -> Tags:
    """Tags of ``images`` by id."""
    table = read_table(path)
    notes += table.notes
    name = table.find([n for n in IMAGE_COLUMNS if n not in map(folded, classes)])
    there = {folded(column): n for n, column in enumerate(table.columns) if n != name}
    absent = [c for c in classes if folded(c) not in there]
    if name is None or absent:
        lacking = "no column of image names" if name is None else f"no column for {some(absent)}"
        raise DataError(
            f"{table.found()}: {lacking}",
            f"image_id and one 0/1 column for each of {some(classes, 20)}",
            "write other classes into classes.json",
        )
    columns = [there[folded(c)] for c in classes]
    finder = ImageNames(path.parent, list(images.values()), table.cells(name))
    ids = {image: key for key, image in images.items()}
    tags: Tags = {}
    clashes, strangers = [], []
    for cells, shown in zip(table.rows, flags(table, columns, problems), strict=True):
        found = finder.find(cells[name])
        if len(found) != 1:
            strangers.append(cells[name])
        elif shown is not None and tags.setdefault(ids[found[0]], shown) != shown:
            clashes.append(ids[found[0]])
    if clashes:
        complain(
            DataError(
                f"{path} has different tags for the same image: {some(clashes)}", "one row an image"
            ),
            problems,
        )
    if strangers:
        notes.append(
            f"{len(strangers)} rows of {path.name} name no listed image: {some(strangers)}"
        )
    without = [key for key in images if key not in tags]
    if without:
        notes.append(f"{len(without)} listed images have no row in {path.name}: {some(without)}")
    return tags


def _objects(
    root: Path, ids: list[str], notes: list[str], problems: Problems
) -> dict[str, set[str]]:
    """Names of the objects of each annotated image."""
    annotations = _by_stem(root / "Annotations", (".xml",), problems)
    objects, error = read_objects(annotations, ids)
    if error:
        complain(error, problems)
    without = sum(i not in annotations for i in ids)
    if without:
        notes.append(f"{without} listed images have no file in Annotations")
    return objects


def _xml_tags(objects: dict[str, set[str]], classes: tuple[str, ...], notes: list[str]) -> Tags:
    index = {folded(name): k for k, name in enumerate(classes)}
    counts = Counter(name for shown in objects.values() for name in shown)
    others = {name: count for name, count in counts.items() if folded(name) not in index}
    if others:
        listing = some(f"{name!r} in {count} images" for name, count in sorted(others.items()))
        notes.append(f"objects of other classes are ignored: {listing}")
    notes += spelling_notes(
        {name: classes[index[folded(name)]] for name in sorted(counts) if name not in others}
    )
    return {i: _indices(shown, index) for i, shown in objects.items()}


def _indices(names: Iterable[str], index: dict[str, int]) -> tuple[int, ...]:
    return tuple(sorted({index[folded(name)] for name in names if folded(name) in index}))
