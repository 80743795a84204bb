"""Stage ``classify``: train a method's classifier from tags."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from trainer.data.dataset import Dataset, Record
from trainer.data.loader import Samples
from trainer.methods.base import Method
from trainer.methods.recipes import ClassifyConfig
from trainer.methods.samples import make_sample, method_loss, prepare_superpixels
from trainer.methods.subcategories import Subcategories
from trainer.run import Metrics, Stage
from trainer.training.inference import Budget, Views, finite, inference, iterate_views
from trainer.training.loop import train
from trainer.training.model_file import save_model


def classify(
    module: Method,
    dataset: Dataset,
    records: Sequence[Record],
    validation: Sequence[Record],
    config: ClassifyConfig,
    stage: Stage,
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
        prepare_superpixels(records, module.segments, config, stage) if module.segments else None
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
        stage.folder,
        metrics,
        seed,
        metrics.stage,
        validate if wanted else None,
        device,
    )
    save_model(stage.folder, module, identity)
    stage.metrics.update({k: float(f"{v:.6g}") for k, v in last.items()})
    stage.outputs.update(count=1, weights="model.pt", images=len(records))


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
