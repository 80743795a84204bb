"""A data set in VOC layout, written file by file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def make_image(path: Path, size: tuple[int, int] = (8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10, 200, 30)).save(path)


def make_mask(path: Path, rows: list[list[int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(rows, np.uint8)).save(path)


def make_xml(root: Path, name: str, objects: list[tuple[str, int]]) -> None:
    entries = "".join(
        f"<object><name>{c}</name><difficult>{d}</difficult><part><name>cat</name></part></object>"
        for c, d in objects
    )
    path = root / "Annotations" / f"{name}.xml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"<annotation><filename>{name}.jpg</filename>{entries}</annotation>")


def make_tree(
    root: Path,
    lists: dict[str, str],
    names: tuple[str, ...] = ("2007_000032", "2007_000033", "b 1"),
) -> Path:
    for name in names:
        make_image(root / "JPEGImages" / f"{name}.jpg")
    folder = root / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True)
    for name, text in lists.items():
        (folder / f"{name}.txt").write_text(text)
    return root
