"""Problems of a data set, and the traits of one image and its mask that lead to them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.checks.near_duplicates import perceptual_hash
from trainer.data.coco.dataset import SAME_SIZE
from trainer.data.colours import GREY_HINT, reindexed
from trainer.data.dataset import IGNORE, INDEX_PNG, Dataset, Record
from trainer.data.headers import Header
from trainer.data.pixels import MAX_PIXELS, SIZE_LIMIT, open_header, open_image
from trainer.data.rgb import to_rgb
from trainer.data.voc.classes import VOC_CLASSES
from trainer.errors import DataError, some

LARGE_PIXELS = 20_000_000
TINY_SIDE = 32
# An image of 16 bits stays below this level of 255 if it uses no more than 14 of them.
DARK = 64

KINDS: dict[str, dict[str, tuple[str, str]]] = {
    "error": {
        "unreadable": (
            "images that cannot be read",
            "replace them, or take them out of the lists",
        ),
        "truncated": ("images that are cut off (truncated)", "download or copy them again"),
        "huge": (f"images of more than {MAX_PIXELS:,} pixels", "scale them down"),
        "mask-unreadable": (
            "masks that cannot be read",
            "save masks as palette or grey PNG with class indices",
        ),
        "mask-colour": (
            "masks that are pictures in colours instead of class indices",
            "colours of the VOC palette are read with --set data.masks=colours, and turned into"
            " indices by wsss-trainer convert DATA NEW --to voc --set data.masks=colours",
        ),
        "mask-grey": (
            "masks that hold grey levels of the VOC colours instead of class indices",
            GREY_HINT,
        ),
        "mask-reindexed": (
            "palette masks whose colours are VOC's but whose indices a tool has renumbered",
            "--set data.masks=colours reads the colours; wsss-trainer convert DATA NEW --to voc"
            " --set data.masks=colours",
        ),
        "mask-size": (
            "masks of another size than their image",
            "EXIF-rotated images are compared after turning",
        ),
        "mask-value": (
            "masks with values that no class has",
            "0 is background, 255 is ignored, classes between",
        ),
    },
    "warning": {
        "mask-missing": (
            "images without a mask, while others have one",
            "these are not measured",
        ),
        "mask-untagged": ("masks that show a class which the tags lack", "correct the tags"),
        "cmyk": ("CMYK images, whose colours are converted roughly", "save them as RGB"),
        "16-bit": ("images of more than 8 bits a channel, scaled to 8", "save them with 8 bits"),
        "few-bits": (
            "images of 16 bits whose values use 14 or fewer of them, so that they are almost black",
            "depth is scaled by the type of the file, never by its values: multiply them, for 12"
            " bits as with magick IN.tif -evaluate multiply 16 OUT.png, or state the value of white"
            " in a TIFF's tag MaxSampleValue (4095)",
        ),
        "large": (
            f"images of more than {LARGE_PIXELS:,} pixels",
            "scale them down: each costs seconds and memory",
        ),
        "tiny": (f"images with a side under {TINY_SIDE} pixels", "leave them out"),
    },
    "info": {
        "rotated": ("images turned as their EXIF data say", "masks must fit the turned image"),
        "frames": ("images of several frames or pages, of which the first one counts", ""),
        "grey": ("grey images, turned into RGB", ""),
        "palette": ("images with palette or alpha, laid on white", ""),
        "tag-unmasked": ("images with a tag that their mask does not show", ""),
        "mask-ignored": (
            "masks that hold 255, which is 'ignore', and no class",
            "where 255 is the object: --set data.masks=binary",
        ),
    },
}
"""What an image or a mask may be: by severity and kind, in words, and what to do about it."""
BINARY_HINT = (
    "255 is 'ignore': where it is the object, --set data.masks=binary reads it so, for one class or"
    " images with one tag; else save masks with the values 1 to K"
)
SHOWS = "mask-shows"
"""Trait of a mask that shows some class. It is no problem."""
Traits = Mapping[str, Sequence[tuple[str, str]]]
"""By trait: names of images or masks, each with a detail in words or ""."""


@dataclass(frozen=True)
class Problem:
    """One kind of problem.

    Attributes:
        severity: ``error``, ``warning`` or ``info``.
        kind: a short name that stays the same, for scripts.
        message: what is wrong, with its count.
        names: of the files, classes or lists concerned.
        hint: what to do.
    """

    severity: str
    kind: str
    message: str
    names: tuple[str, ...] = ()
    hint: str = ""


@dataclass(frozen=True)
class Finding:
    """The result of looking at one image and its mask.

    Attributes:
        pixels: height times width of the image.
        cells: number of values in its future CAM file.
        digest: hash of the image file.
        likeness: hash of its looks, see ``perceptual_hash``; None without one.
        mask_bytes: size of the mask file, 0 without one.
        traits: kinds of ``KINDS``, or ``SHOWS``, each with a detail in words or "".
    """

    pixels: int = 0
    cells: int = 0
    digest: str = ""
    likeness: int | None = None
    mask_bytes: int = 0
    traits: tuple[tuple[str, str], ...] = ()


def inspect(dataset: Dataset, record: Record) -> Finding:
    """Decode one image and its mask in full and list their traits."""
    traits: list[tuple[str, str]] = []
    size, digest, likeness = (0, 0), "", None
    try:
        with open_header(record.image) as header:
            size = header.size
            traits += [(trait, "") for trait in _looks(header)]
            pixels = to_rgb(header)
            likeness = perceptual_hash(pixels)
            if header.bits > 8 and pixels.max() < DARK:
                traits.append(("few-bits", ""))
        digest = hashlib.sha256(record.image.read_bytes()).hexdigest()
    except DataError as error:
        traits.append((_damage(error), error.found))
    except OSError as error:
        traits.append(("unreadable", str(error)))
    mask_bytes = 0
    if dataset.has_mask(record):
        mask_bytes = record.mask.stat().st_size if record.mask else 0
        traits += inspect_mask(dataset, record, None if _broken(traits) else size)
    height, width = size
    cells = len(record.possible) * ((height - 1) // 4 + 1) * ((width - 1) // 4 + 1)
    return Finding(height * width, cells, digest, likeness, mask_bytes, tuple(traits))


def _looks(header: Header) -> Iterator[str]:
    """Traits by the header of an image."""
    image = header.image
    if header.bits > 8:
        yield "16-bit"
    if image.mode == "CMYK":
        yield "cmyk"
    if image.mode in ("L", "1"):
        yield "grey"
    if image.mode in ("P", "PA", "LA", "RGBA") or "transparency" in image.info:
        yield "palette"
    if header.several_frames:
        yield "frames"
    if header.orientation != 1:
        yield "rotated"
    if image.width * image.height > LARGE_PIXELS:
        yield "large"
    if min(image.size) < TINY_SIDE:
        yield "tiny"


def _damage(error: DataError) -> str:
    if error.expected == SIZE_LIMIT:
        return "huge"
    # Pillow has no class of its own for files that are cut off.
    text = str(error.__cause__).lower()
    is_cut = any(words in text for words in ("truncated", "unexpected end", "broken data"))
    return "truncated" if is_cut else "unreadable"


def _broken(traits: list[tuple[str, str]]) -> bool:
    return any(trait in ("unreadable", "truncated", "huge") for trait, _ in traits)


def _has_voc_values(dataset: Dataset) -> bool:
    """Whether every class has the index that VOC gives it."""
    return all(
        value <= len(VOC_CLASSES) and VOC_CLASSES[value - 1] == name
        for name, value in zip(dataset.classes, dataset.mask_values, strict=True)
    )


def _mask_damage(error: DataError) -> str:
    return {INDEX_PNG: "mask-colour", SAME_SIZE: "mask-size"}.get(error.expected, "mask-unreadable")


def inspect_mask(
    dataset: Dataset, record: Record, size: tuple[int, int] | None
) -> Iterator[tuple[str, str]]:
    """Traits of the mask of an image, as in ``Finding``.

    Args:
        dataset: the data set.
        record: the image.
        size: its (height, width); None where it is not known.
    """
    if size is None and record.mask is None:
        return  # Outlines cannot be drawn without the size of the image.
    try:
        raw = dataset.raw_mask(record) if record.mask else dataset.read_mask(record)
    except DataError as error:
        yield _mask_damage(error), error.found
        return
    plain = dataset.config.masks == "index" and not dataset.mask_colours
    if record.mask and plain and _has_voc_values(dataset):
        with open_image(record.mask) as image:
            if reindexed(image):
                yield "mask-reindexed", ""
                return
    if size is not None and raw.shape != size:
        yield "mask-size", f"{raw.shape[1]}x{raw.shape[0]} for an image of {size[1]}x{size[0]}"
    try:
        label = dataset.label_map(record, raw) if record.mask else raw
    except DataError as error:
        yield "mask-grey" if error.hint == GREY_HINT else "mask-value", error.found
        return
    labels = set(np.flatnonzero(np.bincount(label.ravel(), minlength=256)).tolist()) - {0, IGNORE}
    tags = {k + 1 for k in record.tags}
    if labels:
        yield SHOWS, ""
    elif (label == IGNORE).any():
        yield "mask-ignored", ""
    if strange := labels - {k + 1 for k in record.possible}:
        yield "mask-untagged", some(dataset.classes[v - 1] for v in sorted(strange))
    if tags - labels:
        yield "tag-unmasked", some(dataset.classes[v - 1] for v in sorted(tags - labels))


def problems_of(traits: Traits) -> Iterator[Problem]:
    """One problem for each kind of ``KINDS`` that occurs; and an error where some masks hold 255
    and none shows a class.
    """
    for severity, kinds in KINDS.items():
        for kind, (words, hint) in kinds.items():
            if traits.get(kind):
                names = tuple(name for name, _ in traits[kind])
                detail = traits[kind][0][1]
                message = f"{words}: {len(names)}" + (f" (first: {detail})" if detail else "")
                yield Problem(severity, kind, message, names, hint)
    empty = tuple(name for name, _ in traits.get("mask-ignored", ()))
    if empty and not traits.get(SHOWS):
        message = f"masks that hold 0 and 255 only, and no mask shows a class: {len(empty)}"
        yield Problem("error", "mask-binary", message, empty, BINARY_HINT)
