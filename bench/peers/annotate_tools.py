"""What ``annotate.py`` runs in the environments of the tools: decode strokes, annotate a task."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np


def strokes(place: Path) -> None:
    """Predictions as Label Studio stores them to masks, by its own converter."""
    from label_studio_sdk.converter.brush import decode_rle

    labels = json.loads((place / "labels.json").read_text())
    masks = {}
    for name, regions in json.loads((place / "rows.json").read_text()).items():
        if not regions:
            continue
        size = regions[0]["original_height"], regions[0]["original_width"]
        mask = masks[name] = np.zeros(size, np.uint8)
        for region in regions:
            opacity = decode_rle(region["value"]["rle"]).reshape(*size, 4)[..., 3]
            mask[opacity > 0] = labels[region["value"]["brushlabels"][0]]
    np.savez(place / "masks.npz", allow_pickle=False, **masks)


def cvat(place: Path) -> None:
    """Annotate a task of images that lie here, by the code of ``cvat-cli`` and of CVAT's driver."""
    import cvat_sdk.auto_annotation.driver as driver
    from cvat_cli._internal.common import FunctionLoader
    from cvat_sdk import models
    from PIL import Image

    job = json.loads((place / "job.json").read_text())
    parameters = {"address": job["address"], "model": job["model"]}
    function = FunctionLoader("serving.annotation.cvat", None, parameters).load()
    # The ids of a project are others than those of the function.
    labels = [
        models.Label(name=label.name, id=100 + label.id, type="any", attributes=[], sublabels=[])
        for label in function.spec.labels
    ]
    samples = [
        SimpleNamespace(
            frame_index=number,
            frame_name=file,
            media=SimpleNamespace(load_image=lambda file=file: Image.open(file)),
        )
        for number, file in enumerate(job["files"])
    ]
    driver.TaskDataset = lambda *_, **__: SimpleNamespace(labels=labels, samples=samples)
    with np.load(place / "masks.npz") as archive:
        masks = dict(archive)
    for polygons in (False, True):
        uploads: list[Any] = []
        driver.annotate_task(client_of(uploads), 1, function, conv_mask_to_poly=polygons)
        check(uploads, masks, job["files"], polygons)


def client_of(uploads: list[Any]) -> Any:
    """A client that keeps what it should upload."""

    def upload(action: str, task: int, patched_labeled_data_request: Any) -> None:
        uploads.extend(patched_labeled_data_request.shapes)

    api = SimpleNamespace(partial_update_annotations=upload)
    logger = SimpleNamespace(info=lambda *_: None)
    return SimpleNamespace(logger=logger, tasks=SimpleNamespace(api=api))


def check(uploads: list[Any], masks: dict[str, Any], files: list[str], polygons: bool) -> None:
    from cvat_sdk.masks import decode_mask

    names = [Path(file).stem for file in files]
    result = {name: np.zeros_like(masks[name]) for name in names}
    for shape in uploads:
        assert shape.type.value == ("polygon" if polygons else "mask")
        mask = result[names[shape.frame]]
        if not polygons:
            height, width = mask.shape
            region = decode_mask(shape.points, image_width=width, image_height=height)
            mask[region] = shape.label_id - 100
    if polygons:
        corners = sum(len(shape.points) // 2 for shape in uploads)
        print(json.dumps({"what": "CVAT's driver takes our polygons", "corners": corners}))
        return
    equal = sum(np.array_equal(masks[name], result[name]) for name in names)
    what = "CVAT's driver takes our masks"
    print(json.dumps({"what": what, "masks": len(names), "equal": equal}), flush=True)


if __name__ == "__main__":
    {"strokes": strokes, "cvat": cvat}[sys.argv[1]](Path(sys.argv[2]))
