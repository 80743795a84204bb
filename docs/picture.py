"""Draw README's picture from the demo: scene, class activation map, refined mask, served mask.

    make demo
    .venv/bin/python docs/picture.py demo docs/picture.jpg

The images are the first of the validation list that are wider than high and have two tags or
more: no one picked them by their result.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from trainer.data.dataset import Record
from trainer.data.formats.opening import open_dataset
from trainer.data.pixels import image_size, read_image
from trainer.maps.camfile import cam_path, read_cam
from trainer.report.overlays import Pixels, contact_sheet, overlay_cam, overlay_mask

ROWS = 2
HEIGHT = 224
LARGEST_FILE = 300_000
CAPTIONS = ("image", "class activation map", "refined mask", "served mask")


def is_wide(record: Record) -> bool:
    """Whether the image is wider than high."""
    height, width = image_size(record.image)
    return width > height


def strongest(maps_khw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The highest map of each pixel, at the image's size."""
    height, width = size
    map_hw = Image.fromarray(maps_khw.max(0))
    return np.asarray(map_hw.resize((width, height), Image.Resampling.BICUBIC))


def row(record: Record, demo: Path) -> list[Pixels]:
    """The four pictures of one image."""
    image, cam = read_image(record.image), read_cam(cam_path(demo / "run" / "cams", record.id))
    refined, served = (
        np.asarray(Image.open(folder / f"{record.id}.png"))
        for folder in (demo / "run" / "masks", demo / "masks")
    )
    return [
        image,
        overlay_cam(image, strongest(cam.maps, cam.size)),
        overlay_mask(image, refined),
        overlay_mask(image, served),
    ]


def main() -> None:
    """Write the picture and check its size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demo", type=Path, help="folder that `make demo` filled")
    parser.add_argument("out", type=Path, help="JPEG to write")
    arguments = parser.parse_args()
    dataset = open_dataset(arguments.demo / "data")
    pairs = [record for record in dataset.subset("val") if len(record.tags) > 1]
    records = [record for record in pairs if is_wide(record)][:ROWS]
    rows = [list(zip(row(record, arguments.demo), CAPTIONS)) for record in records]
    sheet = contact_sheet(rows, HEIGHT, dataset.classes)
    sheet.save(arguments.out, quality=88, subsampling=0, optimize=True)
    size = arguments.out.stat().st_size
    print(f"{arguments.out}: {size:,} bytes")
    if size > LARGEST_FILE:
        raise SystemExit(f"README's picture is to stay below {LARGEST_FILE:,} bytes")


if __name__ == "__main__":
    main()
