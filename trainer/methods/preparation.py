"""What some methods do before their training: rounds of clustering, a teacher. Each is a stage of
the run, with its own key.

A method's file has ``preparations(config)``, its stages in order; the last one leaves
``subcategories.npz``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from trainer.data.dataset import Dataset, Record
from trainer.methods.subcategories import Embeddings, Subcategories
from trainer.progress import progress_bar
from trainer.run import Output
from trainer.training.inference import Budget, Views, finite, inference, iterate_views

if TYPE_CHECKING:
    from trainer.methods.base import Method
    from trainer.methods.recipes import ClassifyConfig

SUBCATEGORIES = "subcategories.npz"
EMBEDDINGS = "embeddings.npz"


@dataclass(frozen=True)
class Workshop:
    """What a preparation works with.

    Attributes:
        run: the run's folder; other stages' files are in folders of their names.
        dataset: all records and the class table.
        records: training images with tags, each once.
        validation: images of the validation list.
        config: the method's.
        classify: training of the classifier.
        seed: of everything random.
        device: ``auto`` or ``cpu``.
        build: a method config -> the method on fresh initial weights, or on those of a stage's
            ``model.pt``.
        train: trains a method into a stage's ``model.pt``, takes it from a file if one is given, or
        loads it from there.
    """

    run: Path
    dataset: Dataset
    records: list[Record]
    validation: list[Record]
    config: Any
    classify: ClassifyConfig
    seed: int
    device: str
    build: Callable[[Any, str | None], Method]
    train: Callable[[Method, Output, Subcategories | None, Path | None], Method]


@dataclass(frozen=True)
class Preparation:
    """A stage before the training of the classifier.

    Attributes:
        name: of the stage and its folder.
        knobs: what its outputs depend on, besides data, backbone, seed and the preparation before
            it.
        trains: its outputs also depend on the classifier's training knobs.
        continues: its weights are the initial ones of what follows.
        work: does it.
    """

    name: str
    knobs: dict[str, Any]
    trains: bool
    continues: bool
    work: Callable[[Workshop, Output], None]


def preparations(module: Any, config: Any) -> list[Preparation]:
    """The preparations of a method's module; most have none."""
    return list(module.preparations(config)) if hasattr(module, "preparations") else []


def embed(
    embed: Callable[[torch.Tensor], torch.Tensor],
    module: torch.nn.Module,
    records: Sequence[Record],
    title: str,
    device: str,
) -> Embeddings:
    """``embed`` of every image, one view at its own size or the largest that fits, in fp32."""
    found: dict[str, npt.NDArray[np.float32]] = {}
    with inference(module, "fp32", device) as target, progress_bar(title, len(records)) as advance:
        for batch in iterate_views(records, Views(scales=(1.0,)), Budget(images=16)):
            rows = finite(embed(batch.images[0].to(target)).float().cpu(), "features").numpy()
            found.update({record.id: row for record, row in zip(batch.records, rows)})
            for _ in batch.records:
                advance()
    ids = [record.id for record in records]
    return Embeddings(ids, np.stack([found[i] for i in ids]))
