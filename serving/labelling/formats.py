"""Formats of a labelled folder: a file per image, and what joins them at the end.

All formats but VOC record only classes: background and undecided pixels are outside every region.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO
from xml.sax.saxutils import escape, quoteattr

from serving.card import Card
from serving.errors import LabelError, nearest
from serving.files import replacing
from serving.images import encodings, masks, polygons
from serving.images.pipeline import Segmented
from serving.labelling.ledger import Entry

# Characters that XML 1.0 cannot hold, not even escaped.
NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Format(Protocol):
    """One format."""

    def part(self, image: Path) -> Path:
        """The file of one image; both paths are relative to their folders."""
        ...

    def encode(self, image: Path, result: Segmented, card: Card) -> bytes:
        """Contents of that file."""
        ...

    def is_whole(self, data: bytes, entry: Entry) -> bool:
        """Whether a file of an earlier run is undamaged."""
        ...

    def finish(self, target: Path, card: Card, entries: Sequence[Entry]) -> list[Path]:
        """Write the files that cover all images, atomically and with one part in memory at a time.

        Returns:
            The files.

        Raises:
            OSError: as reading and writing do.
        """
        ...


class Voc:
    """Palette PNGs at the paths of the images: a pixel's value is its label, 255 undecided."""

    def part(self, image: Path) -> Path:
        """See :class:`Format`."""
        return image.with_suffix(".png")

    def encode(self, image: Path, result: Segmented, card: Card) -> bytes:
        """See :class:`Format`."""
        return masks.encode_labels(result.labels, card.palette)

    def is_whole(self, data: bytes, entry: Entry) -> bool:
        """See :class:`Format`."""
        return _holds(
            lambda: masks.read_png(data).shape == (entry.get("height"), entry.get("width"))
        )

    def finish(self, target: Path, card: Card, entries: Sequence[Entry]) -> list[Path]:
        """Nothing: the masks are complete by themselves."""
        return []


@dataclass(frozen=True)
class Coco:
    """``annotations.json`` of COCO instances: one annotation per class in an image.

    Attributes:
        outlines: polygons, which every tool reads, instead of run lengths, which are smaller.
    """

    outlines: bool = False

    def part(self, image: Path) -> Path:
        """See :class:`Format`."""
        return Path("parts", f"{image}.json")

    def encode(self, image: Path, result: Segmented, card: Card) -> bytes:
        """The annotations of an image, without ids."""
        height, width = result.labels.shape
        shapes: dict[int, Any]
        if self.outlines:
            shapes = {
                label: [_flat(line) for line in lines]
                for label, lines in polygons.outlines(result.labels).items()
            }
        else:
            counts = encodings.coco_counts(result.labels)
            shapes = {
                label: {"size": [height, width], "counts": text.decode()}
                for label, text in counts.items()
            }
        boxes = encodings.boxes(result.runs, width)
        annotations = [
            {
                "category_id": label,
                "segmentation": shape,
                "area": int(result.areas[label]),
                "bbox": boxes[label],
                "iscrowd": 0,
                "score": round(float(result.scores[label - 1]), 6),
            }
            for label, shape in shapes.items()
            if label != masks.UNDECIDED
        ]
        return json.dumps(annotations).encode()

    def is_whole(self, data: bytes, entry: Entry) -> bool:
        """See :class:`Format`."""
        return _holds(lambda: isinstance(json.loads(data), list))

    def finish(self, target: Path, card: Card, entries: Sequence[Entry]) -> list[Path]:
        """See :class:`Format`."""
        path = target / "annotations.json"
        images = (
            {
                "id": number,
                "file_name": entry["image"],
                "height": entry["height"],
                "width": entry["width"],
            }
            for number, entry in enumerate(entries, 1)
        )
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            about = f"masks by {card.name} version {card.version}, SHA-256 {card.graph_sha256}"
            categories = [
                {"id": label, "name": name} for label, name in enumerate(card.labels) if label
            ]
            file.write(f'{{"info": {json.dumps({"description": about})},\n"licenses": [],\n')
            file.write(f'"categories": {json.dumps(categories)},\n"images": [\n')
            _join(file, images)
            file.write('],\n"annotations": [\n')
            _join(file, _numbered(target, entries))
            file.write("]}\n")
        return [path]


class Yolo:
    """``labels/*.txt`` of YOLO segmentation: per region a line with class and relative outline.

    Outlines run through pixel centres, because readers of this format draw the line itself and
    truncate coordinates.
    """

    def part(self, image: Path) -> Path:
        """See :class:`Format`."""
        return Path("labels", image.with_suffix(".txt"))

    def encode(self, image: Path, result: Segmented, card: Card) -> bytes:
        """See :class:`Format`."""
        height, width = result.labels.shape
        lines = [
            f"{label - 1} {_shares(line, height, width)}\n"
            for label, outlines in polygons.outlines_through_centres(result.labels).items()
            if label != masks.UNDECIDED
            for line in outlines
        ]
        return "".join(lines).encode()

    def is_whole(self, data: bytes, entry: Entry) -> bool:
        """See :class:`Format`."""
        return _holds(
            lambda: all(
                len([float(word) for word in line.split()]) >= 7 for line in data.splitlines()
            )
        )

    def finish(self, target: Path, card: Card, entries: Sequence[Entry]) -> list[Path]:
        """``data.yaml`` with the class names. It names no path, so that ``images`` beside it is
        found from any working directory.
        """
        path = target / "data.yaml"
        names = "".join(
            f"  {index}: {json.dumps(name)}\n" for index, name in enumerate(card.classes)
        )
        with replacing(path) as temporary:
            temporary.write_text(f"train: images\nval: images\nnames:\n{names}", encoding="utf-8")
        return [path]


class Cvat:
    """``annotations.xml`` of CVAT for images 1.1, with ``mask`` elements: exact run lengths in a
    box.
    """

    def part(self, image: Path) -> Path:
        """See :class:`Format`."""
        return Path("parts", f"{image}.xml")

    def encode(self, image: Path, result: Segmented, card: Card) -> bytes:
        """The masks of an image."""
        if match := NOT_XML.search(str(image)):
            raise LabelError(
                f"XML cannot hold {match[0]!r} in the name {str(image)!r}", hint="rename the file"
            )
        elements = []
        for label, (left, top, width, height) in encodings.boxes(
            result.runs, result.labels.shape[1]
        ).items():
            if label in (0, masks.UNDECIDED):
                continue
            box = result.labels[top : top + height, left : left + width]
            counts = ", ".join(map(str, encodings.uncompressed_counts((box == label).reshape(-1))))
            elements.append(
                f'    <mask label={quoteattr(card.labels[label])} source="auto" occluded="0"'
                f' rle="{counts}" left="{left}" top="{top}" width="{width}" height="{height}"'
                ' z_order="0">\n    </mask>\n'
            )
        return "".join(elements).encode()

    def is_whole(self, data: bytes, entry: Entry) -> bool:
        """See :class:`Format`."""
        return not data or data.endswith(b"</mask>\n")

    def finish(self, target: Path, card: Card, entries: Sequence[Entry]) -> list[Path]:
        """See :class:`Format`."""
        path = target / "annotations.xml"
        labels = "".join(
            f"<label><name>{escape(name)}</name><color>#{red:02x}{green:02x}{blue:02x}</color><type>mask</type>"
            "<attributes></attributes></label>\n"
            for name, (red, green, blue) in list(zip(card.labels, card.palette))[1:]
        )
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write(
                '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n '
                " <meta><task>\n"
            )
            file.write(
                f"<name>{escape(card.name)}</name><size>{len(entries)}</size><mode>annotation</mode>\n"
            )
            file.write(f"<labels>\n{labels}</labels></task></meta>\n")
            for number, entry in enumerate(entries):
                size = f'width="{entry["width"]}" height="{entry["height"]}"'
                file.write(f'  <image id="{number}" name={quoteattr(entry["image"])} {size}>\n')
                file.write((target / entry["mask"]).read_text(encoding="utf-8"))
                file.write("  </image>\n")
            file.write("</annotations>\n")
        return [path]


FORMATS: dict[str, Callable[[], Format]] = {"voc": Voc, "coco": Coco, "yolo": Yolo, "cvat": Cvat}


def find_format(name: str, outlines: bool = False) -> Format:
    """The format of this name; only COCO has ``outlines``.

    Raises:
        LabelError: an unknown format, or outlines for another one.
    """
    if name not in FORMATS:
        raise LabelError(f"no format {name!r}", nearest(name, FORMATS), "--format voc")
    if outlines and name != "coco":
        raise LabelError(f"format {name} has no choice of polygons", "--format coco --polygons")
    return Coco(outlines) if outlines else FORMATS[name]()


def _numbered(target: Path, entries: Sequence[Entry]) -> Iterable[Entry]:
    number = 0
    for image, entry in enumerate(entries, 1):
        for annotation in json.loads((target / entry["mask"]).read_bytes()):
            number += 1
            yield {"id": number, "image_id": image, **annotation}


def _join(file: TextIO, entries: Iterable[Entry]) -> None:
    """JSON objects, one per line, separated by commas."""
    separator = ""
    for entry in entries:
        file.write(separator + json.dumps(entry, ensure_ascii=False))
        separator = ",\n"
    file.write("\n")


def _shares(line: polygons.Points, height: int, width: int) -> str:
    """Relative centres of a line's pixels, at least three, as readers require."""
    line = line + line[-1:] * (3 - len(line))
    return " ".join(f"{(x + 0.5) / width:.6f} {(y + 0.5) / height:.6f}" for x, y in line)


def _flat(line: polygons.Points) -> list[int]:
    return [value for point in line for value in point]


def _holds(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except ValueError:
        return False
