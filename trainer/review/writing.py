"""Write a review: images, the form of the tool, the contact sheet, and tags that look wrong."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trainer.data.dataset import Dataset, Record, read_index_png
from trainer.data.pixels import image_size
from trainer.evaluation.calibration import Calibration
from trainer.files import file_sha256
from trainer.review import images
from trainer.review.doubt import Doubt
from trainer.review.form import Form, Request, Task
from trainer.review.labels import Labels
from trainer.review.model import Model
from trainer.review.record import FOLDER, Question, Review, review_key
from trainer.review.sheet import Entry, write_sheet
from trainer.review.tag_table import TABLE, Suspicion, write_tag_table
from trainer.segmenters import prediction


@dataclass(frozen=True)
class Chosen:
    """An image of a review.

    Attributes:
        record: the image.
        doubt: its doubt.
        picture: of its doubt map.
        stands_for: how many images look most like it, itself included.
    """

    record: Record
    doubt: Doubt
    picture: str
    stands_for: int


@dataclass(frozen=True)
class Writer:
    """Writes reviews of one run into one folder.

    Attributes:
        out: the folder.
        form: of the tool.
        model: the run's segmenter.
        dataset: the data.
        calibration: of the doubts; None without one.
        image_url: see ``Request``.
    """

    out: Path
    form: Form
    model: Model
    dataset: Dataset
    calibration: Calibration | None = None
    image_url: str = ""

    def write(self, choice: Sequence[Chosen], suspicions: Sequence[Suspicion]) -> dict[str, Any]:
        """Write everything, and return what was asked.

        Raises:
            RunError: no space left, or the folder cannot be written.
        """
        records = [entry.record for entry in choice]
        ids = [record.id for record in records]
        key = review_key(file_sha256(self.model.weights), self.form.name, ids)
        home = self.model.run.path / FOLDER / key
        self._predict(records, home / "predicted")
        tasks = [self._task(entry, home / "predicted") for entry in choice]
        labels = Labels(self.dataset.classes)
        self.form.write(self.out, Request(key, labels, tasks, f"wsss {key}", self.image_url))
        write_tag_table(self.out / TABLE, suspicions, self.dataset)
        steps = self._steps()
        facts = {"run": self.model.run.path.name, "tool": self.form.tool, "steps": steps}
        entries = [
            Entry(task, entry.record, entry.picture, self.model.refined_mask(task.id))
            for task, entry in zip(tasks, choice, strict=True)
        ]
        sheet = write_sheet(self.out, entries, suspicions, self.dataset, facts)
        review = self._review(key, tasks, records)
        # Last, so that a review that was killed is none.
        for folder in (home, self.out):
            review.write(folder)
        questions = [
            {
                "id": task.id,
                "doubt": round(task.doubt, 4),
                "shortfall": round(entry.doubt.shortfall, 4),
                "reason": task.reason,
            }
            for task, entry in zip(tasks, choice, strict=True)
        ]
        return {
            "review": str(self.out),
            "key": key,
            "tool": self.form.name,
            "sheet": str(sheet),
            "images": questions,
            "calibration": self.calibration.card_entry() if self.calibration else None,
            "suspicious_tags": [self._tag(entry) for entry in suspicions],
            "steps": steps,
        }

    def _predict(self, records: Sequence[Record], folder: Path) -> None:
        model = self.model
        prediction.predict(model.segmenter, model.network, records, folder, "masks", model.device)

    def _task(self, entry: Chosen, masks: Path) -> Task:
        record = entry.record
        return Task(
            record.id,
            images.place(record, self.out / "images"),
            image_size(record.image),
            tuple(self.dataset.classes[k] for k in record.tags),
            reason(entry, self.dataset.classes),
            entry.doubt.value,
            partial(read_index_png, masks / f"{record.id}.png"),
        )

    def _steps(self) -> list[str]:
        steps = [step.format(review=self.out) for step in self.form.steps]
        words = ("wsss-trainer", "answer", str(self.model.run.path), str(self.out))
        return [*steps, shlex.join(words)]

    def _review(self, key: str, tasks: Sequence[Task], records: Sequence[Record]) -> Review:
        return Review(
            key,
            str(self.model.run.path.resolve()),
            self.form.name,
            datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            self.dataset.classes,
            {
                task.id: Question(
                    task.image,
                    task.size,
                    round(task.doubt, 4),
                    task.reason,
                    "" if record.id in self.dataset.records else str(record.image.resolve()),
                )
                for task, record in zip(tasks, records, strict=True)
            },
        )

    def _tag(self, entry: Suspicion) -> dict[str, Any]:
        return {
            "id": entry.id,
            "class": self.dataset.classes[entry.k],
            "tag": "present" if entry.is_present else "absent",
            "score": round(entry.score, 4),
        }


def reason(entry: Chosen, classes: Sequence[str]) -> str:
    """Why an image was chosen, in words."""
    doubt, parts = entry.doubt, []
    if doubt.missing:
        parts.append(f"tagged {', '.join(classes[k] for k in doubt.missing)}, which the mask lacks")
    if doubt.surplus:
        parts.append(f"shows {', '.join(classes[k] for k in doubt.surplus)}, which the tags deny")
    if doubt.views >= 0.01:
        parts.append(f"two views disagree on {100 * doubt.views:.0f} % of the pixels")
    if doubt.labels is not None and doubt.labels >= 0.01:
        parts.append(f"the refined mask says otherwise on {100 * doubt.labels:.0f} %")
    if entry.stands_for > 1:
        parts.append(f"looks like {entry.stands_for - 1} others")
    return "; ".join(parts) or "the most doubtful of its kind"
