"""What some methods do before their training: rounds of clustering, a teacher.

A method's file declares its ``preparations``, each a stage of the run with its own key, and with
``prepared`` says what they left for the training of the classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.dataset import Dataset, Record
from trainer.methods.inputs import Input
from trainer.run import Output

if TYPE_CHECKING:
    from trainer.methods.base import Method
    from trainer.methods.recipes import ClassifyConfig


def as_it_is(config: ClassifyConfig) -> ClassifyConfig:
    """The knobs themselves."""
    return config


@dataclass(frozen=True)
class Prepared:
    """What preparations leave for the training that follows.

    Attributes:
        config: the method's config, with what was learnt filled in.
        inputs: further entries of the samples, besides the method's own ``needs``.
        weights_from: the stage whose weights training goes on from; None for the initial weights.
        training: knobs of the run's trainings -> those of this one.
    """

    config: Any
    inputs: Mapping[str, Input] = field(default_factory=dict)
    weights_from: str | None = None
    training: Callable[[ClassifyConfig], ClassifyConfig] = as_it_is


@dataclass(frozen=True)
class Workshop:
    """What a preparation works with.

    Attributes:
        run: the run's folder; other stages' files are in folders of their names.
        dataset: all records and the class table.
        records: training images with tags, each once.
        validation: images of the validation list.
        config: the method's.
        classify: knobs of the classifier's training.
        seed: of everything random.
        device: ``auto``, ``cuda`` or ``cpu``.
        build: ``Prepared`` -> the method on the weights that it names.
        train: (method, output, what it starts from, file or None) -> the method on its final
            weights: it trains into the stage's ``model.pt``, or takes the file, or loads what is
            there.
        label: (method, output, foreground, background) writes IRNet's sure labels of the method's
            maps of ``records``, ``labels/<id>.png`` in the stage's folder; the numbers are the two
            background scores.
    """

    run: Path
    dataset: Dataset
    records: list[Record]
    validation: list[Record]
    config: Any
    classify: ClassifyConfig
    seed: int
    device: str
    build: Callable[[Prepared], Method]
    train: Callable[[Method, Output, Prepared, Path | None], Method]
    label: Callable[[Method, Output, float, float], None]


@dataclass(frozen=True)
class Preparation:
    """A stage before the training of the classifier.

    Attributes:
        name: of the stage and its folder.
        knobs: what its outputs depend on, besides data, backbone, seed and the preparation before
            it.
        trains: whether its outputs also depend on the classifier's training knobs.
        work: does it.
        maps: whether its outputs also depend on the knobs of maps and labels.
    """

    name: str
    knobs: dict[str, Any]
    trains: bool
    work: Callable[[Workshop, Output], None]
    maps: bool = False
