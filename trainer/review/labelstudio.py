"""The form of Label Studio: tasks with brush strokes, and its exports JSON and JSON-MIN."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote
from xml.sax.saxutils import quoteattr

import numpy as np

from trainer.data.pixels import IMAGE_SUFFIXES, MAX_PIXELS
from trainer.errors import DataError
from trainer.files import write_atomic
from trainer.review.brush import decode, encode
from trainer.review.files import Files
from trainer.review.form import Answer, Form, Pixels, Request, Task
from trainer.review.labels import Labels

TASKS, CONFIG = "tasks.json", "label-config.xml"
MASK, IMAGE = "mask", "image"
"""Names of the tags of the label configuration."""
ID, REVIEW = "wsss_id", "wsss_review"
TYPES = {".jpg": "jpeg", ".png": "png", ".webp": "webp"}
UPLOADED = re.compile(r"[0-9a-f]{8}-")
"""What Label Studio puts before the name of an uploaded file."""


def _write(folder: Path, request: Request) -> None:
    write_atomic(folder / CONFIG, _config(request.labels).encode())
    tasks = [_task(folder, task, request) for task in request.tasks]
    write_atomic(folder / TASKS, (json.dumps(tasks, ensure_ascii=False) + "\n").encode())


def _config(labels: Labels) -> str:
    lines = [
        f"    <Label value={quoteattr(name)} background={quoteattr(_hex(labels.colour(value)))}/>"
        for name, value in labels.names.items()
    ]
    return "\n".join(
        (
            "<View>",
            '  <Header value="$tags" size="5"/>',
            f'  <Image name="{IMAGE}" value="${IMAGE}" zoom="true" zoomControl="true"/>',
            f'  <BrushLabels name="{MASK}" toName="{IMAGE}">',
            *lines,
            "  </BrushLabels>",
            "</View>\n",
        )
    )


def _task(folder: Path, task: Task, request: Request) -> dict[str, Any]:
    mask = task.mask()
    regions = [
        _region(mask == value, name)
        for name, value in request.labels.names.items()
        if (mask == value).any()
    ]
    data = {
        IMAGE: _address(folder / task.image, task.image, request.image_url),
        ID: task.id,
        REVIEW: request.key,
        "tags": ", ".join(task.tags),
        "reason": task.reason,
    }
    score = round(1 - task.doubt, 4)
    guess = {"model_version": request.model, "score": score, "result": regions}
    return {"data": data, "predictions": [guess]}


def _region(mask_HW: Any, name: str) -> dict[str, Any]:
    height, width = mask_HW.shape
    return {
        "id": name,
        "type": "brushlabels",
        "from_name": MASK,
        "to_name": IMAGE,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": encode(mask_HW), "brushlabels": [name]},
    }


def _address(file: Path, name: str, url: str) -> str:
    """Where Label Studio finds an image: at a server, or in the task itself."""
    if url:
        return url + quote(name.partition("/")[2])
    kind = TYPES[file.suffix.lower()]
    return f"data:image/{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _fits(files: Files) -> bool:
    return any(name.lower().endswith(".json") for name in files.names)


def _read(files: Files, labels: Labels) -> Iterator[Answer]:
    for name in files.names:
        if not name.lower().endswith(".json"):
            continue
        for number, entry in enumerate(_tasks(files, name), 1):
            where = f"{files.where(name)}, task {number}"
            try:
                yield from _answers(entry, labels, where)
            # A file that somebody has edited fails in its own way, and each means the same.
            except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
                raise DataError(
                    f"{where} is not as Label Studio writes it: {type(error).__name__} {error}",
                    "tasks of Label Studio",
                    "export again as JSON",
                ) from error


def _tasks(files: Files, name: str) -> list[Mapping[str, Any]]:
    try:
        content = json.loads(files.read(name))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{files.where(name)} is no JSON: {error}", "Label Studio's export", "export as JSON"
        ) from error
    entries = content if isinstance(content, list) else [content]
    for entry in entries:
        if not isinstance(entry, dict) or not {"data", IMAGE, "annotation_id"} & entry.keys():
            raise DataError(
                f"{files.where(name)} holds something else than tasks of Label Studio",
                "a list of tasks",
                "export as JSON or JSON-MIN, not as COCO",
            )
    return entries


def _answers(entry: Mapping[str, Any], labels: Labels, where: str) -> Iterator[Answer]:
    # JSON-MIN has the fields of "data" beside the results; its tasks are all annotated.
    is_short = "data" not in entry
    data = entry if is_short else entry["data"]
    name = str(data.get(ID) or _file_name(_image(data)))
    where, review = f"{where} (image {name!r})", str(data.get(REVIEW, ""))
    if is_short:
        results = [
            _long(result) for name, value in entry.items() for result in _regions(name, value)
        ]
        yield Answer(name, _mask(results, labels, where), where, review, True)
        return
    # Before version 1.0, annotations were called completions.
    entries = entry.get("annotations") or entry.get("completions") or ()
    annotations = [a for a in entries if not a.get("was_cancelled")]
    # Of several people's answers, the one that somebody declared to be right counts.
    for annotation in [a for a in annotations if a.get("ground_truth")] or annotations:
        mask = _mask(annotation.get("result") or [], labels, where)
        yield Answer(name, mask, where, review, True)


def _image(data: Mapping[str, Any]) -> str:
    """The address of the image: projects that were not made by us may call it otherwise."""
    addresses = [data.get(IMAGE), *data.values()]
    texts = (str(address) for address in addresses if isinstance(address, str))
    named = (text for text in texts if _path(text).suffix.lower() in IMAGE_SUFFIXES)
    return next(named, str(data.get(IMAGE, "")))


def _regions(name: str, value: Any) -> list[Any]:
    """The results of JSON-MIN in a field, which has the name of the tag that made them."""
    is_region = isinstance(value, list) and all(
        isinstance(entry, dict) and "original_width" in entry for entry in value
    )
    return list(value or ()) if is_region or name == MASK else []


def _long(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result of JSON-MIN in the form of JSON's."""
    kind = next((key for key in result if key.endswith("labels")), "")
    return {**result, "type": kind, "value": result}


def _size(regions: list[Mapping[str, Any]], where: str) -> tuple[int, int]:
    sizes = {(region["original_height"], region["original_width"]) for region in regions}
    height, width = next(iter(sizes))
    is_size = all(isinstance(side, int) and side > 0 for side in (height, width))
    if len(sizes) > 1 or not is_size or height * width > MAX_PIXELS:
        raise DataError(f"{where} has results of several or impossible sizes", "one size an image")
    return height, width


def _mask(results: list[Any], labels: Labels, where: str) -> Pixels | None:
    regions = [result for result in results if str(result.get("type", "")).endswith("labels")]
    if not regions:
        return None
    size = _size(regions, where)
    mask = np.zeros(size, np.uint8)
    for result in regions:
        kind = result["type"]
        value: Mapping[str, Any] = result["value"]
        names = list(value.get(kind) or [])
        if len(names) != 1 or result.get("image_rotation"):
            raise DataError(
                f"{where} has a region with {len(names)} labels, or a rotated image",
                "one label a region, and images as they are",
            )
        if kind not in ("brushlabels", "polygonlabels"):
            raise DataError(f"{where} has {kind}", "strokes of the brush, or polygons")
        label = labels.value(str(names[0]), where)
        if kind == "brushlabels":
            mask[decode(value.get("rle"), size, where)] = label
        else:
            mask[_polygon(value["points"], size)] = label
    return mask


def _polygon(points: list[list[float]], size: tuple[int, int]) -> Any:
    from skimage.draw import polygon2mask

    # Label Studio measures in percent of the image; skimage from the centre of the first pixel.
    corners = np.array(points, float)[:, ::-1] / 100 * size - 0.5
    return polygon2mask(size, corners)


def _file_name(address: str) -> str:
    """The name of an image, for tasks that were not made by us."""
    return UPLOADED.sub("", _path(address).stem, count=1)


def _path(address: str) -> PurePosixPath:
    # Local files have their path in the query; other queries are keys of access.
    place, _, local = address.partition("?d=")
    return PurePosixPath(unquote(local or place.partition("?")[0]))


FORM = Form(
    name="labelstudio",
    tool="Label Studio",
    write=_write,
    fits=_fits,
    read=_read,
    own=TASKS,
    steps=(
        f"make a project; in Labeling Setup, Custom template, paste {{review}}/{CONFIG}",
        f"import {{review}}/{TASKS}, and correct and submit each task",
        "export as JSON, and put the file into {review}",
    ),
)
