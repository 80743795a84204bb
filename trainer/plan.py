"""What ``fit`` is going to do: options -> the stages of a run, in order, each with its key."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.context import Context, Stage
from trainer.data.dataset import Dataset
from trainer.data.formats.opening import open_dataset
from trainer.errors import ConfigError, DataError, nearest
from trainer.methods.preparation import preparations
from trainer.methods.registry import build_method, method_module
from trainer.options import STAGES, Configs, Options, check_plans, make_configs
from trainer.outputs import check_folder
from trainer.run import Run, is_run, stage_key
from trainer.segmenters.start import find_start
from trainer.stages import cams, classify, import_cams, prepare, refine, segment, walk
from trainer.weights.cache import find_weights
from trainer.weights.released import load_classifier, load_start


@dataclass(frozen=True)
class Plan:
    """The stages of one run.

    Attributes:
        context: the facts that all of them share.
        stages: in the order of work.
        keys: stage name -> hash of everything that its outputs depend on.
    """

    context: Context
    stages: tuple[Stage, ...]
    keys: dict[str, str]


def make_plan(options: Options) -> Plan:
    """Choose the stages, open the data and the weights, and derive the keys. Trains nothing.

    Raises:
        UserError: anything in ``options`` that cannot be, so that the run ends before it starts.
    """
    if options.until not in STAGES:
        raise ConfigError(f"there is no stage {options.until!r}", nearest(options.until, STAGES))
    configs = make_configs(options)
    context = open_context(options, configs)
    stages = choose_stages(context)
    _check_start(context, stages)
    keys = {"data": stage_key("data", context.dataset.fingerprint(), [])}
    for stage in stages:
        inputs = [keys[name] for name in stage.inputs]
        keys[stage.name] = stage_key(stage.name, stage.knobs(context), inputs)
    return Plan(context, tuple(stages), keys)


def choose_stages(context: Context) -> list[Stage]:
    """The stages that were asked for, up to ``--until``.

    Raises:
        ConfigError: a preparation of the method that cannot be.
    """
    options, configs = context.options, context.configs
    parts = preparations(method_module(options.method), configs.method)
    parts = [] if options.classifier else parts
    training = [*prepare.stages(parts), classify.stage(parts)]
    mapping = [import_cams.stage()] if options.cams else [*training, cams.stage()]
    walking = walk.stages(configs)
    refining = [*walking, refine.stage(walking[-1].name if walking else "cams")]
    from_classifier = context.start.source == "classifier"
    stages: list[Stage] = []
    if options.supervision in ("weak", "both"):
        stages += [*mapping, *refining, *segment.stages("segment", ("refine",))]
    elif from_classifier:
        stages += training
    if options.supervision in ("full", "both"):
        inputs = ("data", "classify") if from_classifier else ("data",)
        stages += segment.stages(segment.FULL, inputs)
    ends = [i for i, stage in enumerate(stages) if stage.name.startswith(options.until)]
    if options.until in [stage.name for stage in stages]:
        return stages[: max(ends) + 1]
    return stages if options.until in STAGES[3:] else []


def open_context(options: Options, configs: Configs) -> Context:
    """Open the run, the data and the weights, and try each of them.

    Raises:
        UserError: one of them cannot be used.
    """
    dataset, run = open_dataset(options.data, config=configs.data), Run(options.run)
    _check_place(options, configs, dataset, run)
    context = Context(
        run=run,
        dataset=dataset,
        options=options,
        configs=configs,
        train_list=options.train_list or dataset.default_list("train") or "all",
        val_list=options.val_list or dataset.default_list("val"),
    )
    if not context.tagged:
        raise DataError(
            f"no image of list {context.train_list!r} has a tag",
            "tags to learn from",
            f"wsss-trainer check {options.data}",
        )
    check_plans(options, configs, len(context.tagged), len(context.training))
    return _with_weights(context)


def _with_weights(context: Context) -> Context:
    """The context with the weights that its stages start from, each of them tried: an impossible
    backbone, knob or weight file ends the run before it starts.
    """
    options, configs = context.options, context.configs
    classes = context.dataset.classes
    file = find_weights(options.backbone, options.weights) if _wants_weights(context) else None
    method = build_method(
        options.method, configs.method, options.backbone, context.backbone_knobs, len(classes)
    )
    given = options.classifier
    classifier = load_classifier(method, given, classes) if given else None
    initial = load_start(method, file) if file else None
    start = context.start
    if options.until in STAGES[3:]:
        weights = options.segmenter_weights
        start = find_start(configs.segment, options.backbone, file, weights, len(classes))
        # Knobs left to the weights are decided by them.
        decided = replace(configs.segment, **dict(start.knobs))
        configs = replace(configs, segment=decided)
    return replace(context, configs=configs, initial=initial, classifier=classifier, start=start)


def _wants_weights(context: Context) -> bool:
    """Whether ImageNet weights of the backbone are needed: what is given trained needs none, and
    some networks have none that can be fetched.
    """
    options = context.options
    if options.weights is not None:
        return options.weights != "none"
    if options.classifier is not None:
        return False
    return options.cams is None or _trains_walk(context) or options.until in STAGES[3:]


def _trains_walk(context: Context) -> bool:
    """Whether the refinement trains a network."""
    return context.options.until not in STAGES[:2] and any(
        stage.name == context.configs.refine.refine for stage in walk.stages(context.configs)
    )


def _check_start(context: Context, stages: list[Stage]) -> None:
    """Refuse networks that would have nothing to start from, and try a given one.

    Raises:
        UserError: as said.
    """
    from_classifier = _trains_walk(context) or context.start.source == "classifier"
    if context.options.cams and context.initial is None and from_classifier:
        raise ConfigError(
            "--cams brings no classifier whose weights could start a network", "--weights FILE"
        )
    if context.configs.checkpoint and any(stage.name == "walk" for stage in stages):
        walk.trained_network(context)


def _check_place(options: Options, configs: Configs, dataset: Dataset, run: Run) -> None:
    """Refuse a run folder that what is read lies in or around, or that holds something else.

    Raises:
        TargetError: as said.
    """
    if run.second:
        return
    data = options.data.resolve()
    texts = (options.weights, options.segmenter_weights, configs.checkpoint)
    given = [options.cams, options.classifier, *(Path(text) for text in texts if text)]
    inputs = [*dataset.places(), *(path for path in given if path)]
    beside = data.parent / "runs" / data.name
    shortest = min(os.path.relpath(beside), str(beside), key=len)
    check_folder(options.run, is_run, inputs, "--run", f"--run {shortest}")
