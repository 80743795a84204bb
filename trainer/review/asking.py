"""Choose the images whose correction helps most, and write a review of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from trainer.data.dataset import Dataset, Record, check_images
from trainer.data.formats.opening import reopen_data
from trainer.data.image_files import image_id, list_images
from trainer.errors import DataError, some
from trainer.evaluation.image_counts import group_numbers
from trainer.methods.registry import load_method
from trainer.nets.backbone import Backbone
from trainer.outputs import check_folder
from trainer.predict import segmenter_weights
from trainer.review.choice import Choice, choose
from trainer.review.doubt import Findings, examined
from trainer.review.forms import form_of
from trainer.review.labels import Labels
from trainer.review.ledger import read_ledger
from trainer.review.model import Model
from trainer.review.writing import Chosen, Writer
from trainer.review.wrong_tags import wrong_tags
from trainer.run import Run
from trainer.training.devices import check_device
from trainer.training.inference import image_logits

Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Wish:
    """What to ask for.

    Attributes:
        count: images to choose.
        tool: name of the form.
        list: the list to choose from; None for the run's training list.
        also: a folder of further images without tags; None for none.
        corrections: folder of earlier corrections, whose images are not asked for again.
        tags: at most so many tags that look wrong.
        image_url: see ``Request``.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    count: int = 30
    tool: str = "labelstudio"
    list: str | None = None
    also: Path | None = None
    corrections: Path | None = None
    tags: int = 50
    image_url: str = ""
    device: str = "auto"


class Looks(nn.Module):
    """What images look like to a backbone: the mean of its deepest features."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """``[B,C]``."""
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
        ConfigError: no such tool or device.
        TargetError: ``out`` holds something, or is what is read.
    """
    check_device(wish.device)
    form, run = form_of(wish.tool), Run.existing(run_dir)
    segmenter_weights(run, "segment")
    dataset = reopen_data(run.manifest)
    form.check(Labels(dataset.classes))
    inputs = [*dataset.places(), run.path, *([wish.also] if wish.also else [])]
    # Nothing of an earlier review is written over: somebody may be at work in it.
    check_folder(out, lambda _: False, inputs, "--out", "a new folder")
    records = _candidates(dataset, run, wish)
    check_images(records)
    model = Model.of(run, dataset, wish.device)
    findings, looks = examine(model, dataset, records)
    choice = [
        Chosen(record, findings.doubts[record.id], findings.pictures[record.id], place.stands_for)
        for place in most_helpful(records, findings, looks, wish.count)
        for record in [records[place.position]]
    ]
    own = [n for n, record in enumerate(records) if record.id in dataset.records]
    suspicions = wrong_tags(looks[own], dataset, [records[n] for n in own])[: wish.tags]
    writer = Writer(out, form, model, dataset, findings.calibration, wish.image_url)
    return writer.write(choice, suspicions)


def examine(model: Model, dataset: Dataset, records: Sequence[Record]) -> tuple[Findings, Values]:
    """What the segmenter thinks of each image, and what each looks like, ``float32 [N,C]``."""
    findings = examined(model, dataset, records)
    return findings, _looks(model, dataset, records, findings)


def most_helpful(
    records: Sequence[Record], findings: Findings, looks: Values, count: int
) -> list[Choice]:
    """The ``count`` images whose correction helps most, the most helpful first; see ``choose``."""
    # Pixels alone would pass small objects over.
    values = np.array([findings.doubts[record.id].shortfall for record in records])
    return choose(values, looks, group_numbers(records), count)


def _candidates(dataset: Dataset, run: Run, wish: Wish) -> list[Record]:
    """Images whose mask nobody has drawn and no training has seen."""
    records = dataset.subset(wish.list or run.manifest["train_list"])
    if wish.also:
        records = [*records, *_untagged(wish.also, dataset)]
    without = set(dataset.withheld)
    if wish.corrections:
        without |= set(read_ledger(wish.corrections).masks)
    records = [record for record in records if record.id not in without]
    if not records:
        raise DataError(f"no image of {dataset.root} is left to ask about", "images without a mask")
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


def _looks(model: Model, dataset: Dataset, records: Sequence[Record], findings: Findings) -> Values:
    """What each image looks like, ``float32 [N,C]``: to the run's classifier, or else by the labels
    that the segmenter sees.
    """
    path = model.run.path / "classify" / "model.pt"
    # A run on imported maps has no classifier.
    if not path.is_file():
        return np.stack([findings.doubts[record.id].layout for record in records])
    method = load_method(path, {"classes": list(dataset.classes)})
    return image_logits(Looks(method.backbone), records, device=model.device, title="features")
