"""Feed damaged files to every reader: each must end with a result or an error of its own, in time.

A case is a valid file with bytes changed, dropped, doubled or cut. Anything but a result, a
``UserError`` (trainer) or a ``ServingError`` (serving) is a crash, and is printed with its seed.

Prints for each reader the cases, refusals and crashes, the slowest case, and the resident memory
after a tenth of the cases and after all of them, which should not grow.

    python bench/fuzz.py --cases 100000
"""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import command_line
import memory
import numpy as np
import torch
from PIL import Image

from serving.config import Limits
from serving.errors import ServingError
from serving.images.decoding import decode
from trainer.data.coco.table import read_table as read_coco
from trainer.data.pixels import read_image
from trainer.data.remarks import Remarks
from trainer.data.tables.reading import read_table
from trainer.data.voc.labelmap import read_labelmap
from trainer.data.voc.xml import object_names
from trainer.errors import UserError
from trainer.maps.camfile import read_cam, write_cam
from trainer.weights.checkpoints import read_checkpoint

Reader = Callable[[Path], object]


def picture(kind: str) -> bytes:
    """A small image file of a Pillow format."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def saved(folder: Path, write: Callable[[Path], object], name: str) -> bytes:
    """The bytes that ``write`` puts into a file."""
    write(folder / name)
    return (folder / name).read_bytes()


def readers(folder: Path) -> dict[str, tuple[str, list[bytes], Reader]]:
    """Reader -> file name, valid files, function."""
    pictures = [picture(kind) for kind in ("JPEG", "PNG", "TIFF", "WEBP", "BMP")]
    table = b'image,tag,split\na.jpg,cat,train\nb.jpg,"cat;dog",val\nc.jpg,,train\n'
    entry = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]}
    coco = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 31, "height": 24}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{**entry, "bbox": [1, 1, 8, 8], "area": 32, "iscrowd": 0}],
    }
    xml = (
        b"<annotation><size><width>31</width></size><object><name>cat</name></object></annotation>"
    )
    maps = np.linspace(0, 1, 48, dtype=np.float32).reshape(1, 6, 8)
    tensors = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.zeros(2)}
    return {
        "images, trainer": ("x.png", pictures, read_image),
        "images, serving": ("x.bin", pictures, lambda path: decode(path.read_bytes(), Limits())),
        "tables": ("labels.csv", [table, table.decode().encode("utf-16")], read_table),
        "COCO": (
            "coco.json",
            [json.dumps(coco).encode()],
            lambda p: read_coco(p, p.name, "", Remarks()),
        ),
        "VOC XML": ("a.xml", [xml], object_names),
        "labelmap.txt": ("labelmap.txt", [b"# l\ncat:128,0,0::\ndog:0,128,0::\n"], read_labelmap),
        "maps": (
            "a.npz",
            [saved(folder, lambda p: write_cam(p, [0], maps, (24, 31)), "m.npz")],
            read_cam,
        ),
        "weights": (
            "w.pth",
            [saved(folder, lambda p: torch.save(tensors, p), "v.pth")],
            read_checkpoint,
        ),
    }


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """The file with one to four damages."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if not changed:
            break
        place, kind = int(rng.integers(len(changed))), int(rng.integers(5))
        if kind == 0:
            changed[place] = int(rng.integers(256))
        elif kind == 1:
            changed[place] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            del changed[place : place + int(rng.integers(1, 9))]
        elif kind == 3:
            changed[place:place] = changed[place : place + int(rng.integers(1, 33))]
        elif rng.random() < 0.2:
            del changed[place:]
    return bytes(changed)


def run(name: str, file: str, valid: list[bytes], read: Reader, cases: int, folder: Path) -> str:
    """Feed ``cases`` damaged files to one reader; returns its line of figures."""
    path, refusals, crashes, slowest, early = folder / file, 0, 0, 0.0, 0.0
    for case in range(cases):
        rng = np.random.default_rng((case, len(name)))
        path.write_bytes(damaged(valid[case % len(valid)], rng))
        start = time.monotonic()
        try:
            read(path)
        except (UserError, ServingError):
            refusals += 1
        except Exception as error:
            crashes += 1
            print(f"{name}: case {case}: {type(error).__name__}: {error}")
        slowest = max(slowest, time.monotonic() - start)
        early = memory.resident() / 2**20 if case == cases // 10 else early
    growth = f"{early:.0f} -> {memory.resident() / 2**20:.0f} MB"
    return f"{name:16s} {cases:7,d} {refusals:8,d} {crashes:8d} {slowest:9.2f} s   {growth}"


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("--cases", type=int, default=100_000, help="cases of all readers together")
    cases = parser.parse_args().cases
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        table = readers(folder)
        print("reader             cases refusals  crashes    slowest   memory")
        for name, (file, valid, read) in table.items():
            print(run(name, file, valid, read, cases // len(table), folder), flush=True)


if __name__ == "__main__":
    main()
