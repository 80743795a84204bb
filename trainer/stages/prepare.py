"""Stages before ``classify``: the rounds of clustering or the teacher that some methods need."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from trainer.context import Context, Stage, results_of
from trainer.methods.preparation import Preparation, Workshop
from trainer.run import Output
from trainer.stages.classify import fresh_method, train_method, training_facts


def stages(parts: Sequence[Preparation]) -> list[Stage]:
    """The preparations of a method in order, each a stage of its own."""
    names = ["data", *(part.name for part in parts)]
    return [
        Stage(part.name, (before,), partial(_knobs, part), partial(_work, part), needs="weights")
        for before, part in zip(names, parts)
    ]


def _knobs(part: Preparation, context: Context) -> Any:
    training = results_of(context.configs.classify) if part.trains else None
    return [training_facts(context), part.knobs, training]


def _work(part: Preparation, context: Context, output: Output) -> None:
    workshop = Workshop(
        run=context.run.path,
        dataset=context.dataset,
        # A list may name an image twice, and clusters count each once.
        records=list({record.id: record for record in context.tagged}.values()),
        validation=context.validation,
        config=context.configs.method,
        classify=context.configs.classify,
        seed=context.seed,
        device=context.device,
        build=partial(fresh_method, context),
        train=partial(train_method, context),
    )
    part.work(workshop, output)
