"""``fit``: the stages of a run, in order. Each reads and writes files of the run directory only."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from trainer import config as knobs
from trainer.data.dataset import Record, check_images
from trainer.data.opening import open_dataset
from trainer.data.preflight import Preflight, data_entry, preflight
from trainer.errors import ConfigError, DataError, nearest
from trainer.interrupt import terminated
from trainer.methods.base import Method
from trainer.methods.preparation import SUBCATEGORIES, Preparation, Workshop, preparations
from trainer.methods.registry import method_module
from trainer.methods.subcategories import Subcategories
from trainer.nets import build_backbone
from trainer.nets.backbone import Backbone
from trainer.options import STAGES, Options, check_plans, make_configs
from trainer.outputs import check_folder
from trainer.report.run_page import write_report
from trainer.run import Metrics, Run, Stage, is_run, stage_key
from trainer.segmenters.start import Start, find_start
from trainer.stages import cams, classify
from trainer.stages.evaluate import current_evaluation, measured_lists
from trainer.stages.import_cams import import_cams
from trainer.stages.refine import Refinement
from trainer.stages.segment import Segmentation
from trainer.training.devices import launch, rank, wait_for_all
from trainer.training.loop import step_rng
from trainer.weights.cache import find_weights
from trainer.weights.loading import file_sha256, load_backbone
from trainer.weights.released import load_classifier, load_start
from trainer.weights.supervision import NONE

OPERATION = {"workers", "checkpoint_minutes", "tensorboard", "validate"}
"""Knobs that do not change any result, and so no key."""


@dataclass(frozen=True)
class Step:
    """One stage to run: its name, key and function."""

    name: str
    key: str
    work: Callable[[], None]


class Pipeline:
    """The stages of one run over one data set.

    Raises:
        UserError: anything in ``options`` that cannot be.
    """

    def __init__(self, options: Options) -> None:
        if options.until not in STAGES:
            raise ConfigError(
                f"there is no stage {options.until!r}", nearest(options.until, STAGES)
            )
        self.options, self.configs = options, make_configs(options)
        self.dataset = open_dataset(options.data, config=self.configs.data)
        self.run = Run(options.run)
        self._check_place()
        self.train_list = options.train_list or self.dataset.default_list("train") or "all"
        self.val_list = options.val_list or self.dataset.default_list("val")
        self.training = self.dataset.subset(self.train_list)
        self.validation = self.dataset.subset(self.val_list) if self.val_list else []
        self.tagged = [record for record in self.training if record.tags]
        # Where every tagged image has some class, only images without a tag show what it is not.
        one_sided = bool(self.tagged) and self.dataset.tag_matrix(self.tagged).all(axis=0).any()
        self.taught = self.training if one_sided else self.tagged
        if not self.tagged:
            found = f"no image of list {self.train_list!r} has a tag"
            raise DataError(found, "tags to learn from", f"wsss-trainer check {options.data}")
        check_plans(options, self.configs, len(self.tagged), len(self.training))
        # Built now, so that an impossible backbone, knob or weight file ends the run before it
        # starts. What is given trained needs no other weights: ResNet-38 has none that can be
        # fetched.
        walks = (
            self.configs.refine.refine in ("affinity", "irn") and options.until not in STAGES[:2]
        )
        refiner = walks and not self.configs.checkpoint
        given = options.classifier is not None or (
            options.cams is not None and not refiner and options.until not in STAGES[3:]
        )
        from_scratch = options.weights == "none" or (given and options.weights is None)
        self.weights = None if from_scratch else find_weights(options.backbone, options.weights)
        self.backbone_knobs = classify.backbone_knobs(options.backbone, self.configs.classify)
        self.method = classify.build(
            options.method,
            self.configs.method,
            options.backbone,
            self.backbone_knobs,
            len(self.dataset.classes),
        )
        self.classifier = options.classifier
        self.given = (
            load_classifier(self.method, self.classifier, self.dataset.classes)
            if self.classifier
            else None
        )
        self.loaded = load_start(self.method, self.weights) if self.weights else None
        self.sha = self.loaded.sha256 if self.loaded else "none"
        self.start = self._find_start()
        if options.cams and self.loaded is None and (refiner or self.start.source == "classifier"):
            raise ConfigError(
                "--cams brings no classifier whose weights could start a network", "--weights FILE"
            )
        if walks and self.configs.checkpoint:
            self.refinement().trained()
        self.preparations = (
            []
            if self.classifier
            else preparations(method_module(options.method), self.configs.method)
        )

    def _check_place(self) -> None:
        """Refuse a run folder that what is read lies in or around, or that holds something else.

        Raises:
            TargetError: as said.
        """
        if self.run.second:
            return
        options, data = self.options, self.options.data.resolve()
        texts = (options.weights, options.segmenter_weights, self.configs.checkpoint)
        given = [options.cams, options.classifier, *(Path(text) for text in texts if text)]
        inputs = [*self.dataset.places(), *(path for path in given if path)]
        beside = data.parent / "runs" / data.name
        shortest = min(os.path.relpath(beside), str(beside), key=len)
        check_folder(options.run, is_run, inputs, "--run", f"--run {shortest}")

    @property
    def made_by(self) -> str:
        """What makes the maps: the method, or where they were taken from."""
        return (
            f"maps of {self.options.cams.resolve()}" if self.options.cams else self.options.method
        )

    @property
    def supervision(self) -> str:
        """Which labels made the initial weights."""
        report = self.given or self.loaded
        return report.supervision if report else NONE

    def measured_lists(self) -> list[str]:
        """Lists with true masks that figures are given for."""
        return measured_lists(self.dataset, self.train_list, self.val_list)

    @cached_property
    def preflight(self) -> Preflight:
        """What this run trains and measures on, and what is wrong with it."""
        full = self.options.supervision != "weak" and self.options.until in STAGES[3:]
        used = full or self.options.until in STAGES[4:]
        return preflight(self.dataset, self.train_list, self.measured_lists(), full, used)

    def images(self) -> list[Record]:
        """Every image that needs maps: training and measured lists, once each."""
        chosen = {record.id: record for record in self.training}
        for name in self.measured_lists():
            chosen.update((record.id, record) for record in self.dataset.subset(name))
        return list(chosen.values())

    def steps(self) -> list[Step]:
        """The stages that were asked for, with their keys."""
        options, configs = self.options, self.configs
        data = stage_key("data", self.dataset.fingerprint(), [])
        ids = [record.id for record in self.images()]
        trained = [options.method, options.backbone, self.sha, self.train_list, options.seed]
        trained += [] if self.taught == self.tagged else ["untagged too"]
        training: list[Step] = []
        key = data
        for part in self.preparations:
            key = stage_key(
                part.name,
                [trained, part.knobs, _result(configs.classify) if part.trains else None],
                [key],
            )
            training.append(Step(part.name, key, partial(self.prepare, part)))
        given = [file_sha256(self.classifier)] if self.classifier else []
        classify_key = stage_key(
            "classify", [trained, _result(configs.method), _result(configs.classify), *given], [key]
        )
        training.append(Step("classify", classify_key, self.classify))
        protocol = cams.protocol_of(configs.cams, options.backbone, options.method)[0]
        cams_key = stage_key("cams", [protocol, *cams.key_knobs(configs.cams), ids], [classify_key])
        make_cams = Step("cams", cams_key, self.cams)
        if options.cams:
            given_maps = [
                [p.name, p.stat().st_size, p.stat().st_mtime_ns]
                for p in sorted(options.cams.glob("*.np?"))
            ]
            cams_key = stage_key("cams", [given_maps, configs.cams.bad, ids], [data])
            training, make_cams = [], Step("cams", cams_key, self.import_cams)
        stages = self.refinement().steps(cams_key, _result)
        refining = [Step(name, key, partial(work, key)) for name, key, work in stages]
        refine_key = refining[-1].key
        from_classifier = self.start.source == "classifier"
        steps: list[Step] = []
        if options.supervision in ("weak", "both"):
            steps += [*training, make_cams, *refining, *self._segmenting("segment", [refine_key])]
        elif from_classifier:
            steps += training
        if options.supervision in ("full", "both"):
            truth = self.dataset.mask_fingerprint(self.training)
            steps += self._segmenting(
                "segment_full", [data, truth, classify_key if from_classifier else data]
            )
        names = [step.name for step in steps]
        if options.until in names:
            last = max(i for i, name in enumerate(names) if name.startswith(options.until))
            return steps[: last + 1]
        return steps if options.until in STAGES[3:] else []

    def fit(self, say: Callable[[str], None]) -> None:
        """Run what is not done yet."""
        with self.run.lock(), terminated():
            launch(self.options.device)
            check_images(self.images())
            self.preflight.raise_errors()
            self._describe()
            steps = self.steps()
            for step in steps:
                say(f"{step.name}: {self.run.standing(step.name, step.key)}")
            for step in steps:
                if not self.run.done(step.name, step.key):
                    self.key = step.key
                    step.work()
                    wait_for_all()
        if rank() == 0 and self.options.until in ("evaluate", "report"):
            current_evaluation(self.run.path)
            if self.options.until == "report":
                say(f"report: {write_report(self.run.path)}")

    def _describe(self) -> None:
        options, dataset = self.options, self.dataset
        self.run.describe(
            seed=options.seed,
            method=self.made_by,
            backbone=options.backbone,
            supervision=self.supervision,
            segmenter=self.configs.segment.network,
            segmenter_supervision=self.start.supervision(self.supervision),
            weights={"path": str(self.weights), "sha256": self.loaded.sha256}
            if self.loaded
            else None,
            train_list=self.train_list,
            val_list=self.val_list,
            data=data_entry(dataset, self.preflight),
            config={
                f.name: knobs.as_dict(getattr(self.configs, f.name))
                for f in dataclasses.fields(self.configs)
            },
        )

    def _identity(self, method_config: Any = None) -> dict[str, Any]:
        return {
            "method": self.made_by,
            "method_config": knobs.as_dict(method_config or self.configs.method),
            "backbone": self.options.backbone,
            "backbone_knobs": self.backbone_knobs,
            "classes": list(self.dataset.classes),
            "initial": self.supervision,
        }

    def _expected(self) -> dict[str, Any]:
        return {k: v for k, v in self._identity().items() if k in ("method", "backbone", "classes")}

    def prepare(self, part: Preparation) -> None:
        """Do what the method needs before its training, in a stage of its own."""
        shop = Workshop(
            run=self.run.path,
            dataset=self.dataset,
            records=list({r.id: r for r in self.tagged}.values()),
            validation=self.validation,
            config=self.configs.method,
            classify=self.configs.classify,
            seed=self.options.seed,
            device=self.options.device,
            build=self._fresh,
            train=self._train,
        )
        with self.run.stage(part.name, self.key) as stage:
            part.work(shop, stage)

    def classify(self) -> None:
        """Train the classifier, or take the given one."""
        config, subcategories, after = self.configs.method, None, None
        if self.preparations:
            last = self.preparations[-1]
            subcategories = Subcategories.read(self.run.path / last.name / SUBCATEGORIES)
            config = dataclasses.replace(config, subcategories=subcategories.counts)
            after = last.name if last.continues else None
        with self.run.stage("classify", self.key) as stage:
            self._train(self._fresh(config, after), stage, subcategories, self.classifier)

    def _fresh(self, method_config: Any, after: str | None = None) -> Method:
        """The method on its initial weights, or on those of the stage ``after``. Heads are drawn
        from the seed.
        """
        step_rng(self.options.seed, 0)
        classes = len(self.dataset.classes)
        method = classify.build(
            self.options.method, method_config, self.options.backbone, self.backbone_knobs, classes
        )
        if self.weights:
            load_start(method, self.weights)
        if after:
            _, state = classify.read_weights(self.run.path / after / "model.pt", self._expected())
            # Clusters are numbered anew each round: the head that tells them apart is not worth
            # keeping.
            method.load_state_dict(
                {k: v for k, v in state.items() if "subcategory" not in k}, strict=False
            )
        return method

    def _train(
        self,
        method: Method,
        stage: Stage,
        subcategories: Subcategories | None,
        given: Path | None = None,
    ) -> Method:
        """``model.pt`` of the stage, trained where it is not there yet, or taken from a file that
        is ``given``.
        """
        path, name = stage.folder / "model.pt", stage.folder.name
        config = getattr(method, "config", self.configs.method)
        if given:
            load_classifier(method, given, self.dataset.classes)
            classify.save(stage.folder, method, self._identity(config))
            stage.outputs.update(count=1, weights="model.pt", taken_from=str(given))
        elif not path.exists():
            classify.classify(
                method,
                self.dataset,
                self.tagged if subcategories else self.taught,
                self.validation,
                self.configs.classify,
                stage,
                Metrics(self.run.path / "metrics.csv", name),
                self.options.seed,
                self._identity(config),
                self.options.device,
                subcategories,
            )
        return classify.load(path, self._expected())

    def cams(self) -> None:
        """Write the maps of every training and measured image."""
        name, protocol = cams.protocol_of(
            self.configs.cams, self.options.backbone, self.options.method
        )
        method = classify.load(self.run.path / "classify" / "model.pt", self._expected())
        with self.run.stage("cams", self.key) as stage:
            cams.make_cams(
                method, self.images(), stage, protocol, self.configs.cams, self.options.device
            )
            stage.metrics.update(protocol=name, scales=list(protocol.views.scales))
            stage.metrics.update(min_cells=self.configs.cams.min_cells)

    def import_cams(self) -> None:
        """Take the maps from the given folder."""
        assert self.options.cams is not None
        with self.run.stage("cams", self.key) as stage:
            if rank() == 0:
                import_cams(
                    self.dataset,
                    self.images(),
                    self.options.cams,
                    stage,
                    self.configs.cams.bad,
                    progress=True,
                )
                stage.metrics.update(protocol=f"as in {self.options.cams}", scales=[])

    def refinement(self) -> Refinement:
        """How maps become masks."""
        return Refinement(
            run=self.run,
            dataset=self.dataset,
            training=self.training,
            images=self.images(),
            config=self.configs.refine,
            affinity=self.configs.affinity,
            irn=self.configs.irn,
            network=[self.options.backbone, self.sha, self.options.seed],
            backbone=self._backbone,
            identity=self._expected(),
            seed=self.options.seed,
            device=self.options.device,
            given=self.configs.checkpoint,
        )

    def _backbone(self, options: dict[str, Any], init: str) -> Backbone:
        """A backbone on the weights that ``init`` names: ``weights``, ``classifier``, ``auto``, or
        random for ``none``.
        """
        if self.options.backbone == "resnet38":
            options = {}
        backbone = build_backbone(self.options.backbone, **options)
        if init != "none":
            self._start(backbone, init)
        return backbone

    def _start(self, backbone: Backbone, init: str) -> None:
        if init == "classifier" and self.options.cams:
            raise ConfigError("init=classifier, and --cams brings no classifier", "init=weights")
        if init == "classifier" or (init == "auto" and self.weights is None):
            backbone.load_state_dict(self._trained_backbone().state_dict())
        elif self.weights:
            load_backbone(backbone, self.weights)

    def _find_start(self) -> Start:
        """What the segmenter starts from; its knobs that are left to the weights are decided
        here.
        """
        if self.options.until not in STAGES[3:]:
            return Start("random")
        start = find_start(
            self.configs.segment,
            self.options.backbone,
            self.weights,
            self.options.segmenter_weights,
            len(self.dataset.classes),
        )
        decided = dataclasses.replace(self.configs.segment, **dict(start.knobs))
        self.configs = dataclasses.replace(self.configs, segment=decided)
        return start

    def _segmenting(self, name: str, inputs: list[str]) -> list[Step]:
        stages = Segmentation(
            run=self.run,
            dataset=self.dataset,
            train_list=self.train_list,
            training=self.training,
            measured=self.measured_lists(),
            config=self.configs.segment,
            start=self.start,
            backbone=self.options.backbone,
            classifier=self._trained_backbone,
            identity=self._identity(),
            seed=self.options.seed,
            device=self.options.device,
        )
        return [
            Step(stage, key, partial(work, key))
            for stage, key, work in stages.steps(name, inputs, _result)
        ]

    def _trained_backbone(self) -> Backbone:
        return classify.load(self.run.path / "classify" / "model.pt", self._expected()).backbone


def _result(config: Any) -> dict[str, Any]:
    return {k: v for k, v in knobs.as_dict(config).items() if k not in OPERATION}
