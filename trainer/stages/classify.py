"""Stage ``classify``: train a method's classifier from tags, or take a trained one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trainer.context import Context, Stage, results_of
from trainer.data.dataset import Dataset, Record
from trainer.data.loader import Samples
from trainer.methods.base import Method
from trainer.methods.inputs import NO_INPUTS, Input
from trainer.methods.preparation import Preparation, Prepared
from trainer.methods.recipes import ClassifyConfig
from trainer.methods.registry import build_method, declaration, load_method
from trainer.methods.samples import make_sample
from trainer.ranks import rank
from trainer.run import Metrics, Output
from trainer.training.batch_norms import adapt
from trainer.training.collectives import wait_for_all
from trainer.training.inference import Budget, image_logits
from trainer.training.loop import Trainer, step_rng
from trainer.training.model_file import read_model, save_model
from trainer.weights.released import load_classifier, load_start


def stage(parts: Sequence[Preparation]) -> Stage:
    """The stage after the method's own preparations ``parts``."""
    before = parts[-1].name if parts else "data"
    return Stage("classify", (before,), _knobs, partial(_work, bool(parts)), needs="weights")


def training_facts(context: Context) -> list[Any]:
    """What every training of the method depends on: network, initial weights, images, seed."""
    facts: list[Any] = [context.method, context.backbone, context.initial_sha256]
    # Trained weights are the same whatever the seed; 0 is what runs of earlier versions say mostly.
    facts += [context.train_list, 0 if context.classifier else context.seed]
    # Named only where they take part, so that the keys of all other runs stay.
    return facts if context.taught == context.tagged else [*facts, "untagged too"]


def _knobs(context: Context) -> Any:
    return [
        training_facts(context),
        results_of(context.configs.method),
        results_of(context.configs.classify),
        *([context.classifier.sha256] if context.classifier else []),
    ]


def _work(after_preparations: bool, context: Context, output: Output) -> None:
    start = Prepared(context.configs.method)
    if after_preparations:
        start = declaration(context.method).prepared(start.config, context.run.path)
    method = fresh_method(context, start)
    file = context.classifier.path if context.classifier else None
    train_method(context, method, output, start, file)


def fresh_method(context: Context, start: Prepared) -> Method:
    """The method on its initial weights, or on those of an earlier stage. Heads are drawn from the
    seed.
    """
    # Before the method is built, which draws its heads from torch's global generator.
    step_rng(context.seed, 0)
    method = build_method(
        context.method,
        start.config,
        context.backbone,
        context.backbone_knobs,
        len(context.dataset.classes),
    )
    if context.initial:
        load_start(method, context.initial.path)
    if start.weights_from:
        _, state = read_model(context.model(start.weights_from), context.expected)
        method.continue_from(state)
    return method


def train_method(
    context: Context,
    method: Method,
    output: Output,
    start: Prepared,
    file: Path | None = None,
) -> Method:
    """The method on the weights of ``model.pt`` in the folder of ``output``, in evaluation mode.

    They come from ``file``, or from a training where ``model.pt`` is not there yet.

    Args:
        context: the run.
        method: on its initial weights.
        output: of the stage.
        start: what preparations left for this training.
        file: trained weights to take instead of a training.
    """
    path, identity = output.folder / "model.pt", context.identity(method.config)
    if file:
        load_classifier(method, file, context.dataset.classes)
        save_model(output.folder, method, identity)
        output.outputs.update(count=1, weights="model.pt", taken_from=str(file))
    elif not path.exists():
        every = {**method.needs(context.run.path), **start.inputs}
        tagged_only = any(i.tagged_only for i in every.values())
        classify(
            method,
            context.dataset,
            context.tagged if tagged_only else context.taught,
            context.validation,
            start.training(context.configs.classify),
            output,
            Metrics(context.run.path / "metrics.csv", output.folder.name),
            context.seed,
            identity,
            context.device,
            every,
            context.configs.cams.side,
        )
    return load_method(path, context.expected)


def trained_method(context: Context) -> Method:
    """The run's classifier, in evaluation mode.

    Raises:
        WeightsError: missing, damaged, or of another run.
    """
    return load_method(context.model("classify"), context.expected)


def classify(
    method: Method,
    dataset: Dataset,
    records: Sequence[Record],
    validation: Sequence[Record],
    config: ClassifyConfig,
    output: Output,
    metrics: Metrics,
    seed: int,
    identity: dict[str, Any],
    device: str = "auto",
    inputs: Mapping[str, Input] = NO_INPUTS,
    side: int = 0,
) -> None:
    """Train on ``records`` and write ``model.pt``. ``identity`` says what the weights are, for
    ``load_method``; ``side`` is that of the maps.
    """
    workers = None if config.workers < 0 else config.workers
    # The first process fills every core with workers; the others would only compete.
    if rank() == 0:
        for entry in inputs.values():
            if entry.make:
                entry.make(records, workers=workers)
    # Every process reads files that the first one has just made.
    wait_for_all()
    make = partial(make_sample, config=config, num_classes=len(dataset.classes), inputs=inputs)
    samples = Samples(records, make, seed)
    adapt(method.backbone, config.bn, samples)
    trainer = Trainer(
        method,
        type(method).loss,
        method.param_groups(config.lr, config.weight_decay, config.new_factor),
        samples,
        config,
        output.folder,
        metrics,
        seed,
        device,
    )

    def validate(epoch: int) -> dict[str, float]:
        value = mean_average_precision(method, dataset, validation, config, device, side)
        return {"val_map": value}

    measurable = config.validate and any(record.tags for record in validation)
    trainer.run(validate if measurable else None)
    trainer.save(output, identity)


def mean_average_precision(
    method: Method,
    dataset: Dataset,
    records: Sequence[Record],
    config: ClassifyConfig,
    device: str = "auto",
    side: int = 0,
) -> float:
    """Mean average precision over the classes that occur, 0..1, each image at its own size or with
    a longer side of ``side``.

    Images of which nobody said whether they show a class do not count for it.
    """
    from sklearn.metrics import average_precision_score

    precision = config.precision if config.precision != "fp16" else "auto"
    budget = Budget(images=16, side=side)
    logits = image_logits(method, records, precision, device, budget=budget)
    values = []
    for truth, scores in zip(dataset.tag_matrix(records).T, logits.T, strict=True):
        known = np.isfinite(truth)
        # Average precision is undefined for a class without images.
        if truth[known].any():
            values.append(average_precision_score(truth[known], scores[known]))
    return float(np.mean(values))
