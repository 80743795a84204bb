"""What every stage knows of a data set, whatever its format on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.data.colours import (
    GREY_HINT,
    VOC_COLOURS,
    Colour,
    grey_levels,
    indices_of,
    object_pixels,
    plain_indices,
)
from trainer.data.knobs import DataConfig
from trainer.data.pixels import as_shown, image_size, open_header
from trainer.errors import DataError, nearest
from trainer.pool import raise_together

IGNORE = 255
INDEX_PNG = "a palette or grey PNG whose pixel values are class indices"


@dataclass(frozen=True)
class Record:
    """One image of a data set.

    Attributes:
        id: unique name inside the data set; outputs are called after it.
        image: the image file.
        tags: class indices 0..K-1 present in the image, ascending.
        mask: the mask file, or None. Masks drawn from annotations have no file: see
        ``Dataset.read_mask``.
        unknown: class indices, ascending, of which nobody said whether the image shows them.
        group: what the image belongs to, such as a part or a patient; empty for itself alone.
    """

    id: str
    image: Path
    tags: tuple[int, ...]
    mask: Path | None = None
    unknown: tuple[int, ...] = ()
    group: str = ""

    @property
    def possible(self) -> tuple[int, ...]:
        """Class indices that the image may show: present or unknown, ascending."""
        return tuple(sorted((*self.tags, *self.unknown)))

    @property
    def unit(self) -> tuple[str, str]:
        """What is drawn and divided as a whole: its group, or the image itself."""
        return self.group, "" if self.group else self.id

    @property
    def is_negative(self) -> bool:
        """Whether the image is said to show no class."""
        return not self.tags and not self.unknown


@dataclass(frozen=True)
class Dataset:
    """Class table, records and image lists.

    Attributes:
        root: folder that was opened.
        format: short name of its format, such as ``voc`` or ``folders``.
        classes: K foreground class names. In every label map of this package 0 is background, k+1
            is ``classes[k]`` and 255 is "ignore".
        mask_values: the value of each class in this data set's own mask files.
        records: every record by id.
        lists: named lists of ids (``train``, ``val``, ...). ``all`` always exists.
        tags_from: the source of the tags in words, for the protocol line.
        notes: remarks for the user, for example about a missing list.
        masks_from: the source of the masks in words; empty without masks.
        config: how it was read.
        mask_colours: value of each RGB colour in mask files, if the data set has a table of them.
        withheld: ids of the images whose true mask trains, and so measures nothing.
    """

    root: Path
    format: str
    classes: tuple[str, ...]
    mask_values: tuple[int, ...]
    records: dict[str, Record]
    lists: dict[str, tuple[str, ...]]
    tags_from: str
    notes: tuple[str, ...] = field(default=())
    masks_from: str = ""
    config: DataConfig = field(default_factory=DataConfig)
    mask_colours: dict[Colour, int] = field(default_factory=dict, kw_only=True)
    withheld: frozenset[str] = field(default=frozenset(), kw_only=True)

    def subset(self, name: str) -> list[Record]:
        """Records of list ``name``, in list order.

        Raises:
            DataError: there is no such list.
        """
        if name not in self.lists:
            raise DataError(
                f"{self.root} has no list {name!r}",
                nearest(name, sorted(self.lists)),
                "pass one of these lists",
            )
        return [self.records[i] for i in self.lists[name]]

    def masked(self, name: str) -> list[Record]:
        """Records of list ``name`` with a true mask to measure by, in list order.

        Raises:
            DataError: there is no such list.
        """
        return self.with_masks([r for r in self.subset(name) if r.id not in self.withheld])

    def with_masks(self, records: Sequence[Record]) -> list[Record]:
        """Those of ``records`` that have a true mask; none where nobody drew any of these masks."""
        owners = [record for record in records if self.has_mask(record)]
        return [] if all(map(self.is_blank, owners)) else owners

    def default_list(self, use: str) -> str | None:
        """``train_aug`` or ``train``, ``val``, or the first list called like it (COCO's
        ``train2017``); None if there is none.
        """
        alike = sorted(name for name in self.lists if name.startswith(use))
        return next((name for name in (f"{use}_aug", use, *alike) if name in self.lists), None)

    def has_mask(self, record: Record) -> bool:
        """Whether ``read_mask`` would return a mask."""
        return record.mask is not None or self.is_blank(record)

    def is_blank(self, record: Record) -> bool:
        """Whether the true mask is background by the tags alone: the image shows no class and has
        no mask, while others have one.
        """
        return record.mask is None and record.is_negative and bool(self.masks_from)

    def read_mask(self, record: Record) -> npt.NDArray[np.uint8]:
        """Label map ``uint8 [H,W]``: 0 background, 1..K classes, 255 ignore.

        Raises:
            DataError: no mask, an unreadable file, or a value that no class of this data set has.
        """
        if self.is_blank(record):
            return np.zeros(image_size(record.image), np.uint8)
        return self.label_map(record, self.raw_mask(record))

    def raw_mask(self, record: Record) -> npt.NDArray[np.uint8]:
        """Values of the mask file of an image, ``uint8 [H,W]``.

        Raises:
            DataError: no mask, or a file that holds something else than ``config.masks`` says.
        """
        if record.mask is None:
            raise DataError(
                f"image {record.id!r} has no mask", "a mask file for every image of this list"
            )
        return read_mask_file(record.mask, self.config, self.mask_colours)

    def label_map(self, record: Record, raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """What ``raw_mask`` returned as labels 0, 1..K, 255.

        Raises:
            DataError: a value that no class has, or an object that several classes may be.
        """
        where = record.mask or record.id
        if self.config.masks != "binary":
            return map_mask_values(raw, self.mask_values, where)
        if len(self.classes) == 1:
            return raw
        if len(record.tags) != 1 and raw.any():
            raise DataError(
                f"mask {where} says where an object is and not of which class: its image has"
                f" {len(record.tags)} tags",
                "for data.masks=binary one class in all, or one tag an image",
            )
        return raw * np.uint8(record.tags[0] + 1 if record.tags else 0)

    def mask_size(self, record: Record) -> tuple[int, int] | None:
        """(height, width) of a mask as it is stated, without decoding it; None where it is not.

        Raises:
            DataError: the mask file is no image.
        """
        return image_size(record.mask) if record.mask else None

    def mask_source(self, record: Record) -> bytes:
        """What the mask of an image is made of: the bytes of its file; empty without one."""
        return record.mask.read_bytes() if record.mask and record.mask.is_file() else b""

    def mask_fingerprint(self, records: Iterable[Record]) -> str:
        """Hash of the true masks of ``records``, for what was trained or measured with them."""
        # Sizes and times would miss a mask that was mended, or tell copies of the data apart. Masks
        # are small: 10,000 of PASCAL VOC take a second.
        digest = hashlib.sha256(repr(sorted(self.mask_colours.items())).encode())
        for record in records:
            digest.update(repr((record.id, self.mask_source(record))).encode())
        return digest.hexdigest()[:16]

    def places(self) -> list[Path]:
        """The folders of its files: its root, and folders of images and masks elsewhere."""
        files = (file for r in self.records.values() for file in (r.image, r.mask) if file)
        folders = {folder.resolve() for folder in {file.parent for file in files}}
        root = self.root.resolve()
        return [self.root, *sorted(f for f in folders if not f.is_relative_to(root))]

    def fingerprint(self) -> str:
        """Hash of classes, ids, tags, lists, file sizes and knobs: what a run depends on, without
        reading pixels. See ``mask_fingerprint`` for the true masks.
        """
        digest = hashlib.sha256(
            repr((self.classes, self.mask_values, sorted(self.lists.items()))).encode()
        )
        for record in self.records.values():
            size = record.image.stat().st_size if record.image.exists() else -1
            digest.update(repr((record.id, record.tags, size, record.mask is not None)).encode())
            # Only where there are any, so that the runs of other data keep their hash.
            if record.unknown or record.group:
                digest.update(repr((record.unknown, record.group)).encode())
        # The other knobs of reading change records or lists, which are in the hash already.
        config = self.config
        unseen = (config.masks, config.crowd, config.labels_from)
        if unseen != (DataConfig.masks, DataConfig.crowd, DataConfig.labels_from):
            digest.update(repr(unseen).encode())
        return digest.hexdigest()[:16]

    def reported_lists(self, train_list: str, val_list: str | None) -> list[str]:
        """Lists that figures are for: ``train`` (or the training list) and the validation list."""
        names = ["train" if "train" in self.lists else train_list]
        if val_list and val_list not in names:
            names.append(val_list)
        return names

    def measured_lists(self, train_list: str, val_list: str | None) -> list[str]:
        """The reported lists whose masks are measured: those with the true mask of some image.
        Images without one are not measured.
        """
        return [name for name in self.reported_lists(train_list, val_list) if self.masked(name)]

    def tag_matrix(self, records: Sequence[Record]) -> npt.NDArray[np.float32]:
        """``float32 [N,K]``: 1 present, 0 absent, NaN unknown."""
        matrix = np.zeros((len(records), len(self.classes)), np.float32)
        for row, record in enumerate(records):
            matrix[row, list(record.tags)] = 1
            matrix[row, list(record.unknown)] = np.nan
        return matrix


def group_count(records: Iterable[Record]) -> int:
    """How many groups ``records`` belong to, where an image without a group is one by itself; 0
    where no image has a group.
    """
    units = {record.unit for record in records}
    return len(units) if any(group for group, _ in units) else 0


def read_index_png(path: Path) -> npt.NDArray[np.uint8]:
    """``uint8 [H,W]`` indices of a mask: see ``plain_indices``.

    Raises:
        DataError: unreadable, or a picture of a mask in colours rather than indices.
    """
    with open_header(path) as header:
        indices = plain_indices(header, path)
        if indices is None:
            raise DataError(
                f"mask {path} is a {header.image.mode} picture",
                INDEX_PNG,
                "for colours of the VOC palette, --set data.masks=colours; to make indices of"
                f" them, wsss-trainer convert {path.parent} NEW --to masks --set"
                " data.masks=colours; for black and white, --set data.masks=binary",
            )
        return as_shown(indices, header)


def read_mask_file(
    path: Path, config: DataConfig, colours: Mapping[Colour, int] | None = None
) -> npt.NDArray[np.uint8]:
    """``uint8 [H,W]`` values of a mask file, which holds indices, colours, or one object as
    ``config.masks`` says: 0 and 1 for ``binary``.

    Args:
        path: the file.
        config: how to read it.
        colours: the data set's own colours; None or empty for those of the VOC palette.

    Raises:
        DataError: unreadable, or something else.
    """
    if config.masks == "index" and not colours:
        return read_index_png(path)
    with open_header(path) as header:
        if config.masks == "binary":
            return as_shown(object_pixels(header.image, path), header)
        return as_shown(indices_of(header.image, path, colours or VOC_COLOURS), header)


def map_mask_values(
    raw: npt.NDArray[np.uint8], values: Sequence[int], where: Path | str
) -> npt.NDArray[np.uint8]:
    """Labels 0, 1..K and 255 of the values in a mask file.

    Raises:
        DataError: a value that is neither background, ignore, nor one of ``values``.
    """
    table = np.full(256, 254, np.uint8)
    table[0], table[IGNORE] = 0, IGNORE
    for k, value in enumerate(values):
        table[value] = k + 1
    valid, present = {0, IGNORE, *values}, set(np.unique(raw).tolist())
    unknown = sorted(present - valid)
    if unknown and present <= grey_levels(valid):
        raise DataError(
            f"mask {where} holds {unknown}: grey levels of the VOC colours instead of class"
            " indices",
            f"0, {IGNORE} and the classes {sorted(values)}",
            GREY_HINT,
        )
    if unknown:
        raise DataError(
            f"mask {where} holds the values {unknown}",
            f"0, {IGNORE} and the classes {sorted(values)}",
        )
    return table[raw]


def check_images(records: Sequence[Record]) -> None:
    """Check that every image file is there and is an image, before a run starts.

    Raises:
        DataError: some are not; it lists them.
    """
    problems = []
    for record in records:
        try:
            image_size(record.image)
        except DataError as error:
            problems.append(error)
    raise_together(problems, len(records), "images cannot be used")
