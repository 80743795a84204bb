"""``wsss-trainer convert``: the same images, tags, masks and lists in another format. An
interrupted conversion goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np

from trainer.data.dataset import IGNORE, Dataset, Record, read_mask_file
from trainer.data.formats.opening import formats, open_dataset
from trainer.data.formats.released_labels import convert_labels
from trainer.data.formats.writing import MaskWriter, Writer
from trainer.data.knobs import DataConfig
from trainer.data.palette import write_index_png
from trainer.data.pixels import image_size
from trainer.errors import ConfigError, DataError, nearest
from trainer.files import How, check_space, place_image, write_atomic
from trainer.interrupt import terminated
from trainer.outputs import check_folder, folds_case
from trainer.pool import each_image

MARKER = "convert.json"
POOL_FROM = 300
MASK_BYTES = 6000
"""Rough size of a mask that has no file yet, or of its run lengths in JSON."""


def writers() -> dict[str, type[Writer]]:
    """Every format that can be written, by its name for ``--to``."""
    return {form.writer.name: form.writer for form in formats() if form.writer}


def convert(
    source: Path,
    target: Path,
    to: str | None = None,
    images: How = "copy",
    config: DataConfig | None = None,
    force: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Write the data set ``source`` into the folder ``target``, its tags into the file ``target``,
    or its masks anew.

    Args:
        source: a data set of any format; for ``labels`` also ``cls_labels.npy`` or a CSV file, for
            ``masks`` also a folder of PNG files.
        target: a new folder, or the folder of the same conversion: its files are kept.
        to: the name of a writer, ``labels`` or ``masks``; default ``labels`` if ``target`` ends
            with ``.csv``.
        images: how they get there.
        config: how to read ``source``.
        force: write into a folder that holds something else, over files of the same name.
        progress: show a bar.

    Returns:
        A plain dict: from, to, counts, and what is lost.

    Raises:
        ConfigError: an unknown format.
        DataError: ``source`` cannot be read; or damaged images and masks, which are listed after
            the others are written.
        TargetError: ``target`` holds other things.
        RunError: no space, or no links there.
    """
    config, to = config or DataConfig(), to or ("labels" if target.suffix == ".csv" else "")
    if to == "labels":
        return convert_labels(source, target, config, force)
    if to == "masks":
        masked = _masked(source, config)
        if masked is None:
            return _convert_masks(source, target, config, force, progress)
        return _convert_dataset(MaskWriter(masked), target, "none", force, progress)
    choices = writers()
    if to not in choices:
        names = (*choices, "labels", "masks")
        raise ConfigError(f"cannot convert to {to!r}", nearest(to, names), "--to voc")
    writer = choices[to](open_dataset(source, config=config))
    return _convert_dataset(writer, target, images, force, progress)


def _masked(source: Path, config: DataConfig) -> Dataset | None:
    """The data set ``source``; None if it is none, or has no masks of its own."""
    if not any(form.recognises(source) for form in formats()):
        return None
    dataset = open_dataset(source, config=config)
    return dataset if any(map(dataset.has_mask, dataset.records.values())) else None


def _convert_dataset(
    writer: Writer, target: Path, images: How, force: bool, progress: bool
) -> dict[str, Any]:
    dataset = writer.dataset
    writer.check()
    key = [dataset.fingerprint(), str(dataset.root.resolve()), writer.name, images]
    destination = Destination(dataset.places(), target, key, force)
    work = _Work(writer, target, images, destination.keep)
    records = list(dataset.records.values())
    disk_bytes = work.bytes_needed(records)
    with terminated():
        check_space(target, disk_bytes, "converted images and masks")
        destination.begin()
        # The marker is there by now. By its name the disk shows whether it folds case.
        work.check_names(records, folds_case(target / MARKER))
        results = each_image(
            work,
            records,
            "images could not be converted",
            None if len(records) >= POOL_FROM else 0,
            f"converting to {writer.name}",
            progress,
            lambda record: record.id,
        )
        descriptions = {
            r.id: result.description for r, result in zip(records, results, strict=True)
        }
        for place, content in writer.tables(descriptions):
            # Tables of a finished conversion stay: the user may have changed them.
            if not (destination.done and (target / place).exists()):
                write_atomic(target / place, content)
        summary = {
            "from": {
                "path": str(dataset.root),
                "format": dataset.format,
                "tags_from": dataset.tags_from,
            },
            "to": {"path": str(target), "format": writer.name},
            "classes": len(dataset.classes),
            "lists": {name: len(ids) for name, ids in dataset.lists.items()},
            "images": sum(result.image for result in results),
            "masks": sum(result.mask for result in results),
            "kept": sum(result.is_old for result in results),
            "lost": writer.lost(descriptions),
            "disk_mb": round(disk_bytes / 1e6, 1),
        }
        destination.finish(summary)
    return summary


def _convert_masks(
    source: Path, target: Path, config: DataConfig, force: bool, progress: bool
) -> dict[str, Any]:
    """Write every PNG below ``source``, read as ``config.masks`` says, as a palette PNG of its
    indices.
    """
    files = sorted(path for path in source.rglob("*.png") if not path.name.startswith("."))
    if not files:
        raise DataError(f"{source} holds no PNG", "a folder of masks")
    sizes = [[str(path), path.stat().st_size] for path in files]
    key = ["masks", str(source.resolve()), config.masks, sizes]
    destination = Destination([source], target, key, force)
    with terminated():
        check_space(target, sum(path.stat().st_size for path in files), "masks")
        destination.begin()
        work = partial(_convert_mask, source, target, config, destination.keep)
        workers = None if len(files) >= POOL_FROM else 0
        old = each_image(
            work, files, "masks could not be converted", workers, "converting masks", progress
        )
        summary = {
            "from": {"path": str(source), "format": f"masks ({config.masks})"},
            "to": {"path": str(target), "format": "masks"},
            "masks": len(files),
            "kept": sum(old),
        }
        destination.finish(summary)
    return summary


def _convert_mask(source: Path, target: Path, config: DataConfig, keep: bool, path: Path) -> bool:
    """Convert one mask; returns whether it was there already."""
    new = target / path.relative_to(source)
    if keep and new.exists():
        return True
    write_index_png(new, read_mask_file(path, config))
    return False


def print_summary(summary: dict[str, Any]) -> None:
    """Print what was written and what could not be."""
    source, target = summary["from"], summary["to"]
    counts = [
        f"{summary[name]} {name}"
        for name in ("images", "masks", "rows", "classes")
        if name in summary
    ]
    old = f" ({summary['kept']} were there already)" if summary.get("kept") else ""
    print(
        f"{source['path']} ({source['format']}) -> {target['path']} ({target['format']}):"
        f" {', '.join(counts)}{old}"
    )
    if summary.get("lists"):
        print("lists: " + ", ".join(f"{name} {count}" for name, count in summary["lists"].items()))
    for text in summary.get("lost", ()):
        print(f"not kept: {text}")


class Destination:
    """The new folder: empty, or the folder of the same conversion, as its ``convert.json`` says.

    Attributes:
        keep: its files are whole and of this conversion.
        done: the conversion was finished before.

    Args:
        inputs: what is read.
        target: the folder.
        key: what the conversion depends on.
        force: write into a folder that holds something else.

    Raises:
        TargetError: the folder holds something else, lies in what is read, or holds it.
    """

    def __init__(
        self, inputs: Sequence[Path], target: Path, key: Sequence[Any], force: bool
    ) -> None:
        self.target = target
        self.key = hashlib.sha256(json.dumps(list(key)).encode()).hexdigest()[:16]
        there = self._there()
        same = there.get("key") == self.key
        hint = "another folder, or --force to write over files of the same name"
        check_folder(target, lambda _: same or force, inputs, hint=hint)
        # Until a conversion with --force is done, there may be older files among its own.
        self.forced = force or bool(same and there.get("forced") and not there.get("done"))
        self.keep = same and not self.forced
        self.done = self.keep and bool(there.get("done"))

    def begin(self) -> None:
        """Mark the folder as the target of this conversion."""
        self._write({"done": False})

    def finish(self, summary: dict[str, Any]) -> None:
        """Mark the conversion as finished."""
        self._write({"done": True, **summary})

    def _write(self, content: dict[str, Any]) -> None:
        text = json.dumps({"key": self.key, "forced": self.forced, **content}, indent=1)
        write_atomic(self.target / MARKER, text.encode())

    def _there(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            content = json.loads((self.target / MARKER).read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else {}
        return {}


@dataclass(frozen=True)
class _Result:
    """What became of one image.

    Attributes:
        image: it has a place in the new format.
        mask: so has its mask.
        is_old: everything was there already.
        description: for the tables.
    """

    image: bool
    mask: bool
    is_old: bool
    description: Any


@dataclass(frozen=True)
class _Work:
    """Converts one image; travels to the workers."""

    writer: Writer
    target: Path
    images: How
    keep: bool

    def __call__(self, record: Record) -> _Result:
        dataset, writer = self.writer.dataset, self.writer
        image, mask = self._places(record)
        new_image, new_mask = self._is_new(image), self._is_new(mask)
        if image and new_image:
            place_image(record.image, self.target / image, self.images)
        drawn = dataset.has_mask(record) and (new_mask or writer.describes)
        label = dataset.read_mask(record) if drawn else None
        size = image_size(record.image) if drawn or writer.describes else (0, 0)
        if label is not None and label.shape != size:
            raise DataError(
                f"the mask of {record.id} has {label.shape[1]}x{label.shape[0]} pixels",
                f"{size[1]}x{size[0]}, as its image",
                f"wsss-trainer check {dataset.root}",
            )
        if label is not None and mask:
            # From the labels of this package to the values of the new files.
            values = np.zeros(256, np.uint8)
            values[: len(writer.values) + 1] = (0, *writer.values)
            values[IGNORE] = IGNORE
            write_index_png(self.target / mask, values[label])
        description = writer.describe(record, size, label) if writer.describes else None
        is_old = bool(image or mask) and not (new_image or new_mask)
        return _Result(image is not None, drawn or mask is not None, is_old, description)

    def _places(self, record: Record) -> tuple[Path | None, Path | None]:
        image = self.writer.image(record) if self.images != "none" else None
        return image, self.writer.mask(record) if self.writer.dataset.has_mask(record) else None

    def check_names(self, records: Sequence[Record], folds: bool) -> None:
        """Check that no two images or masks would be one file.

        Args:
            records: of all images.
            folds: whether the disk takes upper and lower case for one.

        Raises:
            DataError: two would.
        """
        first: dict[str, Record] = {}
        for record in records:
            for place in filter(None, self._places(record)):
                name = normalize("NFC", str(place)).casefold() if folds else str(place)
                other = first.setdefault(name, record)
                if other.id != record.id:
                    raise DataError(
                        f"{other.id} and {record.id} would both become {place}",
                        "names that stay apart",
                        "rename one of them, or convert to another format",
                    )

    def _is_new(self, place: Path | None) -> bool:
        return place is not None and not (self.keep and (self.target / place).exists())

    def bytes_needed(self, records: Sequence[Record]) -> int:
        """Rough size of everything that is not there yet."""
        total = 0
        for record in records:
            image, mask = self._places(record)
            if self.images == "copy" and self._is_new(image) and record.image.exists():
                total += record.image.stat().st_size
            if self._is_new(mask) or (
                self.writer.describes and self.writer.dataset.has_mask(record)
            ):
                total += record.mask.stat().st_size if record.mask else MASK_BYTES
        return total
