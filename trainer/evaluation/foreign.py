"""Masks and maps from elsewhere, read into this package's labels.

A file belongs to the image whose id it bears, or to none. One released evaluation pairs predictions
with images by sorted order instead, where one missing file shifts every pair after it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.data.colours import grey_levels, indices_of, plain_indices, reindexed
from trainer.data.dataset import IGNORE, Dataset, Record, read_mask_file
from trainer.data.kinds import Unreadable
from trainer.data.knobs import DataConfig
from trainer.data.pixels import as_shown, image_size, open_header
from trainer.errors import ConfigError, DataError, UserError, one_of, some
from trainer.evaluation.foreign_files import (
    ARRAY_SUFFIXES,
    OTHER_PICTURES,
    Files,
    files_of,
    read_array,
)
from trainer.maps.camfile import Cam, read_cam
from trainer.maps.foreign import read_foreign

Numbering = Literal["ours", "data"]
Pixels = Literal["index", "colours", "binary"]

# The faults of a file, in the words of the message and in its order.
FAULTS = {
    "missing": "have no file",
    "several": "have several files",
    "format": "are neither PNG, TIFF or BMP nor arrays",
    "fractions": "hold numbers with fractions, not class indices",
    "colours": "are colour pictures, not class indices",
    "unreadable": "are damaged or something else",
    "shape": "are arrays of another shape",
    "size": "are of another size than their image",
    "labels": "hold labels that no class has",
}


class BadFile(DataError):
    """One file that cannot be used.

    Args:
        fault: of ``FAULTS``.
        found: the fault of this file.
        hint: what repairs all files with the fault.
    """

    def __init__(self, fault: str, found: str, hint: str = "") -> None:
        super().__init__(found, "", hint)
        self.fault = fault
        # A worker process sends these to its parent, which builds the error again.
        self.args = (fault, found, hint)


def _file(files: Files, record: Record) -> Path:
    if names := files.unclear.get(record.id):
        raise BadFile("several", some(names), "keep one an image, or call it by the id")
    if record.id not in files.used:
        raise BadFile("missing", record.id)
    return files.used[record.id]


@dataclass(frozen=True)
class ForeignMasks:
    """Reads the masks of a folder: ``<id>.png``, ``<id>.tif``, ``<id>.npy`` and the like.

    Arrays are label maps ``[H,W]``, or probabilities or ones at the class ``[K+1,H,W]``, background
    first. A batch of one is taken for what it holds.

    Attributes:
        folder: the masks.
        files: of each image.
        values: the value of each class in the files.
        pixels: of PNG files: class indices, colours of the VOC palette, or 0 and 255.
        numbers: the ways to number classes, for the message.
    """

    folder: Path
    files: Files
    values: tuple[int, ...]
    pixels: Pixels = "index"
    numbers: str = ""

    def __call__(self, record: Record) -> npt.NDArray[np.uint8]:
        """Label map ``uint8 [H,W]``, 0 to K and 255, of the size of the image.

        Raises:
            BadFile: the file is missing or cannot be used.
        """
        path = _file(self.files, record)
        if path.suffix.lower() in OTHER_PICTURES:
            hint = "save them as PNG: JPEG changes class indices"
            raise BadFile("format", path.name, hint)
        raw = self._pixels(path, record.id)
        height, width = image_size(record.image)
        if raw.shape != (height, width):
            raise BadFile(
                "size", f"{record.id} is {raw.shape[1]}x{raw.shape[0]}, its image {width}x{height}"
            )
        # A look-up translates all labels in one pass over the pixels.
        table = np.zeros(256, np.uint8)
        table[IGNORE] = IGNORE
        for k, value in enumerate(self.values):
            table[value] = k + 1
        labels = set(np.unique(raw).tolist())
        if unknown := sorted(labels - {0, IGNORE, *self.values}):
            raise BadFile("labels", f"{record.id} holds {some(unknown)}", self._meaning(labels))
        return table[raw]

    def _pixels(self, path: Path, name: str) -> npt.NDArray[np.uint8]:
        try:
            if path.suffix.lower() in ARRAY_SUFFIXES:
                return self._of_array(path)
            if self.pixels == "binary":
                objects = read_mask_file(path, DataConfig(masks="binary"))
                return np.where(objects > 0, np.uint8(self.values[0]), np.uint8(0))
            return self._decoded(path, name)
        except BadFile:
            raise
        except DataError as error:
            raise BadFile("unreadable", error.found.replace(str(path), name)) from error

    def _of_array(self, path: Path) -> npt.NDArray[np.uint8]:
        array, labels = read_array(path), np.array([0, *self.values], np.uint8)
        if array.ndim > 2 and len(array) == 1:
            array = array[0]
        if array.dtype.kind not in "iufb":
            raise BadFile("shape", f"{path.name} is {array.dtype} {array.shape}")
        if not np.isfinite(array).all():
            raise BadFile("unreadable", f"{path.name} holds NaN or inf")
        if array.ndim == 3 and len(labels) in array.shape[::2]:
            # Channels first as torch has them, or last as TensorFlow does.
            channels = 0 if len(array) == len(labels) else 2
            # Whole numbers may be a picture in colours, unless they are 1 at the class and else 0.
            if array.dtype.kind == "f" or _is_one_hot(array, channels):
                strongest: npt.NDArray[np.uint8] = labels[array.argmax(channels)]
                return strongest
        if array.ndim != 2:
            problem = f"{path.name} is {array.dtype} {array.shape}"
            hint = f"label maps [H,W], or probabilities [{len(labels)},H,W], background first"
            raise BadFile("shape", problem, hint)
        # Some tools save labels as floats: whole numbers lose nothing.
        if (array != np.floor(array)).any():
            raise BadFile("fractions", path.name)
        if array.min() < 0 or array.max() > IGNORE:
            found = f"{path.name} holds {array.min():g} to {array.max():g}"
            raise BadFile("labels", found, f"255 for pixels that are left open; {self.numbers}")
        return array.astype(np.uint8)

    def _decoded(self, path: Path, name: str) -> npt.NDArray[np.uint8]:
        # By content, not by suffix: JPEG would have changed the indices.
        with open_header(path) as header:
            if header.kind in ("JPEG", "WEBP"):
                raise Unreadable(f"it is a {header.kind}", "PNG, TIFF or BMP")
            if self.pixels == "colours":
                return as_shown(indices_of(header.image, path), header)
            indices = plain_indices(header, name)
            # Colours are no class indices, nor are those of a palette in another order.
            if indices is None or reindexed(header.image):
                raise self._colour_fault(header.image, name)
            return as_shown(indices, header)

    def _colour_fault(self, image: Image.Image, name: str) -> BadFile:
        mode = "a palette picture with indices of its own" if image.mode == "P" else image.mode
        return BadFile(
            "colours",
            f"{name} is {mode}",
            "--masks colours reads colours of the VOC palette; or turn them into indices: "
            f"wsss-trainer convert {self.folder} NEW --to masks --set data.masks=colours",
        )

    def _meaning(self, labels: set[int]) -> str:
        if labels <= grey_levels({0, IGNORE, *range(21)}):
            return (
                "these are grey levels of VOC colours, in which classes coincide: unpack the"
                " original masks again"
            )
        return self.numbers


@dataclass(frozen=True)
class ForeignCams:
    """Reads the maps of a folder: ``<id>.npz`` (ours) or ``<id>.npy`` (PSA, SEAM, CPN, IRN, VWE,
    MVA). No code in the files is run.

    Attributes:
        files: of each image.
        values: the mask value of each class in their numbering: the map of key k belongs to the
            class with the value k + 1.
        numbers: see ``ForeignMasks``.
    """

    files: Files
    values: tuple[int, ...]
    numbers: str = ""

    def __call__(self, record: Record) -> Cam:
        """Maps of an image with class indices 0..K-1.

        Raises:
            BadFile: the file is missing or cannot be used.
        """
        path, size = _file(self.files, record), image_size(record.image)
        try:
            is_ours = path.suffix.lower() == ".npz"
            # Figures of released maps must come out as their own scripts compute them.
            cam = read_cam(path) if is_ours else read_foreign(path, size, as_evaluated=True)
        except DataError as error:
            raise BadFile("unreadable", error.found) from error
        if cam.size != size:
            raise BadFile(
                "size",
                f"{record.id} is for {cam.size[1]}x{cam.size[0]}, its image {size[1]}x{size[0]}",
            )
        # Keys of maps count objects from 0, values of masks have the background before them.
        index = {value - 1: k for k, value in enumerate(self.values)}
        keys = cam.classes.tolist()
        if unknown := [key for key in keys if key not in index]:
            raise BadFile(
                "labels", f"{record.id} has maps of the classes {some(unknown)}", self.numbers
            )
        return cam._replace(classes=np.array([index[key] for key in keys], np.int16))


def foreign_masks(
    folder: Path, dataset: Dataset, numbering: Numbering, pixels: Pixels = "index"
) -> ForeignMasks:
    """A reader of the masks of a folder.

    Args:
        folder: ``<id>.png``, or ``<id>.npy`` or ``<id>.npz`` of one array. See ``files_of`` for
            other names.
        dataset: whose images they belong to.
        numbering: ``ours``: class k of the K is k + 1; ``data``: as in the data set's own masks.
        pixels: ``index``, ``colours`` of the VOC palette, or ``binary``: 0 and 255.

    Raises:
        ConfigError: an unknown numbering or kind of pixels, or ``binary`` for several classes.
    """
    one_of(pixels, get_args(Pixels), "the kind of masks")
    if pixels == "binary" and len(dataset.classes) > 1:
        raise ConfigError(
            f"--masks binary for the {len(dataset.classes)} classes {some(dataset.classes)}",
            "a data set of one class",
            "save the index of the class (1, 2, ...) instead of 255",
        )
    files = files_of(folder, dataset, "masks")
    return ForeignMasks(folder, files, _values(dataset, numbering), pixels, _numbers(dataset))


def foreign_cams(folder: Path, dataset: Dataset, numbering: Numbering) -> ForeignCams:
    """A reader of the maps of a folder.

    Args:
        folder: ``<id>.npz`` or ``<id>.npy``.
        dataset: whose images they belong to.
        numbering: ``ours``: 0 to K-1; ``data``: one less than in the data set's own masks, so that
            PSA's key 14 is VOC's 15, person.

    Raises:
        ConfigError: an unknown numbering.
    """
    files = files_of(folder, dataset, "cams")
    return ForeignCams(files, _values(dataset, numbering), _numbers(dataset))


def _is_one_hot(array: npt.NDArray[Any], channels: int) -> bool:
    return bool(array.max() == 1 and array.min() == 0 and (array.sum(channels) == 1).all())


def _values(dataset: Dataset, numbering: Numbering) -> tuple[int, ...]:
    one_of(numbering, get_args(Numbering), "the numbering of classes")
    return dataset.mask_values if numbering == "data" else tuple(range(1, len(dataset.classes) + 1))


def _numbers(dataset: Dataset) -> str:
    own = some(dataset.mask_values, 21)
    return (
        f"--labels ours numbers the classes 1 to {len(dataset.classes)}, --labels data as the data"
        f" set does: {own}"
    )


def describe(
    problems: Mapping[str, UserError],
    total: int,
    what: str,
    extra: Sequence[str] = (),
    ids: Collection[str] = (),
) -> DataError:
    """One error about a whole folder, by fault and with counts.

    Args:
        problems: of single images, by id.
        total: images of the list.
        what: for example ``masks of preds/``.
        extra: files that belong to no image.
        ids: of the data set, to see which images such files may be meant for.
    """
    lines = [f"{len(problems)} of {total} {what} cannot be used:"]
    hints = []
    for fault, words in FAULTS.items():
        alike = [e for e in problems.values() if getattr(e, "fault", "unreadable") == fault]
        if alike:
            lines.append(f"  {len(alike)} {words}: {some((error.found for error in alike), 4)}")
            hints += [error.hint for error in alike if error.hint][:1]
    if extra:
        lines.append(f"  and {len(extra)} files are not used: {some(extra, 4)}")
        hints += _renaming(extra, ids)
    if len(problems) < total:
        hints.append("--bad skip measures without them, and says so")
    return DataError(
        "\n".join(lines), "one file per image, named after its id", "\n     ".join(hints)
    )


def _renaming(extra: Sequence[str], ids: Collection[str]) -> list[str]:
    """A hint for a file whose name holds an id and more. A few files show the pattern."""
    for name in extra[:20]:
        stem = Path(name).stem
        inside = max((i for i in ids if i and i in stem), key=len, default=None)
        if inside and inside != stem:
            return [f"rename: {name} would be {inside}{Path(name).suffix}"]
    return []
