"""What a stage of a run is, and the facts that every stage may use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from trainer import config as knobs
from trainer.data.dataset import Dataset, Record
from trainer.data.tables.corrections import Corrections
from trainer.data.tables.training_masks import LIST, TrainingMasks
from trainer.methods.recipes import backbone_knobs
from trainer.options import Configs
from trainer.run import Output, Run
from trainer.segmenters.start import Start
from trainer.weights.loading import LoadReport
from trainer.weights.supervision import NONE

RANDOM = Start("random")
Need = Literal["nothing", "weights", "classifier", "checkpoint"]
OPERATION = {"workers", "checkpoint_minutes", "tensorboard", "validate"}
"""Knobs that change no result, and so no key."""


# Without eq, a context is hashed by identity: facts derived from it can be cached.
@dataclass(frozen=True, eq=False)
class Context:
    """The facts of one run: its folder, data, knobs and initial weights.

    Attributes:
        run: the run's folder.
        dataset: all records and the class table.
        configs: the knobs of each section.
        method: name of the method.
        backbone: name of the backbone.
        seed: of everything random.
        device: ``auto``, ``cpu`` or ``cuda``.
        train_list: name of the list that trains.
        val_list: name of the list that validates, or None.
        masks: the true masks that train the segmenter, beside pseudo masks; None without any.
        corrections: of ``dataset``, which has them; None without any.
        full_segment: knobs that the segmenter on all true masks has instead of the configs'.
        cams_folder: ``--cams``: a folder of maps to take instead of making them, or None.
        initial: the weights of the backbone that training starts from; None for random ones.
        classifier: what was loaded of ``--classifier``, or None.
        start: what the segmenter starts from.
    """

    run: Run
    dataset: Dataset
    configs: Configs
    method: str
    backbone: str
    seed: int
    device: str
    train_list: str
    val_list: str | None
    masks: TrainingMasks | None = None
    corrections: Corrections | None = None
    full_segment: Mapping[str, Any] = field(default_factory=dict)
    cams_folder: Path | None = None
    initial: LoadReport | None = None
    classifier: LoadReport | None = None
    start: Start = RANDOM

    @cached_property
    def training(self) -> list[Record]:
        """Records of the training list."""
        return self.dataset.subset(self.train_list)

    @cached_property
    def tagged(self) -> list[Record]:
        """Training records with tags."""
        return [record for record in self.training if record.tags]

    @cached_property
    def taught(self) -> list[Record]:
        """What the classifier trains on: images of which some class is known to show or not to.

        Images that show no class teach what the classes are not, unless ``classify.negatives`` is
        0.
        """
        if not self.configs.classify.negatives:
            return self.tagged
        classes = len(self.dataset.classes)
        return [record for record in self.training if len(record.unknown) < classes]

    @cached_property
    def validation(self) -> list[Record]:
        """Records of the validation list; empty without one."""
        return self.dataset.subset(self.val_list) if self.val_list else []

    @cached_property
    def reported_lists(self) -> list[str]:
        """Lists that figures are given for: of image scores, and of masks where they have some."""
        return self.dataset.reported_lists(self.train_list, self.val_list)

    @cached_property
    def measured_lists(self) -> list[str]:
        """Lists with true masks that figures are given for."""
        return self.dataset.measured_lists(self.train_list, self.val_list)

    @cached_property
    def scored(self) -> list[Record]:
        """Every image that the classifier scores: training and reported lists, once each."""
        union = {record.id: record for record in self.training}
        for name in self.reported_lists:
            union.update((record.id, record) for record in self.dataset.subset(name))
        return list(union.values())

    @cached_property
    def images(self) -> list[Record]:
        """Every image that needs maps: training and measured lists, once each."""
        union = {record.id: record for record in self.training}
        for name in self.measured_lists:
            union.update((record.id, record) for record in self.dataset.subset(name))
        return list(union.values())

    @property
    def mapped(self) -> list[Record]:
        """The images that have maps; imported maps may leave some out."""
        return [record for record in self.images if record.id not in self.run.left_out]

    @property
    def labelled(self) -> list[Record]:
        """The training images with tags and maps, which refinement learns from."""
        return [record for record in self.tagged if record.id not in self.run.left_out]

    @property
    def maps_from(self) -> str:
        """What makes the maps: the method, or the folder of ``--cams``."""
        return f"maps of {self.cams_folder.resolve()}" if self.cams_folder else self.method

    @property
    def supervision(self) -> str:
        """Which labels made the initial weights."""
        report = self.classifier or self.initial
        return report.supervision if report else NONE

    @property
    def initial_sha256(self) -> str:
        """SHA-256 of the initial weights; ``none`` for random ones."""
        return self.initial.sha256 if self.initial else "none"

    @property
    def backbone_knobs(self) -> dict[str, Any]:
        """Constructor arguments of the classifier's backbone."""
        return backbone_knobs(self.backbone, self.configs.classify)

    def identity(self, method_config: Any = None) -> dict[str, Any]:
        """What ``model.pt`` says of itself."""
        return {
            **self.expected,
            "method_config": knobs.as_dict(method_config or self.configs.method),
            "backbone_knobs": self.backbone_knobs,
            "initial": self.supervision,
        }

    @property
    def expected(self) -> dict[str, Any]:
        """The entries of an identity that every trained file of this run has."""
        return {
            "method": self.maps_from,
            "backbone": self.backbone,
            "classes": list(self.dataset.classes),
        }

    def model(self, stage: str) -> Path:
        """The file of a stage's trained weights."""
        return self.run.path / stage / "model.pt"

    def truth(self, source: str) -> list[str]:
        """Hash of the true masks that a threshold from ``source`` looks at; empty where it looks
        at none.
        """
        if self.masks and source == LIST:
            return [self.masks.mask_fingerprint(self.masks.images)]
        # Masks that no threshold looks at leave the key alone when they are mended.
        if source not in self.dataset.lists:
            return []
        return [self.dataset.mask_fingerprint(self.dataset.masked(source))]


@dataclass(frozen=True)
class Stage:
    """One step of a run. Stages talk through files: none is handed a live model.

    Attributes:
        name: as in ``manifest.json``.
        inputs: names of the stages whose files it reads, or ``data``.
        knobs: context -> what its outputs depend on besides its inputs, as JSON values.
        work: does it; its folder may hold files of an interrupted run.
        folder: where its files lie below the run; its name where empty.
        needs: what its network starts from: ``weights`` of the backbone, the run's ``classifier``,
            or a trained network, the ``checkpoint`` of a walk.
    """

    name: str
    inputs: tuple[str, ...]
    knobs: Callable[[Context], Any]
    work: Callable[[Context, Output], None]
    folder: str = ""
    needs: Need = "nothing"


def results_of(config: knobs.Knobs) -> dict[str, Any]:
    """The knobs of a config that results depend on."""
    values = {k: v for k, v in knobs.as_dict(config).items() if k not in OPERATION}
    return {k: v for k, v in values.items() if k not in config.later or v != config.later[k]}
