"""The stages between class maps and pseudo masks: labels, training and walk of AffinityNet or
IRNet, then the masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from trainer.data.dataset import Dataset, Record
from trainer.data.sizes import PIXELS
from trainer.evaluation.threshold import Threshold, calibration, choose
from trainer.nets.backbone import Backbone
from trainer.refine.affinitynet import AffinityConfig, AffinityNet
from trainer.refine.irnet import IrnConfig, IrNet
from trainer.refine.pseudo_masks import RefineConfig, make_pseudo_masks
from trainer.run import Metrics, Run, stage_key
from trainer.stages import affinity as affinity_stage
from trainer.stages import irn as irn_stage
from trainer.training.devices import rank
from trainer.training.loop import step_rng
from trainer.training.model_file import read_model
from trainer.weights.loading import file_sha256
from trainer.weights.released import load_refiner

LABEL_KNOBS = {"low_alpha", "high_alpha", "crf", "crf_backend", "foreground", "background"}
WALK_KNOBS = {
    "beta",
    "steps",
    "walk_alpha",
    "walk_radius",
    "borders",
    "solver",
    "canvas",
    "threshold",
    "instances",
}


@dataclass
class Refinement:
    """How one run's maps become masks.

    Attributes:
        run: the run.
        dataset: records and class table.
        training: images to learn from; those with tags are used.
        images: images that get masks.
        config: knobs of the masks.
        affinity: knobs of AffinityNet.
        irn: knobs of IRNet.
        network: what the backbone and its initial weights are, for keys.
        backbone: knobs of a backbone -> one with initial weights, and whether they are the
            classifier's by ``init``.
        identity: what ``model.pt`` says of itself.
        seed: of everything random.
        device: ``auto`` or ``cpu``.
        given: file of a trained network for the walk; empty to train one.
    """

    run: Run
    dataset: Dataset
    training: Sequence[Record]
    images: Sequence[Record]
    config: RefineConfig
    affinity: AffinityConfig
    irn: IrnConfig
    network: list[Any]
    backbone: Callable[[dict[str, Any], str], Backbone]
    identity: dict[str, Any]
    seed: int
    device: str
    given: str = ""

    @property
    def walks(self) -> bool:
        """Whether a walk comes before the masks."""
        return self.config.refine in ("affinity", "irn")

    @property
    def maps(self) -> Path:
        """The maps that masks are made from."""
        return self.run.path / ("walk" if self.walks else "cams")

    def steps(
        self, cams_key: str, result: Callable[[Any], dict[str, Any]]
    ) -> list[tuple[str, str, Callable[[str], None]]]:
        """Name, key and work of each stage; the last one is ``refine``. ``result`` picks the knobs
        that results depend on.
        """
        steps: list[tuple[str, str, Callable[[str], None]]] = []
        key = cams_key
        if self.walks:
            name = self.config.refine
            every = result(self.affinity if name == "affinity" else self.irn)
            # The default leaves keys of older runs as they are.
            power: list[Any] = [] if self.config.pixels == PIXELS else [self.config.pixels]
            if self.config.calibrate:
                power = [self.calibrated_by, *self.truth(self.calibrated_by), *power]
            images = [record.id for record in self.images]
            stages: list[tuple[str, set[str], list[Any], Callable[[str], None]]] = [
                (f"{name}_labels", every.keys() & LABEL_KNOBS, power, self.labels),
                (
                    name,
                    every.keys() - LABEL_KNOBS - WALK_KNOBS - {"checkpoint"},
                    self.network,
                    self.train,
                ),
                ("walk", every.keys() & (WALK_KNOBS | {"radius"}), images, self.walk),
            ]
            if self.given:
                given = [file_sha256(Path(self.given)), self.identity["backbone"], power]
                stages = [("walk", stages[2][1], [images, given], self.walk)]
            for stage, chosen, more, work in stages:
                key = stage_key(stage, [{k: every[k] for k in sorted(chosen)}, more], [key])
                steps.append((stage, key, work))
        truth = self.truth(self.config.threshold_from)
        refined = stage_key("refine", result(self.config), [key, *truth])
        return [*steps, ("refine", refined, self.masks)]

    def truth(self, source: str) -> list[str]:
        """Hash of the true masks that a threshold from ``source`` looks at; nothing where it looks
        at none.
        """
        if source not in self.dataset.lists:
            return []
        return [self.dataset.mask_fingerprint(self.dataset.masked(source))]

    @cached_property
    def power(self) -> float:
        """What maps are raised to before published constants are used on them."""
        if not self.config.calibrate:
            return 1.0
        return calibration(self._threshold(self.run.path / "cams", self.calibrated_by).value)

    @property
    def calibrated_by(self) -> str:
        """Where the maps' own threshold comes from. A fixed one is of the maps after the walk and
        says nothing of these.
        """
        source = self.config.threshold_from
        return "label_free" if source == "fixed" else source

    @property
    def tagged(self) -> list[Record]:
        """The images that labels are made of."""
        return [
            record for record in self.training if record.tags and record.id not in self.run.left_out
        ]

    @property
    def usable(self) -> list[Record]:
        """The images that have maps."""
        return [record for record in self.images if record.id not in self.run.left_out]

    def labels(self, key: str) -> None:
        """Labels from the maps of the training images."""
        with self.run.stage(f"{self.config.refine}_labels", key) as stage:
            if rank() > 0:
                return
            cams = self.run.path / "cams"
            if self.config.refine == "affinity":
                make = partial(affinity_stage.make_labels, config=self.affinity)
            else:
                make = partial(irn_stage.make_labels, config=self.irn)
            power, pixels = self.power, self.config.pixels
            make(
                self.dataset,
                self.tagged,
                cams,
                stage.folder,
                power=power,
                progress=True,
                pixels=pixels,
            )
            stage.outputs.update(count=len(self.tagged))
            stage.metrics.update(power=round(self.power, 4))

    def train(self, key: str) -> None:
        """Train the network that the walk needs."""
        name = self.config.refine
        with self.run.stage(name, key) as stage:
            if (stage.folder / "model.pt").exists():
                return
            step_rng(self.seed, 0)
            metrics = Metrics(self.run.path / "metrics.csv", name)
            labels = self.run.path / f"{name}_labels"
            rest = (stage, metrics, self.seed, self.identity, self.device)
            net = self.network_of(name)
            if isinstance(net, AffinityNet):
                affinity_stage.train_affinity(net, self.tagged, labels, self.affinity, *rest)
            else:
                irn_stage.train_irn(net, self.tagged, labels, self.irn, *rest)

    def network_of(self, name: str, init: str | None = None) -> AffinityNet | IrNet:
        """A fresh network, on its initial weights or those that ``init`` names."""
        if name == "affinity":
            stride = {"output_stride": self.affinity.output_stride, "bn": self.affinity.bn}
            return AffinityNet(self.backbone(stride, init or self.affinity.init))
        return IrNet(
            self.backbone({"output_stride": 16, "dilate": False}, init or "auto"),
            self.irn.displacement,
        )

    def trained(self) -> AffinityNet | IrNet:
        """The network that the walk needs: the given one, or what this run trained.

        Raises:
            WeightsError: a file that is missing, not whole, or of another network or class table.
        """
        name = self.config.refine
        net = self.network_of(name, "none")
        if self.given:
            load_refiner(net, Path(self.given), self.identity["classes"])
        else:
            _, state = read_model(self.run.path / name / "model.pt", self.identity)
            net.load_state_dict(state)
        return net

    def walk(self, key: str) -> None:
        """Spread the maps of every image."""
        net, cams = self.trained(), self.run.path / "cams"
        with self.run.stage("walk", key) as stage:
            images, out, power, pixels = self.usable, stage.folder, self.power, self.config.pixels
            if isinstance(net, AffinityNet):
                affinity_stage.walk(
                    net, images, cams, out, self.affinity, power, self.device, pixels
                )
            else:
                folder = self.run.path / "instances" if self.irn.instances else None
                stage.folders += [folder] if folder else []
                irn_stage.walk(net, images, cams, out, self.irn, power, self.device, folder, pixels)
            stage.outputs.update(
                count=len(self.usable), **({"taken_from": self.given} if self.given else {})
            )
            stage.metrics.update(power=round(self.power, 4))

    def masks(self, key: str) -> None:
        """Choose the threshold and write the pseudo masks."""
        with self.run.stage("refine", key, folder="masks") as stage:
            if rank() > 0:
                return
            threshold = self._threshold(self.maps, self.config.threshold_from)
            summary = make_pseudo_masks(
                self.dataset,
                self.usable,
                self.maps,
                stage.folder,
                self.config,
                threshold.value,
                progress=True,
            )
            stage.outputs.update(count=summary.pop("count"))
            stage.metrics.update(
                summary, threshold_from=threshold.source, threshold_detail=threshold.detail
            )

    def _threshold(self, folder: Path, source: str) -> Threshold:
        """Of the maps in a folder."""
        config = self.config
        if config.score == "rest" and folder == self.maps:
            return Threshold(
                0.0,
                "fixed",
                f"no threshold: (1 - max)^{self.affinity.walk_alpha:g} walks along as background",
            )
        return choose(
            source,
            config.threshold,
            self.dataset,
            self.tagged,
            folder,
            for_masks=True,
            without=self.run.left_out,
            progress=True,
        )
