"""Masks and maps that others made, read into this package's labels: by image id, never by the order
of files.

The released evaluation of one repository pairs predictions in sorted order with the data set's, so
that one missing file shifts every pair after it (spec refine-segment 11). Here a file belongs to
the image that it is called after, or to none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.data.colours import grey_levels, indices_of, reindexed
from trainer.data.dataset import IGNORE, Dataset, Record, some
from trainer.data.pixels import image_size, open_image
from trainer.errors import ConfigError, DataError, UserError
from trainer.maps.camfile import Cam, cam_path, read_cam
from trainer.maps.foreign import read_foreign

Kind = Literal["masks", "cams"]
Numbering = Literal["ours", "data"]
Pixels = Literal["index", "colours"]

MASK_SUFFIXES = (".png",)
OTHER_PICTURES = (".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
CAM_SUFFIXES = (".npz", ".npy")

KINDS = {
    "missing": "have no file",
    "format": "are no PNG",
    "fractions": "hold numbers with fractions, not class indices",
    "colours": "are colour pictures, not class indices",
    "deep": "have more than 8 bits a pixel",
    "unreadable": "are damaged or something else",
    "size": "are of another size than their image",
    "labels": "hold labels that no class has",
}
"""What can be wrong with a file, in the words of the message, in its order."""


class BadFile(DataError):
    """One file that cannot be used.

    Attributes:
        kind: of ``KINDS``.
    """

    kind = "unreadable"

    @classmethod
    def of(cls, kind: str, found: str, hint: str = "") -> BadFile:
        """With what is wrong with the one file in ``found``, and what would help all like it in
        ``hint``.
        """
        error = cls(found, "", hint)
        error.kind = kind
        return error


@dataclass(frozen=True)
class ForeignMasks:
    """Reads ``<id>.png`` of a folder.

    Attributes:
        folder: the masks.
        values: the value of each class in the files.
        pixels: whether they hold class indices, or the colours of the VOC palette.
        numbers: what else the values could be, for the message.
    """

    folder: Path
    values: tuple[int, ...]
    pixels: Pixels = "index"
    numbers: str = ""

    def __call__(self, record: Record) -> npt.NDArray[np.uint8]:
        """Label map ``uint8 [H,W]``, 0 to K and 255, of the size of the image.

        Raises:
            BadFile: what is wrong.
        """
        path = self.folder / f"{record.id}.png"
        if not path.exists():
            raise self._absent(record)
        raw = self._pixels(path, record.id)
        height, width = image_size(record.image)
        if raw.shape != (height, width):
            raise BadFile.of(
                "size", f"{record.id} is {raw.shape[1]}x{raw.shape[0]}, its image {width}x{height}"
            )
        table = np.full(256, 254, np.uint8)
        table[0], table[IGNORE] = 0, IGNORE
        for k, value in enumerate(self.values):
            table[value] = k + 1
        found = np.unique(raw).tolist()
        unknown = [v for v in found if v not in {0, IGNORE, *self.values}]
        if unknown:
            raise BadFile.of(
                "labels", f"{record.id} holds {some(unknown)}", self._meaning(set(found))
            )
        return table[raw]

    def _absent(self, record: Record) -> BadFile:
        """Missing altogether, or there under another suffix."""
        for suffix in (".npy", *OTHER_PICTURES):
            path = self.folder / f"{record.id}{suffix}"
            if path.exists():
                return BadFile.of("fractions" if _has_fractions(path) else "format", path.name)
        return BadFile.of("missing", record.id)

    def _pixels(self, path: Path, name: str) -> npt.NDArray[np.uint8]:
        try:
            return self._decoded(path, name)
        except BadFile:
            raise
        except DataError as error:
            raise BadFile.of("unreadable", error.found.replace(str(path), name)) from error

    def _decoded(self, path: Path, name: str) -> npt.NDArray[np.uint8]:
        with open_image(path, ("PNG",)) as image:
            if self.pixels == "colours":
                return indices_of(image, path)
            if image.mode.startswith("I"):
                raise BadFile.of("deep", f"{name} is {image.mode}", "save them with 8 bits a pixel")
            if image.mode not in ("P", "L", "1") or reindexed(image):
                raise self._coloured(image, name)
            return np.array(image, dtype=np.uint8)

    def _coloured(self, image: Image.Image, name: str) -> BadFile:
        """A colour picture: of indices in three equal channels, or of the palette's colours."""
        pixels = np.asarray(image.convert("RGB"))
        found = set(np.unique(pixels).tolist())
        if (pixels == pixels[..., :1]).all() and found <= {0, IGNORE, *self.values} and found > {0}:
            keep = (
                "[I.open(p).getchannel(0).save(p) for p in"
                f" pathlib.Path({str(self.folder)!r}).rglob('*.png')]"
            )
            hint = (
                'keep one of the equal channels: python -c "import pathlib, PIL.Image as I;'
                f' {keep}"'
            )
            return BadFile.of("colours", f"{name} is {image.mode} with equal channels", hint)
        mode = "a palette picture with indices of its own" if image.mode == "P" else image.mode
        return BadFile.of(
            "colours",
            f"{name} is {mode}",
            "--masks colours reads colours of the VOC palette; or make indices of them: "
            f"wsss-trainer convert {self.folder} NEW --to masks --set data.masks=colours",
        )

    def _meaning(self, found: set[int]) -> str:
        if found <= grey_levels({0, IGNORE, *range(21)}):
            return (
                "these are grey levels of VOC colours, in which classes coincide: unpack the"
                " original masks again"
            )
        return self.numbers


def _has_fractions(path: Path) -> bool:
    if path.suffix != ".npy":
        with open_image(path) as image:
            return image.mode == "F"
    try:
        return bool(np.load(path, mmap_mode="r", allow_pickle=False).dtype.kind == "f")
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class ForeignCams:
    """Reads ``<id>.npz`` (ours) or ``<id>.npy`` (PSA, SEAM, CPN, IRN, VWE, MVA) of a folder,
    without running code in it.

    Attributes:
        folder: the maps.
        values: the mask value of each class in their numbering: a map of key k is of the class with
            the value k + 1.
        numbers: see ``ForeignMasks``.
    """

    folder: Path
    values: tuple[int, ...]
    numbers: str = ""

    def __call__(self, record: Record) -> Cam:
        """Maps of an image with class indices 0..K-1.

        Raises:
            BadFile: what is wrong.
        """
        own, theirs, size = (
            cam_path(self.folder, record.id),
            self.folder / f"{record.id}.npy",
            image_size(record.image),
        )
        if not own.exists() and not theirs.exists():
            raise BadFile.of("missing", record.id)
        try:
            cam = read_cam(own) if own.exists() else read_foreign(theirs, size, as_evaluated=True)
        except DataError as error:
            raise BadFile.of("unreadable", error.found) from error
        if cam.size != size:
            raise BadFile.of(
                "size",
                f"{record.id} is for {cam.size[1]}x{cam.size[0]}, its image {size[1]}x{size[0]}",
            )
        index = {value - 1: k for k, value in enumerate(self.values)}
        unknown = [k for k in cam.classes.tolist() if k not in index]
        if unknown:
            raise BadFile.of(
                "labels", f"{record.id} has maps of the classes {some(unknown)}", self.numbers
            )
        return cam._replace(classes=np.array([index[k] for k in cam.classes.tolist()], np.int16))


def foreign_masks(
    folder: Path, dataset: Dataset, numbering: Numbering, pixels: Pixels = "index"
) -> ForeignMasks:
    """What reads the masks of a folder.

    Args:
        folder: ``<id>.png``.
        dataset: whose images they are of.
        numbering: ``ours``: class k of the K is k + 1; ``data``: as in the data set's own masks.
        pixels: what they hold.
    """
    return ForeignMasks(folder, _values(dataset, numbering), pixels, _numbers(dataset))


def foreign_cams(folder: Path, dataset: Dataset, numbering: Numbering) -> ForeignCams:
    """What reads the maps of a folder.

    Args:
        folder: ``<id>.npz`` or ``<id>.npy``.
        dataset: whose images they are of.
        numbering: ``ours``: 0 to K-1; ``data``: one less than in the data set's own masks, so that
            PSA's key 14 is VOC's 15, person.
    """
    return ForeignCams(folder, _values(dataset, numbering), _numbers(dataset))


def _values(dataset: Dataset, numbering: Numbering) -> tuple[int, ...]:
    return dataset.mask_values if numbering == "data" else tuple(range(1, len(dataset.classes) + 1))


def _numbers(dataset: Dataset) -> str:
    own = some(dataset.mask_values, 21)
    return (
        f"--labels ours numbers the classes 1 to {len(dataset.classes)}, --labels data as the data"
        f" set does: {own}"
    )


def kind_of(folder: Path) -> Kind:
    """Whether a folder holds masks or maps.

    Raises:
        DataError: it does not exist, or holds neither.
        ConfigError: it holds both.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder",
            "a folder of <id>.png masks, or of <id>.npz or <id>.npy maps",
        )
    suffixes = {path.suffix.lower() for path in folder.rglob("*")}
    masks, cams = suffixes & {*MASK_SUFFIXES, *OTHER_PICTURES}, suffixes & {*CAM_SUFFIXES}
    if masks and cams:
        raise ConfigError(
            f"{folder} holds {some(sorted(masks | cams))} files",
            "one kind",
            "--kind masks or --kind cams",
        )
    if not masks and not cams:
        raise DataError(
            f"{folder} holds neither masks nor maps", "<id>.png masks, or <id>.npz or <id>.npy maps"
        )
    return "masks" if masks else "cams"


def strangers(folder: Path, kind: Kind, ids: Collection[str]) -> list[str]:
    """Files of a folder that are called after none of ``ids``, sorted."""
    suffixes = MASK_SUFFIXES if kind == "masks" else CAM_SUFFIXES
    files = (p.relative_to(folder) for p in folder.rglob("*") if p.suffix.lower() in suffixes)
    known = set(ids)
    return sorted(str(p) for p in files if str(p.with_suffix("")) not in known)


def describe(
    problems: Mapping[str, UserError],
    total: int,
    what: str,
    extra: Sequence[str] = (),
    ids: Collection[str] = (),
) -> DataError:
    """One error that says everything that is wrong with a folder, by kind and with counts.

    Args:
        problems: of single images, by id.
        total: images of the list.
        what: for example ``masks of preds/``.
        extra: files that belong to no image.
        ids: of the data set, to see what such files may be meant for.
    """
    lines = [f"{len(problems)} of {total} {what} cannot be used:"]
    hints = []
    for kind, words in KINDS.items():
        alike = [
            error for error in problems.values() if getattr(error, "kind", "unreadable") == kind
        ]
        if alike:
            lines.append(f"  {len(alike)} {words}: {some((error.found for error in alike), 4)}")
            hints += [error.hint for error in alike if error.hint][:1]
    if extra:
        lines.append(
            f"  and {len(extra)} files belong to no image of the data set: {some(extra, 4)}"
        )
        hints += _misnamed(extra, ids)
    if len(problems) < total:
        hints.append("--bad skip measures without them, and says so")
    return DataError(
        "\n".join(lines), "one file an image, called after its id", "\n     ".join(hints)
    )


def _misnamed(extra: Sequence[str], ids: Collection[str]) -> list[str]:
    """What to rename, where a file's name holds an id and more."""
    for name in extra[:20]:
        stem = Path(name).stem
        inside = max((i for i in ids if i and i in stem), key=len, default=None)
        if inside:
            return [f"rename: {name} would be {inside}{Path(name).suffix}"]
    return []
