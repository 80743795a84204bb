"""Choose the images whose correction helps most, and write a review of them."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor, nn

from trainer.data.dataset import Dataset, Record, check_images, read_index_png
from trainer.data.formats.opening import reopen_data
from trainer.data.image_files import image_id, list_images
from trainer.data.pixels import image_size, open_header, read_image
from trainer.errors import DataError, some
from trainer.evaluation.image_counts import group_numbers
from trainer.files import file_sha256, place_image, write_atomic
from trainer.methods.registry import load_method
from trainer.nets.backbone import Backbone
from trainer.outputs import check_folder
from trainer.predict import segmenter_config, segmenter_weights
from trainer.review.choice import Choice, choose
from trainer.review.doubt import Doubt, Float, doubts
from trainer.review.form import Form, Request, Task
from trainer.review.forms import form_of
from trainer.review.labels import Labels
from trainer.review.ledger import read_ledger
from trainer.review.record import FOLDER, Question, Review, review_key
from trainer.review.sheet import FILE as SHEET
from trainer.review.sheet import Entry, write_sheet
from trainer.review.tag_table import TABLE, Suspicion, write_tag_table
from trainer.review.wrong_tags import wrong_tags
from trainer.run import Run
from trainer.segmenters import prediction
from trainer.segmenters.base import Segmenter
from trainer.training.inference import image_logits

COPIED = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
"""Kinds of images that a browser shows as they are."""


@dataclass(frozen=True)
class Wish:
    """What ``ask`` was given besides the run.

    Attributes:
        count: images to choose.
        tool: name of the form.
        list: the list to choose from; None for the run's training list.
        also: a folder of further images without tags; None for none.
        corrections: folder of earlier corrections, whose images are not asked for again.
        tags: at most so many tags that look wrong.
        image_url: see ``Request``.
        device: ``auto`` or ``cpu``.
    """

    count: int = 30
    tool: str = "labelstudio"
    list: str | None = None
    also: Path | None = None
    corrections: Path | None = None
    tags: int = 50
    image_url: str = ""
    device: str = "auto"


@dataclass(frozen=True)
class _Model:
    """A run's trained segmenter."""

    run: Run
    weights: Path
    segmenter: Segmenter
    network: nn.Module
    device: str

    @property
    def masks(self) -> Path:
        """The refined masks that it learnt from."""
        return self.run.path / "masks"


class _Looks(nn.Module):
    """What images look like to a backbone: the mean of its deepest features."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images_B3HW: Tensor) -> Tensor:
        features: Tensor = self.backbone(images_B3HW)[self.backbone.top]
        return features.mean((2, 3))


def ask(run_dir: Path, out: Path, wish: Wish) -> dict[str, Any]:
    """Write a review: images, predicted masks in the form of the tool, a contact sheet, and tags
    that look wrong.

    Args:
        run_dir: a run with a trained segmenter.
        out: new or empty folder.
        wish: what to ask for.

    Returns:
        What was asked, as ``--json`` prints it.

    Raises:
        RunError: no run, or one without a segmenter.
        DataError: no such list, or no image to ask about.
        ConfigError: no such tool.
        TargetError: ``out`` holds something, or is what is read.
    """
    form, run = form_of(wish.tool), Run.existing(run_dir)
    weights = segmenter_weights(run, "segment")
    dataset = reopen_data(run.manifest)
    inputs = [*dataset.places(), run.path, *([wish.also] if wish.also else [])]
    # Nothing of an earlier review is written over: somebody may be at work in it.
    check_folder(out, lambda _: False, inputs, "--out", "a new folder")
    records = _candidates(dataset, run, wish)
    check_images(records)
    expected = {"classes": list(dataset.classes)}
    segmenter, network, _ = prediction.load(weights, expected, segmenter_config(run, ()))
    model = _Model(run, weights, segmenter, network, wish.device)
    opinions = {
        record.id: doubt
        for record, doubt, _ in doubts(segmenter, network, records, model.masks, wish.device)
    }
    looks = _looks(run, dataset, records, opinions, wish.device)
    values = np.array([opinions[record.id].value for record in records])
    choices = choose(values, looks, group_numbers(records), wish.count)
    own = [n for n, record in enumerate(records) if record.id in dataset.records]
    suspicions = wrong_tags(looks[own], dataset, [records[n] for n in own])[: wish.tags]
    chosen = [(records[choice.position], choice) for choice in choices]
    return _write_review(out, form, model, dataset, chosen, opinions, suspicions, wish)


def _candidates(dataset: Dataset, run: Run, wish: Wish) -> list[Record]:
    """Images that have not been corrected yet."""
    records = dataset.subset(wish.list or run.manifest["train_list"])
    if wish.also:
        records = [*records, *_untagged(wish.also, dataset)]
    corrected = set(read_ledger(wish.corrections).masks) if wish.corrections else set()
    records = [record for record in records if record.id not in corrected]
    if not records:
        raise DataError(
            f"no image of {dataset.root} is left to ask about", "images without a corrected mask"
        )
    return records


def _untagged(folder: Path, dataset: Dataset) -> list[Record]:
    everything = tuple(range(len(dataset.classes)))
    files = list_images(folder)
    if not files:
        raise DataError(f"{folder} has no images", "a folder of images")
    records = [Record(image_id(file, folder), file, (), None, everything) for file in files]
    if twice := [record.id for record in records if record.id in dataset.records]:
        raise DataError(
            f"{len(twice)} images of {folder} are called like images of the data: {some(twice)}",
            "names of their own",
            "put them into a folder of their own name below the one that you give",
        )
    return records


def _looks(
    run: Run, dataset: Dataset, records: Sequence[Record], opinions: dict[str, Doubt], device: str
) -> npt.NDArray[np.float32]:
    """What each image looks like, ``float32 [N,C]``: to the run's classifier, or else by the labels
    that the segmenter sees.
    """
    path = run.path / "classify" / "model.pt"
    # A run on imported maps has no classifier.
    if not path.is_file():
        return np.stack([opinions[record.id].layout for record in records])
    method = load_method(path, {"classes": list(dataset.classes)})
    return image_logits(_Looks(method.backbone), records, device=device, title="features")


def _write_review(
    out: Path,
    form: Form,
    model: _Model,
    dataset: Dataset,
    chosen: Sequence[tuple[Record, Choice]],
    opinions: dict[str, Doubt],
    suspicions: Sequence[Suspicion],
    wish: Wish,
) -> dict[str, Any]:
    records = [record for record, _ in chosen]
    key = review_key(file_sha256(model.weights), form.name, [record.id for record in records])
    home = model.run.path / FOLDER / key
    prediction.predict(
        model.segmenter, model.network, records, home / "predicted", "masks", model.device
    )
    tasks = [
        _task(out, home / "predicted", dataset, record, opinions[record.id], choice)
        for record, choice in chosen
    ]
    labels = Labels(dataset.classes)
    form.write(out, Request(key, labels, tasks, f"wsss {key}", wish.image_url))
    write_tag_table(out / TABLE, suspicions, dataset)
    steps = [step.format(review=out) for step in form.steps]
    steps.append(f"wsss-trainer answer {model.run.path} {out if form.own == 'masks' else 'EXPORT'}")
    facts = {"run": model.run.path.name, "tool": form.tool, "steps": steps}
    write_sheet(out, _entries(model, tasks, records), suspicions, dataset, facts)
    review = Review(
        key,
        str(model.run.path.resolve()),
        form.name,
        datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        dataset.classes,
        {
            task.id: Question(
                task.image,
                task.size,
                round(task.doubt, 4),
                task.reason,
                "" if record.id in dataset.records else str(record.image.resolve()),
            )
            for task, record in zip(tasks, records, strict=True)
        },
    )
    # Last, so that a review that was killed is none.
    for folder in (home, out):
        review.write(folder)
    return {
        "review": str(out),
        "key": key,
        "tool": form.name,
        "sheet": str(out / SHEET),
        "images": [
            {"id": task.id, "doubt": round(task.doubt, 4), "reason": task.reason} for task in tasks
        ],
        "suspicious_tags": [dataclasses.asdict(entry) for entry in suspicions],
        "steps": steps,
    }


def _task(
    out: Path, predicted: Path, dataset: Dataset, record: Record, doubt: Doubt, choice: Choice
) -> Task:
    mask = partial(read_index_png, predicted / f"{record.id}.png")
    return Task(
        record.id,
        _place(record, out / "images"),
        image_size(record.image),
        tuple(dataset.classes[k] for k in record.tags),
        reason(doubt, choice, dataset.classes),
        doubt.value,
        mask,
    )


def _place(record: Record, folder: Path) -> str:
    """Copy an image as tools and browsers show it; return its path below the review."""
    with open_header(record.image, body=False) as header:
        is_plain = header.orientation == 1 and header.bits == 8 and header.image.mode != "CMYK"
        suffix = COPIED.get(header.kind, "") if is_plain else ""
    target = folder / f"{record.id}{suffix or '.png'}"
    if suffix:
        place_image(record.image, target, "copy")
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, _png(read_image(record.image)))
    return target.relative_to(folder.parent).as_posix()


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def reason(doubt: Doubt, choice: Choice, classes: Sequence[str]) -> str:
    """Why an image was chosen, in words."""
    parts = []
    if doubt.missing:
        parts.append(f"tagged {', '.join(classes[k] for k in doubt.missing)}, which the mask lacks")
    if doubt.denied:
        parts.append(f"shows {', '.join(classes[k] for k in doubt.denied)}, which the tags deny")
    if doubt.views >= 0.01:
        parts.append(f"two views disagree on {100 * doubt.views:.0f} % of the pixels")
    if doubt.labels is not None and doubt.labels >= 0.01:
        parts.append(f"the refined mask says otherwise on {100 * doubt.labels:.0f} %")
    if choice.stands_for > 1:
        parts.append(f"looks like {choice.stands_for - 1} others")
    return "; ".join(parts) or "the most doubtful of its kind"


def _entries(model: _Model, tasks: Sequence[Task], records: Sequence[Record]) -> list[Entry]:
    maps: dict[str, Float] = {
        record.id: values
        for record, _, values in doubts(
            model.segmenter, model.network, records, model.masks, model.device, "doubt maps"
        )
    }
    paths = [model.masks / f"{record.id}.png" for record in records]
    labels = [read_index_png(path) if path.is_file() else None for path in paths]
    return [
        Entry(task, record, maps[record.id], mask)
        for task, record, mask in zip(tasks, records, labels, strict=True)
    ]
