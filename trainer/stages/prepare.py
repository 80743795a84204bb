"""Stages before ``classify``: the rounds of clustering or the teacher that some methods need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from trainer.context import Context, Stage, results_of
from trainer.data.dataset import Record
from trainer.evaluation.threshold import calibration, choose
from trainer.maps.protocols import key_knobs, protocol_of
from trainer.methods.base import Method
from trainer.methods.preparation import Preparation, Workshop
from trainer.ranks import rank
from trainer.run import Output
from trainer.stages.cams import make_cams
from trainer.stages.classify import fresh_method, train_method, training_facts
from trainer.stages.irn import make_labels
from trainer.training.collectives import wait_for_all

PLAIN = "cam"
"""The method of a first training, whose maps are made by the backbone's usual protocol."""


def stages(parts: Sequence[Preparation]) -> list[Stage]:
    """The preparations of a method in order, each a stage of its own."""
    names = ["data", *(part.name for part in parts)]
    return [
        Stage(part.name, (before,), partial(_knobs, part), partial(_work, part), needs="weights")
        for before, part in zip(names, parts)
    ]


def _knobs(part: Preparation, context: Context) -> Any:
    training = results_of(context.configs.classify) if part.trains else None
    return [training_facts(context), part.knobs, training, *(_maps(context) if part.maps else ())]


def _maps(context: Context) -> list[Any]:
    """What labels of maps depend on, besides the classifier and the two background scores."""
    configs = context.configs
    refine = (configs.refine.calibrate, configs.refine.pixels, configs.irn.crf)
    return [protocol_of(configs.cams, context.backbone, PLAIN)[1], key_knobs(configs.cams), refine]


def _work(part: Preparation, context: Context, output: Output) -> None:
    workshop = Workshop(
        run=context.run.path,
        dataset=context.dataset,
        records=_records(context),
        validation=context.validation,
        config=context.configs.method,
        classify=context.configs.classify,
        seed=context.seed,
        device=context.device,
        build=partial(fresh_method, context),
        train=partial(train_method, context),
        label=partial(_label, context),
    )
    part.work(workshop, output)


def _records(context: Context) -> list[Record]:
    # A list may name an image twice, and clusters count each once.
    return list({record.id: record for record in context.tagged}.values())


def _label(
    context: Context, method: Method, output: Output, foreground: float, background: float
) -> None:
    """See ``Workshop.label``."""
    configs, records = context.configs, _records(context)
    maps = Output(output.folder / "maps")
    _, protocol = protocol_of(configs.cams, context.backbone, PLAIN)
    make_cams(method, records, maps, protocol, configs.cams, context.device)
    wait_for_all()
    # The first process fills every core with workers; the others would only compete.
    if rank() == 0:
        power = 1.0
        if configs.refine.calibrate:
            threshold = choose("label_free", 0.0, context.dataset, records, maps.folder)
            power = calibration(threshold.value)
        make_labels(
            context.dataset,
            records,
            maps.folder,
            output.folder / "labels",
            replace(configs.irn, foreground=foreground, background=background),
            power=power,
            progress=True,
            pixels=configs.refine.pixels,
        )
        output.outputs.update(count=len(records))
        output.metrics.update(power=round(power, 4))
    wait_for_all()
