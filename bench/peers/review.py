"""Let the annotation tools' own code read the reviews of ``wsss-trainer ask``, and read what it
writes.

Label Studio's SDK converts the tasks with its own converter and encodes the same masks with its own
encoder. Datumaro, which CVAT reads and writes its "Segmentation mask 1.1" with, imports the zip and
exports it again. The masks have holes, several parts, single pixels, pixels at every border,
ignored pixels, and noise.

Prints for each way how many masks are equal in every pixel.

    bench/peers/setup.sh /somewhere/peers
    python bench/peers/review.py /somewhere/peers
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.review.brush import decode
from trainer.review.files import Files
from trainer.review.form import Request, Task
from trainer.review.forms import FORMS
from trainer.review.labels import Labels

sys.path.append(str(Path(__file__).resolve().parents[1]))

import command_line

Pixels = npt.NDArray[np.uint8]
LABELS = Labels(("cat", "dog", "fine crack"))
TOOLS = Path(__file__).with_name("review_tools.py")


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("peers", type=Path, help="folder that setup.sh filled")
    python = parser.parse_args().peers / "review" / "bin" / "python"
    masks = hard_masks()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        request = write_request(place, masks)
        for name in ("labelstudio", "cvat"):
            FORMS[name].write(place, request)
        submit(place)
        np.savez(place / "masks.npz", allow_pickle=False, **masks)
        subprocess.run([python, TOOLS, place], check=True)
        report("Label Studio's converter reads our strokes", masks, converted(place, masks))
        report("we read the strokes of Label Studio's encoder", masks, encoded(place, masks))
        report("datumaro reads our zip", masks, imported(place))
        report("we read the zip that datumaro exports", masks, exported(place))


def hard_masks() -> dict[str, Pixels]:
    """Masks by name."""
    rng = np.random.default_rng(0)
    rings = np.zeros((40, 56), np.uint8)
    rings[5:30, 5:30] = 1
    rings[10:25, 10:25] = 0
    rings[15:18, 15:18] = 2
    rings[[0, 0, -1, -1], [0, -1, 0, -1]] = 3
    rings[35, 20:50] = 255
    masks = {
        "rings": rings,
        "noise": rng.choice([0, 1, 2, 3, 255], (33, 17)).astype(np.uint8),
        "full": np.full((280, 290), 3, np.uint8),
        "column": np.eye(300, 1, dtype=np.uint8),
    }
    for number in range(8):
        # Blobs of the size of photographs.
        coarse = rng.choice([0, 0, 0, 1, 2, 3, 255], (12, 16)).astype(np.uint8)
        masks[f"blobs{number}"] = coarse.repeat(31, 0).repeat(33, 1)[:, :500]
    return masks


def write_request(place: Path, masks: Mapping[str, Pixels]) -> Request:
    tasks = []
    (place / "images").mkdir()
    for name, mask in masks.items():
        image = f"images/{name}.png"
        Image.new("RGB", mask.shape[::-1]).save(place / image)
        tasks.append(Task(name, image, mask.shape, (), "", 0.5, partial(np.copy, mask)))
    return Request("key", LABELS, tasks, "model")


def submit(place: Path) -> None:
    """The tasks as Label Studio exports them after somebody has submitted each as it is."""
    tasks = json.loads((place / "tasks.json").read_text())
    for number, task in enumerate(tasks):
        result = task["predictions"][0]["result"]
        annotation = {"id": number, "completed_by": 1, "result": result, "was_cancelled": False}
        task |= {"id": number, "predictions": [], "annotations": [annotation]}
    (place / "export.json").write_text(json.dumps(tasks))


def converted(place: Path, masks: Mapping[str, Pixels]) -> dict[str, Pixels]:
    """The masks of the converter's files, one array a label and task."""
    result = {name: np.zeros_like(mask) for name, mask in masks.items()}
    names = list(masks)
    for path in (place / "converted").glob("task-*.npy"):
        number = int(path.name.split("-")[1])
        label = path.stem.split("-mask-")[1].rpartition("-")[0]
        result[names[number]][np.load(path) > 0] = LABELS.names[label]
    return result


def encoded(place: Path, masks: Mapping[str, Pixels]) -> dict[str, Pixels]:
    """The masks of the strokes that Label Studio's encoder made."""
    strokes: dict[str, dict[str, Any]] = json.loads((place / "encoded.json").read_text())
    result = {name: np.zeros_like(mask) for name, mask in masks.items()}
    for name, values in strokes.items():
        for value, rle in values.items():
            result[name][decode(rle, masks[name].shape, name)] = int(value)
    return result


def imported(place: Path) -> dict[str, Pixels]:
    with np.load(place / "imported.npz") as archive:
        return dict(archive)


def exported(place: Path) -> dict[str, Pixels]:
    path, folder = place / "datumaro.zip", place / "datumaro"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    answers = FORMS["cvat"].read(Files(path), LABELS)
    return {answer.name: answer.mask for answer in answers if answer.mask is not None}


def report(what: str, masks: Mapping[str, Pixels], result: Mapping[str, Pixels]) -> None:
    equal = count(np.array_equal(mask, result.get(name, [])) for name, mask in masks.items())
    print(json.dumps({"what": what, "masks": len(masks), "equal": equal}), flush=True)


def count(values: Iterable[bool]) -> int:
    return sum(map(bool, values))


if __name__ == "__main__":
    main()
