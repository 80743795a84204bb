"""Reviews without a segmenter: how to make one, and what a person does to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.dataset import Dataset, read_index_png
from trainer.data.palette import write_index_png
from trainer.data.pixels import image_size
from trainer.review.form import Request, Task
from trainer.review.forms import FORMS
from trainer.review.labels import Labels
from trainer.review.record import Question, Review


def review(run: Path, dataset: Dataset, tool: str = "folder", count: int = 3) -> Path:
    """A review of the first images, whose predictions show the first class in one corner."""
    place = run.parent / f"review-{tool}"
    tasks, questions = [], {}
    for record in dataset.subset("train")[:count]:
        mask = np.zeros(image_size(record.image), np.uint8)
        mask[:5, :7] = 1
        mask[2, 2] = 0
        write_index_png(run / "reviews" / tool / "predicted" / f"{record.id}.png", mask)
        image = f"images/{record.id}{record.image.suffix}"
        (place / "images").mkdir(parents=True, exist_ok=True)
        shutil.copy(record.image, place / image)
        task = Task(record.id, image, mask.shape, (), "why", 0.5, lambda mask=mask: mask)
        tasks.append(task)
        questions[record.id] = Question(image, mask.shape, 0.5, "why")
    labels = Labels(dataset.classes)
    FORMS[tool].write(place, Request(tool, labels, tasks, "model"))
    record_of = Review(tool, str(run), tool, "2026", dataset.classes, questions)
    record_of.write(place)
    record_of.write(run / "reviews" / tool)
    return place


def paint(path: Path, value: int) -> np.ndarray[Any, Any]:
    mask = read_index_png(path).copy()
    mask[20:24, 20:30] = value
    write_index_png(path, mask)
    return mask


def submitted(place: Path, count: int) -> list[dict[str, Any]]:
    tasks: list[dict[str, Any]] = json.loads((place / "tasks.json").read_text())
    for task in tasks[:count]:
        (guess,) = task["predictions"]
        task["annotations"] = [{"result": guess["result"]}]
    return tasks
