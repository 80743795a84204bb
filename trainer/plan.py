"""What ``fit`` is going to do: options -> the stages of a run, in order, each with its key."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from trainer.adaptation import Choice, choice_of_masks, choices, looks_of
from trainer.checks.preflight import Preflight, preflight
from trainer.context import RANDOM, Context, Stage
from trainer.data.dataset import Dataset, Record
from trainer.data.formats.opening import open_dataset
from trainer.data.sampling import epoch_length
from trainer.data.tables.corrections import corrected, extended, read_corrections
from trainer.data.tables.training_masks import LIST, choose_masks
from trainer.errors import ConfigError, DataError, nearest
from trainer.methods.recipes import recipe as recipe_of
from trainer.methods.registry import build_method, declaration
from trainer.nets import build_backbone
from trainer.options import STAGES, Configs, Options, is_small, make_configs, merged
from trainer.outputs import check_folder
from trainer.refine.crf import PRESETS
from trainer.run import Run, is_run, stage_key
from trainer.segmenters.start import choose_source, find_start
from trainer.small_maps import about_maps
from trainer.stages import (
    cams,
    classify,
    evaluate,
    import_cams,
    prepare,
    refine,
    scores,
    segment,
    sure_masks,
    walk,
)
from trainer.training.optimiser import Training
from trainer.weights.cache import find_weights
from trainer.weights.released import load_classifier, load_start


@dataclass(frozen=True)
class Plan:
    """The stages of one run.

    Attributes:
        context: the facts that all of them share.
        stages: in the order of work.
        keys: stage name -> hash of everything that its outputs depend on.
        until: where ``--until`` stops, one of ``STAGES``.
        reasons: why knobs follow the data, a sentence each.
    """

    context: Context
    stages: tuple[Stage, ...]
    keys: dict[str, str]
    until: str
    reasons: tuple[str, ...] = ()

    @cached_property
    def preflight(self) -> Preflight:
        """What this run trains and measures on, and what is wrong with it."""
        context = self.context
        full = any(stage.name == segment.FULL for stage in self.stages)
        reads_masks = full or self.until in ("evaluate", "report")
        lists, scored = context.measured_lists, context.reported_lists if self.scores else ()
        return preflight(context.dataset, context.train_list, lists, full, reads_masks, scored)

    @property
    def scores(self) -> bool:
        """Whether the classifier scores the images of all reported lists."""
        return any(stage.name == "scores" for stage in self.stages)


def make_plan(options: Options) -> Plan:
    """Choose the stages, open the data and the weights, and derive the keys. Trains nothing.

    Raises:
        UserError: anything in ``options`` that cannot be, so that the run ends before it starts.
    """
    if options.until not in STAGES:
        raise ConfigError(f"there is no stage {options.until!r}", nearest(options.until, STAGES))
    _check_masks(options)
    configs = make_configs(options)
    # What can fail at once comes first: names, then the data, then weights that may be fetched.
    stages = choose_stages(options, configs)
    context = open_context(options, configs)
    context, reasons = adapt(context, options, stages)
    stages = choose_stages(options, context.configs, context.masks is not None)
    check_trainings(context, stages)
    context = with_weights(context, options, stages)
    if any(stage.name == "walk" for stage in stages):
        walk.check_network(context)
    if options.reaches("evaluate"):
        stages += evaluation_stages(context, stages)
    return Plan(context, tuple(stages), stage_keys(context, stages), options.until, reasons)


def _check_masks(options: Options) -> None:
    """Refuse true masks beside pseudo masks where there are no pseudo masks.

    Raises:
        ConfigError: as said.
    """
    if options.supervision == "full" and (options.masks or options.corrections):
        name = "--masks" if options.masks else "--corrections"
        raise ConfigError(
            f"{name} with --supervision full, which trains on every true mask",
            "--supervision weak or both",
            "for a training on a few true masks alone: --supervision full --train-list LIST",
        )


def choose_stages(options: Options, configs: Configs, has_masks: bool = False) -> list[Stage]:
    """The stages that were asked for, up to ``--until``. Looks at names and knobs only.

    Args:
        options: as typed.
        configs: knobs.
        has_masks: whether some true masks train beside the pseudo masks.

    Raises:
        ConfigError: a preparation of the method that cannot be, or a network that would have
            nothing to start from.
    """
    parts = declaration(options.method).preparations(configs.method)
    parts = () if options.classifier else parts
    training = [*prepare.stages(parts), classify.stage(parts)]
    stages: list[Stage] = []
    if options.supervision != "full":
        stages += _until_masks(options, configs, training)
    if options.reaches("segment"):
        stages += _segmenters(options, configs, training, has_masks)
    if options.cams and any(stage.needs == "classifier" for stage in stages):
        raise ConfigError(
            "--cams brings no classifier whose weights could start a network", "--weights FILE"
        )
    return stages


def _until_masks(options: Options, configs: Configs, training: list[Stage]) -> list[Stage]:
    """From tags, or from the maps of ``--cams``, to pseudo masks."""
    walking = walk.stages(configs, options.pretrained)
    parts = {
        "classify": [] if options.cams else training,
        "cams": [import_cams.stage() if options.cams else cams.stage()],
        "refine": [*walking, refine.stage(walking[-1].name if walking else "cams")],
    }
    return [stage for part, group in parts.items() if options.reaches(part) for stage in group]


def _segmenters(
    options: Options, configs: Configs, training: list[Stage], has_masks: bool
) -> list[Stage]:
    """The segmenter of pseudo masks, that of true masks, or both."""
    source = choose_source(
        configs.segment, options.backbone, options.pretrained, options.segmenter_weights
    )
    stages: list[Stage] = []
    if options.supervision != "full":
        sure = [sure_masks.stage()] if has_masks else []
        before = (sure_masks.NAME if has_masks else "refine",)
        stages += [*sure, *segment.stages("segment", before, source, configs.segment.rounds)]
    elif source == "classifier":
        stages += training
    if options.supervision != "weak":
        inputs = ("data", "classify") if source == "classifier" else ("data",)
        stages += segment.stages(segment.FULL, inputs, source)
    return stages


def evaluation_stages(context: Context, stages: list[Stage]) -> list[Stage]:
    """Scores of the plan's classifier, and the figures where there is something to measure."""
    scoring = [scores.stage()] if any(stage.name == "classify" for stage in stages) else []
    # Stages of earlier commands are measured too.
    names = {*context.run.complete, *(stage.name for stage in (*stages, *scoring))}
    measurable = context.measured_lists or "scores" in names
    return [*scoring, evaluate.stage(names)] if measurable else []


def open_context(options: Options, configs: Configs) -> Context:
    """Open the run and the data.

    Raises:
        UserError: one of them cannot be used.
    """
    dataset, run = open_dataset(options.data, config=configs.data), Run(options.run)
    _check_place(options, configs, dataset, run)
    folder = options.corrections
    corrections = read_corrections(folder, dataset) if folder else None
    train_list = options.train_list or dataset.default_list("train") or "all"
    if corrections:
        dataset = corrected(extended(dataset, corrections, train_list), corrections.tags)
    val_list = options.val_list or dataset.default_list("val")
    masks = choose_masks(dataset, options.masks, corrections, train_list, val_list)
    if masks:
        dataset = replace(dataset, withheld=masks.ids)
    context = Context(
        run=run,
        dataset=dataset,
        masks=masks,
        corrections=corrections,
        configs=configs,
        method=options.method,
        backbone=options.backbone,
        seed=options.seed,
        device=options.device,
        train_list=train_list,
        val_list=val_list,
        cams_folder=options.cams,
    )
    if not context.tagged:
        raise DataError(
            f"no image of list {context.train_list!r} has a tag",
            "tags to learn from",
            f"wsss-trainer check {options.data}",
        )
    return context


def _check_place(options: Options, configs: Configs, dataset: Dataset, run: Run) -> None:
    """Refuse a run folder that what is read lies in or around, or that holds something else.

    Raises:
        TargetError: as said.
    """
    # The first process checks; by now it may have written there.
    if run.second:
        return
    data = options.data.resolve()
    texts = (options.weights, options.segmenter_weights, configs.checkpoint)
    files = [
        options.cams,
        options.classifier,
        options.corrections,
        configs.refine.segments_folder,
        *(Path(text) for text in texts if text),
    ]
    inputs = [*dataset.places(), *(path for path in files if path)]
    beside = data.parent / "runs" / data.name
    shortest = min(os.path.relpath(beside), str(beside), key=len)
    check_folder(options.run, is_run, inputs, "--run", f"--run {shortest}")


def adapt(
    context: Context, options: Options, stages: list[Stage]
) -> tuple[Context, tuple[str, ...]]:
    """The context with the knobs that the data and the true masks that train ask for, and why.
    What was typed stays.
    """
    own = _choices_of_data(context, options, stages)
    layer = merged([choice.layer for choice in own])
    configs = make_configs(options, layer)
    if context.masks:
        choice = choice_of_masks(options, configs, context.training, len(context.masks.ids))
        # A teacher is for pseudo masks: the upper bound stays as it is without the few masks.
        plain = {knob: getattr(configs.segment, knob) for knob in choice.layer["segment"]}
        context = replace(context, full_segment=plain)
        configs, own = make_configs(options, layer, choice.layer), [*own, choice]
    elif configs.refine.crf == LIST:
        raise ConfigError(
            "refine.crf=masks, and no true masks train",
            f"a preset: {', '.join(PRESETS)}",
            "--masks LIST or --corrections DIR brings masks",
        )
    return replace(context, configs=configs), tuple(choice.reason for choice in own)


def _choices_of_data(context: Context, options: Options, stages: list[Stage]) -> list[Choice]:
    recipe = options.recipe or recipe_of(options.backbone, options.weights)
    if not is_small(recipe):
        return []
    looks = None
    trains = any(stage.needs == "weights" for stage in stages)
    if recipe == "small" and options.pretrained and trains:
        # A backbone that cannot be is refused before its weights are fetched.
        network = build_backbone(options.backbone)
        file = find_weights(options.backbone, options.weights)
        manifest = context.run.manifest
        looks = looks_of(manifest, options.backbone, network, file, context.training)
    own = choices(options, context.configs, context.training, looks)
    longer, layers = looks.longer if looks else None, [choice.layer for choice in own]
    small = about_maps(options, context.configs, context.training, longer, layers)
    return [*own, *(Choice(*pair) for pair in small)]


def stage_keys(context: Context, stages: list[Stage]) -> dict[str, str]:
    """The key of every stage. Stages that the run has from an earlier plan keep theirs: they are
    measured too.
    """
    keys = context.run.complete | {"data": stage_key("data", context.dataset.fingerprint(), [])}
    for stage in stages:
        inputs = [keys[name] for name in stage.inputs]
        keys[stage.name] = stage_key(stage.name, stage.knobs(context), inputs)
    return keys


def check_trainings(context: Context, stages: list[Stage]) -> None:
    """Look at every training that is to come, before the first of them.

    Raises:
        ConfigError: a training that cannot be, see ``Training.check_plan``.
    """
    configs = context.configs
    trainings: dict[str, tuple[Training, list[Record]]] = {
        "classify": (configs.classify, context.taught),
        "affinity": (configs.affinity, context.tagged),
        "irn": (configs.irn, context.tagged),
        "segment_train": (configs.segment, context.training),
        f"{segment.FULL}_train": (configs.segment, context.training),
    }
    for stage in stages:
        if stage.name in trainings:
            config, records = trainings[stage.name]
            config.check_plan(epoch_length(records, config.negatives, config.balance))


def with_weights(context: Context, options: Options, stages: list[Stage]) -> Context:
    """The context with the weights that its stages start from, each of them tried: an impossible
    backbone, knob or weight file ends the run before it starts.
    """
    configs, classes = context.configs, context.dataset.classes
    # A file that is named is read even where no stage needs it: its mistake shows now.
    wants = options.weights or any(stage.needs == "weights" for stage in stages)
    # Before its weights, which may be fetched: a backbone that cannot be needs none.
    method = build_method(
        options.method, configs.method, options.backbone, context.backbone_knobs, len(classes)
    )
    file = None
    if options.pretrained and wants:
        file = find_weights(options.backbone, options.weights)
    classifier = (
        load_classifier(method, options.classifier, classes) if options.classifier else None
    )
    initial, start = load_start(method, file) if file else None, RANDOM
    if options.reaches("segment"):
        weights = options.segmenter_weights
        start = find_start(configs.segment, options.backbone, file, weights, len(classes))
        # Knobs left to the weights are decided by them.
        segmenter = replace(configs.segment, **dict(start.knobs))
        configs = replace(configs, segment=segmenter)
    return replace(context, configs=configs, initial=initial, classifier=classifier, start=start)
