"""Stage ``classify``: train a method's classifier from tags, or take a trained one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trainer.context import Context, Stage, results_of
from trainer.data.dataset import Dataset, Record
from trainer.data.loader import Samples
from trainer.methods.base import Method
from trainer.methods.preparation import SUBCATEGORIES, Preparation
from trainer.methods.recipes import ClassifyConfig
from trainer.methods.registry import build_method, load_method
from trainer.methods.samples import make_sample, method_loss, prepare_superpixels
from trainer.methods.subcategories import Subcategories
from trainer.run import Metrics, Output
from trainer.training.inference import Budget, Views, finite, inference, iterate_views
from trainer.training.loop import step_rng, train
from trainer.training.model_file import read_model, save_model
from trainer.weights.released import load_classifier, load_start


def stage(parts: Sequence[Preparation]) -> Stage:
    """The stage after the method's own preparations ``parts``."""
    last = parts[-1] if parts else None
    inputs = (last.name if last else "data",)
    return Stage("classify", inputs, _knobs, partial(_work, last), needs="weights")


def training_facts(context: Context) -> list[Any]:
    """What every training of the method depends on: network, initial weights, images, seed."""
    facts: list[Any] = [context.method, context.backbone, context.initial_sha256]
    facts += [context.train_list, context.seed]
    return facts if context.taught == context.tagged else [*facts, "untagged too"]


def _knobs(context: Context) -> Any:
    given = context.classifier
    return [
        training_facts(context),
        results_of(context.configs.method),
        results_of(context.configs.classify),
        *([given.sha256] if given else []),
    ]


def _work(last: Preparation | None, context: Context, output: Output) -> None:
    config, subcategories, after = context.configs.method, None, None
    if last:
        subcategories = Subcategories.read(context.run.path / last.name / SUBCATEGORIES)
        config = dataclasses.replace(config, subcategories=subcategories.counts)
        after = last.name if last.continues else None
    method = fresh_method(context, config, after)
    given = context.classifier
    train_method(context, method, output, subcategories, given.path if given else None)


def fresh_method(context: Context, method_config: Any, after: str | None = None) -> Method:
    """The method on its initial weights, or on those of the stage ``after``. Heads are drawn from
    the seed.
    """
    step_rng(context.seed, 0)
    method = build_method(
        context.method,
        method_config,
        context.backbone,
        context.backbone_knobs,
        len(context.dataset.classes),
    )
    if context.initial:
        load_start(method, context.initial.path)
    if after:
        _, state = read_model(context.model(after), context.expected)
        # Clusters are numbered anew each round: the head that tells them apart is not worth
        # keeping.
        method.load_state_dict(
            {k: v for k, v in state.items() if "subcategory" not in k}, strict=False
        )
    return method


def train_method(
    context: Context,
    method: Method,
    output: Output,
    subcategories: Subcategories | None = None,
    given: Path | None = None,
) -> Method:
    """``model.pt`` in the folder of ``output``: trained where it is not there yet, or taken from
    the file ``given``.
    """
    path, config = output.folder / "model.pt", getattr(method, "config", context.configs.method)
    if given:
        load_classifier(method, given, context.dataset.classes)
        save_model(output.folder, method, context.identity(config))
        output.outputs.update(count=1, weights="model.pt", taken_from=str(given))
    elif not path.exists():
        classify(
            method,
            context.dataset,
            context.tagged if subcategories else context.taught,
            context.validation,
            context.configs.classify,
            output,
            Metrics(context.run.path / "metrics.csv", output.folder.name),
            context.seed,
            context.identity(config),
            context.device,
            subcategories,
        )
    return load_method(path, context.expected)


def trained_method(context: Context) -> Method:
    """The run's classifier, in evaluation mode.

    Raises:
        WeightsError: missing, damaged, or of another run.
    """
    return load_method(context.model("classify"), context.expected)


def classify(
    module: Method,
    dataset: Dataset,
    records: Sequence[Record],
    validation: Sequence[Record],
    config: ClassifyConfig,
    output: Output,
    metrics: Metrics,
    seed: int,
    identity: dict[str, Any],
    device: str = "auto",
    subcategories: Subcategories | None = None,
) -> None:
    """Train on ``records`` and write ``model.pt``. ``identity`` says what the weights are, for
    ``load_method``.
    """
    superpixels = (
        prepare_superpixels(records, module.segments, config, output) if module.segments else None
    )
    make = partial(
        make_sample,
        config=config,
        num_classes=len(dataset.classes),
        superpixels=superpixels,
        subcategories=subcategories,
    )
    groups = module.param_groups(config.lr, config.weight_decay, config.new_factor)

    def validate(epoch: int) -> dict[str, float]:
        return {"val_map": mean_average_precision(module, dataset, validation, config, device)}

    wanted = config.validate and any(record.tags for record in validation)
    last = train(
        module,
        method_loss,
        groups,
        Samples(records, make, seed),
        config,
        output.folder,
        metrics,
        seed,
        metrics.stage,
        validate if wanted else None,
        device,
    )
    save_model(output.folder, module, identity)
    output.metrics.update({k: float(f"{v:.6g}") for k, v in last.items()})
    output.outputs.update(count=1, weights="model.pt", images=len(records))


def mean_average_precision(
    module: Method,
    dataset: Dataset,
    records: Sequence[Record],
    config: ClassifyConfig,
    device: str = "auto",
) -> float:
    """mAP over the classes that occur, each image at its own size, one scale."""
    from sklearn.metrics import average_precision_score

    scores: dict[str, np.ndarray] = {}
    with inference(
        module, config.precision if config.precision != "fp16" else "auto", device
    ) as target:
        for batch in iterate_views(records, Views(scales=(1.0,)), Budget(images=16), workers=0):
            logits = finite(module(batch.images[0].to(target)).float().cpu(), "scores").numpy()
            scores.update({record.id: row for record, row in zip(batch.records, logits)})
    truth = dataset.tag_matrix(records)
    table = np.stack([scores[record.id] for record in records])
    present = [k for k in range(truth.shape[1]) if truth[:, k].any()]
    return float(np.mean([average_precision_score(truth[:, k], table[:, k]) for k in present]))
