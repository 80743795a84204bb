"""PASCAL VOC layout (spec refine-segment 9 and 11), also that of ``wsss-trainer synth``."""

from __future__ import annotations

import json
import os
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Container
from pathlib import Path

from trainer.data.cells import list_name
from trainer.data.dataset import IGNORE, Dataset, Record, check_classes, complain, some
from trainer.data.image_files import ImageNames, entries, walk
from trainer.data.knobs import DataConfig
from trainer.data.names import composed, folded
from trainer.data.pixels import IMAGE_SUFFIXES
from trainer.data.tables import IMAGE_COLUMNS, flags, read_table
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
LISTS = Path("ImageSets", "Segmentation")
SBD_NAMES = ("train_aug", "trainaug")
Problems = list[DataError] | None
Tags = dict[str, tuple[int, ...]]


def recognises(root: Path) -> bool:
    """Whether ``root`` has ``JPEGImages/`` and ``ImageSets/Segmentation/``."""
    return (root / "JPEGImages").is_dir() and (root / LISTS).is_dir()


def read(root: Path, problems: Problems, config: DataConfig) -> Dataset:
    """Read a VOC tree.

    Records are the images that some list names (without lists: every image). Masks come from
    ``SegmentationClass/``, else ``SegmentationClassAug/``. Classes come from ``classes.json``
    (``{"classes": [{"voc_index": 8, "name": "cat"}, ...], "ignore": 255}``), else they are the 20
    of VOC. Tags come from ``image_labels.csv``, else from the objects of ``Annotations/*.xml``
    (difficult ones included, parts not), else from the masks, or from what ``labels_from`` says.

    Args:
        problems: collects what is wrong instead of raising it; the entries concerned are left out.
        config: how to read it. Where ``tags_from`` is the masks, the tags are still missing.

    Raises:
        DataError: no image, a list that names an image which is not there, duplicate ids, a damaged
        table, no tags.
    """
    images = _by_stem(root / "JPEGImages", IMAGE_SUFFIXES, problems)
    if not images:
        raise DataError(f"{root / 'JPEGImages'} holds no image", "files such as 2007_000032.jpg")
    classes, values = _classes(root)
    lists = _lists(root, images, problems)
    ids = sorted({i for names in lists.values() for i in names}) or sorted(images)
    masks = _by_stem(root / "SegmentationClassAug", (".png",), problems)
    masks |= _by_stem(root / "SegmentationClass", (".png",), problems)
    notes = _list_notes(root, lists, len(images) - len(ids)) + walk(root / "JPEGImages").notes()
    source = _tag_source(root, ids, masks, config.labels_from, notes)
    tags: Tags = {}
    if source == CSV:
        tags = _csv_tags(root / CSV, {i: images[i] for i in ids}, classes, notes, problems)
    elif source == XML:
        tags = _xml_tags(root, ids, classes, notes, problems)
    records = {i: Record(i, images[i], tags.get(i, ()), masks.get(i)) for i in ids}
    folders = Counter(masks[i].parent.name for i in ids if i in masks)
    return Dataset(
        root=root,
        format="synthetic" if (root / "synthetic.json").is_file() else "voc",
        classes=classes,
        mask_values=values,
        records=records,
        lists={**lists, "all": tuple(ids)},
        tags_from=source,
        notes=tuple(notes),
        masks_from=" and ".join(sorted(folders)),
        config=config,
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


def _classes(root: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    path = root / "classes.json"
    if not path.is_file():
        return VOC_CLASSES, tuple(range(1, 21))
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
    return tuple(names), tuple(values)


def _lists(root: Path, images: dict[str, Path], problems: Problems) -> dict[str, tuple[str, ...]]:
    lists = {}
    for path in sorted((root / LISTS).glob("*.txt")):
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            complain(
                DataError(f"{path} cannot be read: {error}", "one image id a line, UTF-8"), problems
            )
            continue
        ids = [list_id(line.strip(), images) for line in lines if line.strip()]
        once = dict.fromkeys(ids)
        if len(once) < len(ids):
            twice = [i for i, count in Counter(ids).items() if count > 1]
            complain(
                DataError(
                    f"{path} names {len(twice)} images twice: {some(twice)}", "every image once"
                ),
                problems,
            )
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
        lists["train_aug" if path.stem in SBD_NAMES else list_name(path.stem)] = tuple(
            i for i in once if i in images
        )
    return lists


def list_id(line: str, known: Container[str]) -> str:
    """Id on a list line: bare (any text), or the stem of the first of two columns of paths."""
    if line in known:
        return line
    first = re.split(r"\s+(?=/)|\t", line)[0] if line.startswith("/") else line.split()[0]
    name = first.rsplit("/", 1)[-1]
    path = Path(name)
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else name


def _list_notes(root: Path, lists: dict[str, tuple[str, ...]], unlisted: int) -> list[str]:
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


def _xml_tags(
    root: Path, ids: list[str], classes: tuple[str, ...], notes: list[str], problems: Problems
) -> Tags:
    annotations = _by_stem(root / "Annotations", (".xml",), problems)
    index = {name: k for k, name in enumerate(classes)}
    tags: Tags = {}
    others: dict[str, int] = {}
    for i in ids:
        if i not in annotations:
            continue
        try:
            objects = ElementTree.parse(annotations[i]).getroot().findall("object")
        except (OSError, ElementTree.ParseError) as error:
            complain(
                DataError(f"{annotations[i]} cannot be read: {error}", "a VOC annotation in XML"),
                problems,
            )
            continue
        names = {(entry.findtext("name") or "").strip() for entry in objects}
        tags[i] = tuple(sorted(index[name] for name in names if name in index))
        for name in names - index.keys():
            others[name] = others.get(name, 0) + 1
    without = sum(i not in annotations for i in ids)
    if without:
        notes.append(f"{without} listed images have no file in Annotations")
    if others:
        listing = some(f"{name!r} in {count} images" for name, count in sorted(others.items()))
        notes.append(f"objects of other classes are ignored: {listing}")
    return tags
