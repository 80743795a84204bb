"""What ``review.py`` runs in the environment of the tools: read a review, and write it again."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path

import datumaro as dm
import numpy as np
from label_studio_sdk.converter import Converter
from label_studio_sdk.converter.brush import mask2rle

IGNORE = 255


def main(place: Path) -> None:
    convert(place)
    encode(place)
    import_and_export(place)


def convert(place: Path) -> None:
    """Label Studio's own export to arrays."""
    config = (place / "label-config.xml").read_text()
    converter = Converter(config, str(place), download_resources=False)
    target = place / "converted"
    target.mkdir()
    converter.convert(str(place / "export.json"), str(target), "BRUSH_TO_NUMPY", is_dir=False)


def encode(place: Path) -> None:
    """Strokes of each value of each mask."""
    with np.load(place / "masks.npz") as masks:
        strokes = {
            name: {
                str(value): mask2rle(np.uint8(255) * (mask == value))
                for value in np.unique(mask[mask > 0]).tolist()
            }
            for name, mask in masks.items()
        }
    (place / "encoded.json").write_text(json.dumps(strokes))


def import_and_export(place: Path) -> None:
    with zipfile.ZipFile(place / "annotations.zip") as archive:
        archive.extractall(place / "cvat")
    # A task of CVAT has the images, whose sizes an export needs.
    shutil.copytree(place / "images", place / "cvat" / "JPEGImages")
    dataset = dm.Dataset.import_from(str(place / "cvat"), "voc_segmentation")
    labels = dataset.categories()[dm.AnnotationType.label]
    masks = {}
    with np.load(place / "masks.npz") as originals:
        for item in dataset:
            mask = np.zeros_like(originals[item.id])
            for annotation in item.annotations:
                name = labels[annotation.label].name
                mask[annotation.image > 0] = IGNORE if name == "ignore" else annotation.label
            masks[item.id] = mask
    np.savez(place / "imported.npz", **masks)
    dataset.transform("merge_instance_segments")
    dataset.export(str(place / "datumaro"), "voc_segmentation", label_map="source")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
