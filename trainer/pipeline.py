"""``fit``: the stages of a run, in order. Each reads and writes files of the run directory only."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from trainer import cams, classify, segment
from trainer import config as knobs
from trainer.data.dataset import Dataset, Record, image_size, open_dataset
from trainer.devices import launch, rank, wait_for_all
from trainer.errors import ConfigError, DataError, nearest
from trainer.interrupt import Interrupted
from trainer.loop import step_rng
from trainer.measure import current_evaluation, measured_lists
from trainer.nets.deeplab import AsppSegmenter
from trainer.nets.weights import LoadReport, find_weights, load_backbone
from trainer.options import STAGES, Options, make_configs
from trainer.pool import raise_together
from trainer.refine.pseudo_masks import make_pseudo_masks
from trainer.refine.threshold import choose
from trainer.report import write_report
from trainer.run import Metrics, Run, stage_key

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
            raise ConfigError(f"there is no stage {options.until!r}", nearest(options.until, STAGES))
        self.options, self.configs = options, make_configs(options)
        self.dataset = open_dataset(options.data)
        self.run = Run(options.run)
        self.train_list = options.train_list or _default_list(self.dataset, "train") or "all"
        self.val_list = options.val_list or _default_list(self.dataset, "val")
        self.training = self.dataset.subset(self.train_list)
        self.validation = self.dataset.subset(self.val_list) if self.val_list else []
        self.tagged = [record for record in self.training if record.tags]
        if not self.tagged:
            raise DataError(
                f"no image of list {self.train_list!r} has a tag",
                "tags to learn from",
                f"wsss-trainer check {options.data}",
            )
        # Built now, so that an impossible backbone, knob or weight file ends the run before it starts.
        self.weights = None if options.weights == "none" else find_weights(options.backbone, _path(options.weights))
        self.backbone_knobs = classify.backbone_knobs(options.backbone, self.configs.classify)
        self.method = classify.build(
            options.method, self.configs.method, options.backbone, self.backbone_knobs, len(self.dataset.classes)
        )
        self.loaded = load_backbone(self.method.backbone, self.weights) if self.weights else None

    @property
    def supervision(self) -> str:
        """Which labels made the initial weights."""
        return self.loaded.supervision if self.loaded else "none (from scratch)"

    def measured_lists(self) -> list[str]:
        """Lists with true masks that figures are given for."""
        return measured_lists(self.dataset, self.train_list, self.val_list)

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
        sha = self.loaded.sha256 if self.loaded else "none"
        ids = [record.id for record in self.images()]
        trained = [options.method, options.backbone, sha, self.train_list, options.seed]
        classify_key = stage_key("classify", [trained, _result(configs.method), _result(configs.classify)], [data])
        protocol = cams.protocol_of(configs.cams, options.backbone, options.method)[0]
        cams_key = stage_key("cams", [protocol, configs.cams.scales, configs.cams.precision, ids], [classify_key])
        refine_key = stage_key("refine", _result(configs.refine), [cams_key])
        segment_config = [options.backbone, sha, self.train_list, options.seed, _result(configs.segment)]
        segment_key = stage_key("segment", segment_config, [refine_key])
        start = classify_key if self._starts_from_classifier() else data
        full_key = stage_key("segment_full", segment_config, [data, start])
        steps: list[Step] = []
        if options.supervision in ("weak", "both"):
            steps += [
                Step("classify", classify_key, self.classify),
                Step("cams", cams_key, self.cams),
                Step("refine", refine_key, self.refine),
                Step("segment", segment_key, partial(self.segment, "segment")),
            ]
        elif self._starts_from_classifier():
            steps.append(Step("classify", classify_key, self.classify))
        if options.supervision in ("full", "both"):
            steps.append(Step("segment_full", full_key, partial(self.segment, "segment_full")))
        order = [*STAGES[:4], "segment_full"]
        limit = order.index(options.until) if options.until in STAGES[:4] else len(order)
        steps = [s for s in steps if order.index(s.name) <= limit or (s.name == "segment_full" and limit == 3)]
        return steps

    def fit(self, say: Callable[[str], None]) -> None:
        """Run what is not done yet."""
        with self.run.lock(), _terminated():
            launch(self.options.device)
            self._describe()
            steps = self.steps()
            self._check_images()
            for step in steps:
                self._announce(step, say)
            for step in steps:
                if not self.run.done(step.name, step.key):
                    self.key = step.key
                    step.work()
                    wait_for_all()
        if rank() == 0 and self.options.until in ("evaluate", "report"):
            current_evaluation(self.run.path)
            if self.options.until == "report":
                say(f"report: {write_report(self.run.path)}")

    def _check_images(self) -> None:
        """Find missing files and files that are no images now, all at once, instead of one an hour."""
        problems = []
        records = self.images()
        for record in records:
            try:
                image_size(record.image)
            except DataError as error:
                problems.append(error)
        raise_together(problems, len(records), "images cannot be used")

    def _announce(self, step: Step, say: Callable[[str], None]) -> None:
        if self.run.done(step.name, step.key):
            say(f"{step.name}: done, kept")
        elif self.run.is_stale(step.name, step.key):
            say(f"{step.name}: settings or inputs changed since it was made, will be made again")
        else:
            say(f"{step.name}: to do")

    def _describe(self) -> None:
        options, dataset = self.options, self.dataset
        self.run.describe(
            seed=options.seed, method=options.method, backbone=options.backbone, supervision=self.supervision,
            weights={"path": str(self.weights), "sha256": self.loaded.sha256} if self.loaded else None,
            train_list=self.train_list, val_list=self.val_list,
            data={
                "path": str(options.data.resolve()), "format": dataset.format, "fingerprint": dataset.fingerprint(),
                "classes": list(dataset.classes), "lists": {k: len(v) for k, v in dataset.lists.items()},
                "tags_from": dataset.tags_from,
            },
            config={f.name: knobs.as_dict(getattr(self.configs, f.name)) for f in dataclasses.fields(self.configs)},
        )  # fmt: skip

    def _identity(self) -> dict[str, Any]:
        return {
            "method": self.options.method, "method_config": knobs.as_dict(self.configs.method),
            "backbone": self.options.backbone, "backbone_knobs": self.backbone_knobs, "classes": list(self.dataset.classes),
        }  # fmt: skip

    def _expected(self) -> dict[str, Any]:
        return {k: v for k, v in self._identity().items() if k in ("method", "backbone", "classes")}

    def classify(self) -> None:
        """Train the classifier."""
        with self.run.stage("classify", self.key) as stage:
            # Heads are drawn from the seed, whatever was drawn before.
            step_rng(self.options.seed, 0)
            fresh = classify.build(
                self.options.method,
                self.configs.method,
                self.options.backbone,
                self.backbone_knobs,
                len(self.dataset.classes),
            )
            self._initialise(fresh.backbone)
            metrics = Metrics(self.run.path / "metrics.csv", "classify")
            if (stage.folder / "model.pt").exists():
                return
            classify.classify(
                fresh, self.dataset, self.tagged, self.validation, self.configs.classify, stage, metrics,
                self.options.seed, self._identity(), self.options.device,
            )  # fmt: skip

    def cams(self) -> None:
        """Write the maps of every training and measured image."""
        name, protocol = cams.protocol_of(self.configs.cams, self.options.backbone, self.options.method)
        method = classify.load(self.run.path / "classify" / "model.pt", self._expected())
        with self.run.stage("cams", self.key) as stage:
            cams.make_cams(method, self.images(), stage, protocol, self.configs.cams, self.options.device)
            stage.metrics.update(protocol=name, scales=list(protocol.views.scales))

    def refine(self) -> None:
        """Choose the threshold and write the pseudo masks."""
        config, folder = self.configs.refine, self.run.path / "cams"
        with self.run.stage("refine", self.key, folder="masks") as stage:
            if rank() > 0:
                return
            threshold = choose(
                config.threshold_from,
                config.threshold,
                self.dataset,
                self.training,
                folder,
                for_masks=True,
                progress=True,
            )
            summary = make_pseudo_masks(
                self.dataset, self.images(), folder, stage.folder, config, threshold.value, progress=True
            )
            stage.outputs.update(count=summary.pop("count"))
            stage.metrics.update(summary, threshold_from=threshold.source, threshold_detail=threshold.detail)

    def segment(self, name: str) -> None:
        """Train the segmenter on pseudo masks (``segment``) or on true masks (``segment_full``), then predict."""
        config, dataset = self.configs.segment, self.dataset
        read = (
            dataset.read_mask
            if name == "segment_full"
            else partial(segment.read_pseudo_mask, folder=self.run.path / "masks")
        )
        records = [r for r in self.training if name == "segment" or dataset.has_mask(r)]
        if not records:
            raise DataError(f"no image of list {self.train_list!r} has a true mask", "masks for --supervision full")
        identity = {
            **self._identity(),
            **_segment_identity(config),
            "supervision": "true masks" if name == "segment_full" else "tags",
        }
        with self.run.stage(name, self.key) as stage:
            if not (stage.folder / "model.pt").exists():
                metrics = Metrics(self.run.path / "metrics.csv", name)
                module = self._fresh_segmenter()
                segment.segment(
                    module, records, read, config, stage, metrics, self.options.seed, identity, self.options.device
                )
            module = segment.load(stage.folder / "model.pt", self._expected())
            for measured in self.measured_lists():
                folder = stage.folder / "predictions" / measured
                segment.predict(
                    module, dataset.subset(measured), folder, config, f"{name} {measured}", self.options.device
                )

    def _fresh_segmenter(self) -> AsppSegmenter:
        step_rng(self.options.seed, 0)
        module = segment.build(self.options.backbone, self.configs.segment, len(self.dataset.classes))
        if self._starts_from_classifier():
            trained = classify.load(self.run.path / "classify" / "model.pt", self._expected())
            module.backbone.load_state_dict(trained.backbone.state_dict())
        else:
            self._initialise(module.backbone)
        return module

    def _starts_from_classifier(self) -> bool:
        init = self.configs.segment.init
        return init == "classifier" or (init == "auto" and self.loaded is None)

    def _initialise(self, backbone: torch.nn.Module) -> LoadReport | None:
        return load_backbone(backbone, self.weights) if self.weights else None


def _segment_identity(config: segment.SegmentConfig) -> dict[str, Any]:
    return {"output_stride": config.output_stride, "bn": config.bn, "rates": list(config.rates)}


def _result(config: Any) -> dict[str, Any]:
    return {k: v for k, v in knobs.as_dict(config).items() if k not in OPERATION}


def _default_list(dataset: Dataset, use: str) -> str | None:
    """``train_aug`` or ``train``, ``val``, or the first list called like it (COCO's ``train2017``)."""
    alike = sorted(name for name in dataset.lists if name.startswith(use))
    return next((name for name in (f"{use}_aug", use, *alike) if name in dataset.lists), None)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


class _terminated:
    """SIGTERM outside of training: per-image files are whole or absent, so there is nothing to save."""

    def __enter__(self) -> None:
        self.old = signal.signal(signal.SIGTERM, self._stop)

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGTERM, self.old)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        raise Interrupted("stopped; run the same command to go on")
