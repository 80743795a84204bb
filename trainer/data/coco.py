"""COCO instances JSON (spec refine-segment 10). Masks are drawn from the annotations when they are
asked for.
"""

from __future__ import annotations

import json
import re
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.dataset import IGNORE, Dataset, Record, check_classes, complain, some
from trainer.data.knobs import DataConfig
from trainer.data.tags import FROM_MASKS
from trainer.errors import DataError

Problems = list[DataError] | None
Note = tuple[int, str, Any]
"""Class, ``object`` or ``crowd`` or ``void``, and outline of an annotation."""
Notes = dict[Any, list[Note]]
Entries = dict[Any, tuple[str, int, int]]
PREFIX = re.compile(r"^COCO_[a-z]+\d{4}_")
TAGS = {False: "COCO annotations, crowds left out", True: "COCO annotations, crowds included"}
CROWDS = {
    "drop": "crowds left out",
    "ignore": "crowds ignored (255)",
    "keep": "crowds painted like objects",
}


@dataclass(frozen=True)
class CocoDataset(Dataset):
    """A data set whose masks are drawn from annotations.

    Attributes:
        shapes: by id, compressed JSON ``[height, width, [[value, segmentation], ...]]`` in painting
            order; compressed because the 600,000 outlines of COCO as Python lists would take
            gigabytes in every worker.
        empty: by list, how many images of the file have no annotation at all.
    """

    shapes: dict[str, bytes] = field(default_factory=dict, repr=False)
    empty: dict[str, int] = field(default_factory=dict)

    def has_mask(self, record: Record) -> bool:
        """Whether every object of the image has an outline (an image without objects is all
        background).
        """
        return record.id in self.shapes

    def mask_source(self, record: Record) -> bytes:
        """The outlines that the mask is painted from; empty without one."""
        return self.shapes.get(record.id, b"")

    def read_mask(self, record: Record) -> npt.NDArray[np.uint8]:
        """Label map ``uint8 [H,W]``: annotations painted in file order, later ones on top; crowds
        as ``config`` says.

        Raises:
            DataError: an object of the image has no outline, or one that cannot be drawn.
        """
        if record.id not in self.shapes:
            raise DataError(
                f"image {record.id!r} has objects without an outline",
                "a segmentation for every annotation",
            )
        height, width, painted = json.loads(zlib.decompress(self.shapes[record.id]))
        label = np.zeros((height, width), np.uint8)
        for value, segmentation in painted:
            label[_draw(segmentation, height, width, record.id)] = value
        return label


def recognises(root: Path) -> bool:
    """Whether ``root`` has ``annotations/*.json``."""
    return (root / "annotations").is_dir() and bool(_files(root))


def read(root: Path, problems: Problems, config: DataConfig) -> CocoDataset:
    """Read every ``annotations/instances_*.json`` (without such names: every
    ``annotations/*.json``).

    Each file is a list called after it (``instances_train2014.json``: ``train2014``). Images are
    looked for in the folder of that name, in ``images/``, in both together, beside ``annotations/``
    and in ``JPEGImages/``, with and without the prefix ``COCO_train2014_``. Classes are the
    categories in order of their COCO id, whatever gaps the ids have; files are matched by name.
    Tags are the categories of the annotations, of crowds too with ``crowd_tags``.

    An annotation with ``"ignore": 1`` (as ``wsss-trainer convert`` writes the borders of VOC) is
    255 and no tag.

    Args:
        problems: collects what is wrong instead of raising it; the entries concerned are left out.
        config: how to read it. Where ``tags_from`` is the masks, the tags are those of the
        annotations still.

    Raises:
        DataError: damaged JSON, files that disagree about the categories, unknown categories,
        images not found.
    """
    if config.labels_from in ("xml", "csv"):
        raise DataError(
            f"{root} is COCO: tags are in its JSON, not in {config.labels_from}",
            "--labels-from masks or auto",
        )
    reader = _Reader(root, config, problems)
    for path in _files(root):
        reader.read(path)
    records, shapes = reader.records, reader.shapes
    if not records:
        raise DataError(
            f"{root / 'annotations'} describes no image that is there",
            "COCO instances JSON and its images",
        )
    if len(shapes) < len(records):
        reader.notes.append(
            f"{len(records) - len(shapes)} images have objects without outline and so no mask"
        )
    return CocoDataset(
        root=root,
        format="coco",
        classes=reader.classes,
        mask_values=tuple(range(1, len(reader.classes) + 1)),
        records=records,
        lists={**reader.lists, "all": tuple(records)},
        tags_from=FROM_MASKS if config.labels_from == "masks" else TAGS[config.crowd_tags],
        notes=tuple(reader.notes),
        masks_from=f"annotations painted in file order, {CROWDS[config.crowd]}" if shapes else "",
        config=config,
        shapes=shapes,
        empty=reader.empty,
    )


def _files(root: Path) -> list[Path]:
    files = sorted(p for p in (root / "annotations").glob("*.json") if not p.name.startswith("."))
    return [p for p in files if p.name.startswith("instances_")] or files


def _load(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", "COCO instances JSON") from error
    absent = [
        key
        for key in ("images", "annotations", "categories")
        if not isinstance(table, dict) or key not in table
    ]
    if absent:
        raise DataError(
            f"{path} has no {some(absent)}", "COCO instances JSON: images, annotations, categories"
        )
    return dict(table)


def _categories(table: dict[str, Any], path: Path) -> dict[int, str]:
    try:
        ranked = sorted((int(entry["id"]), str(entry["name"])) for entry in table["categories"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} has a damaged category: {error!r}", 'entries {"id": 1, "name": "person"}'
        ) from error
    check_classes([name for _, name in ranked], path)
    if len(dict(ranked)) < len(ranked):
        raise DataError(f"{path} gives two categories the same id", "one id a category")
    return dict(ranked)


class _Reader:
    """What the files have said so far."""

    def __init__(self, root: Path, config: DataConfig, problems: Problems) -> None:
        self.root, self.config, self.problems = root, config, problems
        self.classes: tuple[str, ...] = ()
        self.records: dict[str, Record] = {}
        self.shapes: dict[str, bytes] = {}
        self.lists: dict[str, tuple[str, ...]] = {}
        self.empty: dict[str, int] = {}
        self.notes: list[str] = []

    def read(self, path: Path) -> None:
        """Add the images of one file."""
        table = _load(path)
        categories = _categories(table, path)
        if not self.classes:
            self.classes = tuple(categories.values())
            self._note_gaps(sorted(categories))
        elif set(categories.values()) != set(self.classes):
            complain(
                DataError(
                    f"{path} has other categories than the files before it", "one class table"
                ),
                self.problems,
            )
            return
        name = path.stem.removeprefix("instances_")
        index = {category: self.classes.index(called) for category, called in categories.items()}
        entries, notes = self._entries(table, path, index)
        ids, missing = [], []
        self.empty[name] = sum(not found for found in notes.values())
        for key, (file_name, height, width) in entries.items():
            if not notes[key] and not self.config.keep_empty:
                continue
            image = _find(self.root, name, file_name)
            if image is None:
                missing.append(file_name)
            else:
                ids.append(self._add(path, name, image, (file_name, height, width), notes[key]))
        if self.empty[name]:
            done = (
                "have no tag"
                if self.config.keep_empty
                else "are left out (--set data.keep_empty=on keeps them)"
            )
            self.notes.append(
                f"{self.empty[name]} of {len(entries)} images of {name} have no annotation and"
                f" {done}"
            )
        if missing:
            complain(
                DataError(
                    f"{path} names {len(missing)} images that are not there: {some(missing)}",
                    f"them in {self.root / name}, {self.root / 'images'},"
                    f" {self.root / 'images' / name} or {self.root}",
                    "bring the images, or take the entries out of the JSON",
                ),
                self.problems,
            )
        self.lists[name] = tuple(dict.fromkeys(ids))

    def _note_gaps(self, ids: list[int]) -> None:
        if ids != list(range(1, len(ids) + 1)):
            text = (
                f"category ids run from {ids[0]} to {ids[-1]} with gaps: masks hold 1 to"
                f" {len(ids)}, in their order"
            )
            self.notes.append(text)

    def _entries(
        self, table: dict[str, Any], path: Path, index: dict[int, int]
    ) -> tuple[Entries, Notes]:
        """Images of a file and the annotations of each, in file order."""
        try:
            entries: Entries = {
                image["id"]: (str(image["file_name"]), image["height"], image["width"])
                for image in table["images"]
            }
            notes: Notes = {key: [] for key in entries}
            strange, stray = set(), 0
            for note in table["annotations"]:
                if note["category_id"] not in index:
                    strange.add(note["category_id"])
                elif note["image_id"] not in notes:
                    stray += 1
                else:
                    kind = (
                        "void"
                        if note.get("ignore")
                        else "crowd"
                        if note.get("iscrowd")
                        else "object"
                    )
                    notes[note["image_id"]].append(
                        (index[note["category_id"]], kind, note.get("segmentation"))
                    )
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path} has a damaged entry: {error!r}", "COCO instances JSON"
            ) from error
        if len(entries) < len(table["images"]):
            complain(
                DataError(f"{path} gives several images the same id", "one id an image"),
                self.problems,
            )
        if strange or stray:
            found = (
                f"annotations of unknown categories ({some(sorted(strange, key=str))}) or unknown"
                f" images ({stray})"
            )
            complain(
                DataError(f"{path} has {found}", "every category_id and image_id in its tables"),
                self.problems,
            )
        return entries, notes

    def _add(
        self, path: Path, name: str, image: Path, entry: tuple[str, int, int], notes: list[Note]
    ) -> str:
        file_name, height, width = entry
        config, records = self.config, self.records
        record_id = _free_id(file_name, name, image, records)
        tagging = ("object", "crowd") if config.crowd_tags else ("object",)
        tags = tuple(sorted({k for k, kind, _ in notes if kind in tagging}))
        if record_id in records and records[record_id].tags != tags:
            found = f"{path} and another file disagree about {file_name}"
            complain(DataError(found, "the same annotations"), self.problems)
        records.setdefault(record_id, Record(record_id, image, tags))
        painted = [
            (
                (
                    IGNORE
                    if kind == "void" or (kind == "crowd" and config.crowd == "ignore")
                    else k + 1
                ),
                outline,
            )
            for k, kind, outline in notes
            if kind != "crowd" or config.crowd != "drop"
        ]
        if all(_drawable(outline) for _, outline in painted):
            shape = json.dumps([height, width, painted]).encode()
            self.shapes.setdefault(record_id, zlib.compress(shape, 1))
        return record_id


def _find(root: Path, name: str, file_name: str) -> Path | None:
    """The image of an entry; COCO 2014 writes ``COCO_train2014_000000000009.jpg`` what 2017 writes
    ``000000000009.jpg``.
    """
    folders = (root / name, root / "images" / name, root / "images", root, root / "JPEGImages")
    base = Path(file_name).name
    bare = PREFIX.sub("", base)
    others = (
        (bare,)
        if bare != base
        else (f"COCO_{name}_{base}", f"COCO_train2014_{base}", f"COCO_val2014_{base}")
    )
    names = (file_name, *(str(Path(file_name).with_name(other)) for other in others))
    return next(
        (folder / each for each in names for folder in folders if (folder / each).is_file()), None
    )


def _free_id(file_name: str, name: str, image: Path, records: dict[str, Record]) -> str:
    """File name without suffix; with the list's name before it where another file has the id
    already.
    """
    path = Path(file_name).with_suffix("")
    plain = "__".join(path.relative_to(path.anchor).parts)
    taken = plain in records and records[plain].image != image
    return f"{name}__{plain}" if taken else plain


def _drawable(segmentation: object) -> bool:
    if isinstance(segmentation, dict):
        return {"size", "counts"} <= segmentation.keys()
    return isinstance(segmentation, list) and any(
        isinstance(ring, list) and len(ring) >= 6 for ring in segmentation
    )


def _draw(segmentation: Any, height: int, width: int, where: str) -> npt.NDArray[np.bool_]:
    """Pixels of one outline: polygons, or run lengths (plain or compressed)."""
    from pycocotools import mask as rle

    try:
        if isinstance(segmentation, dict):
            runs = segmentation
            if list(runs["size"]) != [height, width]:
                raise ValueError(
                    f"run lengths of a {runs['size']} picture in one of {[height, width]}"
                )
            if isinstance(runs["counts"], list):
                runs = rle.frPyObjects(runs, height, width)
        else:
            runs = rle.merge(rle.frPyObjects(_rings(segmentation), height, width))
        with warnings.catch_warnings():
            # pycocotools hands numpy 2 an array in a way that numpy deprecates.
            warnings.simplefilter("ignore", DeprecationWarning)
            return np.asarray(rle.decode(runs), dtype=np.bool_)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise DataError(
            f"an outline of image {where!r} cannot be drawn: {error}",
            "COCO polygons or run lengths",
        ) from error


def _rings(polygons: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    # pycocotools takes a list of four numbers for a box.
    return [ring for ring in polygons if len(ring) >= 6]
