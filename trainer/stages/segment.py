"""The stages ``segment`` and ``segment_full`` of a run: training on pseudo or on true masks, and
the test.

Each is a stage of its own, so that predictions can be made again, with other scales or another CRF,
without another training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from trainer.data.dataset import Dataset, Record
from trainer.errors import DataError
from trainer.nets.backbone import Backbone
from trainer.run import Metrics, Run, stage_key
from trainer.segmenters import make_segmenter
from trainer.segmenters import prediction as segment
from trainer.segmenters.config import TEST_KNOBS, SegmentConfig
from trainer.segmenters.start import Start
from trainer.training.loop import step_rng
from trainer.training.model_file import read_model

Steps = list[tuple[str, str, Callable[[str], None]]]


@dataclass
class Segmentation:
    """How one run's segmenters are trained and tested.

    Attributes:
        run: the run.
        dataset: records and class table.
        train_list: name of the training list.
        training: its records.
        measured: lists to predict.
        config: knobs.
        start: what training starts from.
        backbone: of the run.
        classifier: gives the run's trained backbone.
        identity: what ``model.pt`` says of itself.
        seed: of everything random.
        device: ``auto`` or ``cpu``.
    """

    run: Run
    dataset: Dataset
    train_list: str
    training: Sequence[Record]
    measured: Sequence[str]
    config: SegmentConfig
    start: Start
    backbone: str
    classifier: Callable[[], Backbone]
    identity: dict[str, Any]
    seed: int
    device: str

    def steps(
        self, name: str, inputs: Sequence[str], result: Callable[[Any], dict[str, Any]]
    ) -> Steps:
        """Name, key and work of the training and the test of ``segment`` or ``segment_full``.

        Args:
            name: of the stage.
            inputs: keys of what it learns from.
            result: picks the knobs that results depend on.
        """
        every = result(self.config)
        sha = self.start.report.sha256 if self.start.report else self.start.source
        chosen = {k: v for k, v in every.items() if k not in TEST_KNOBS}
        trained = stage_key(
            f"{name}_train", [self.backbone, sha, self.train_list, self.seed, chosen], inputs
        )
        asked = {k: v for k, v in every.items() if k in TEST_KNOBS}
        tested = stage_key(name, [asked, list(self.measured)], [trained])
        return [
            (f"{name}_train", trained, partial(self.train, name)),
            (name, tested, partial(self.test, name)),
        ]

    def train(self, name: str, key: str) -> None:
        """Train on pseudo masks (``segment``) or on true masks (``segment_full``)."""
        true = name == "segment_full"
        masks = partial(segment.read_pseudo_mask, folder=self.run.path / "masks")
        left_out = set() if true else self.run.left_out
        records = [
            r
            for r in self.training
            if r.id not in left_out and (not true or self.dataset.has_mask(r))
        ]
        if not records:
            raise DataError(
                f"no image of list {self.train_list!r} has a true mask",
                "masks for --supervision full",
            )
        if not true:
            segment.check_masks(records, self.run.path / "masks")
        first = self.start.supervision(self.identity["initial"])
        identity = {
            **self.identity,
            "initial": first,
            "supervision": "true masks" if true else "tags",
            "key": key,
        }
        with self.run.stage(f"{name}_train", key, folder=name) as stage:
            if not self._is_trained(stage.folder / "model.pt", key):
                segmenter = make_segmenter(self.config, self.backbone, len(self.dataset.classes))
                segment.train_segmenter(
                    segmenter,
                    self.fresh(),
                    records,
                    self.dataset.read_mask if true else masks,
                    stage,
                    Metrics(self.run.path / "metrics.csv", name),
                    self.seed,
                    identity,
                    self.device,
                )

    def test(self, name: str, key: str) -> None:
        """Predict every measured list."""
        with self.run.stage(name, key, folder=f"{name}/predictions") as stage:
            path = self.run.path / name / "model.pt"
            segmenter, network, _ = segment.load(
                path, {"classes": self.identity["classes"]}, self.config
            )
            for measured in self.measured:
                records = self.dataset.subset(measured)
                segment.predict(
                    segmenter,
                    network,
                    records,
                    stage.folder / measured,
                    f"{name} {measured}",
                    self.device,
                )
                stage.outputs[measured] = len(records)

    def fresh(self) -> nn.Module:
        """The network on its initial weights; its head is drawn from the seed."""
        step_rng(self.seed, 0)
        segmenter = make_segmenter(self.config, self.backbone, len(self.dataset.classes))
        network = segmenter.build()
        if self.start.source == "classifier":
            segmenter.take_backbone(network, self.classifier())
        elif self.start.path is not None:
            segmenter.load(network, self.start.path)
        return network

    def _is_trained(self, path: Path, key: str) -> bool:
        return path.exists() and read_model(path, {})[0].get("key") == key
