"""Methods that train twice: first as ``cam``, then from those weights with layers of their own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from torch import nn

from trainer.config import Range, as_dict
from trainer.errors import ConfigError
from trainer.files import file_sha256
from trainer.methods.linear import LinearConfig
from trainer.methods.preparation import Preparation, Prepared, Workshop
from trainer.methods.recipes import ClassifyConfig
from trainer.run import Output

FIRST = "first"
"""The stage of the first training, and its folder."""


@dataclass(frozen=True)
class SecondConfig(LinearConfig):
    """Knobs of a method that trains twice, besides those of ``cam``.

    Attributes:
        second: train a second time; ``off`` is ``cam``.
        second_lr: learning rate of the second training, as a multiple of ``classify.lr``.
        second_length: updates of the second training, as a multiple of those of the first.
        first: a trained classifier that replaces the first training: ``model.pt`` of a run of
            ``cam``, or a released file such as ``res50_cam.pth``.
    """

    second: bool = True
    second_lr: Annotated[float, Range(0, 100, above=True)] = 1.0
    second_length: Annotated[float, Range(0, 100, above=True)] = 1.0
    first: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first and not Path(self.first).is_file():
            raise ConfigError(
                f"first={self.first} is not a file",
                "weights of a classifier",
                "leave it out to train one",
            )


def first_training(config: SecondConfig) -> list[Preparation]:
    """The stage that trains ``cam``, or takes it from a file; none without a second training."""
    if not config.second:
        return []
    of_cam = as_dict(LinearConfig())
    knobs = {name: value for name, value in as_dict(config).items() if name in of_cam}
    if config.first:
        # The file's content is its identity: the same path may hold another file tomorrow.
        knobs["sha256"] = file_sha256(Path(config.first))
    return [Preparation(FIRST, knobs, True, _train_first)]


def second_training(config: SecondConfig, run: Path) -> Prepared:
    """The second training from the weights of the first."""
    return Prepared(config, weights_from=FIRST, training=partial(shortened, config))


def shortened(config: SecondConfig, classify: ClassifyConfig) -> ClassifyConfig:
    """The knobs of the second training, from those of the first."""

    def scaled(count: int) -> int:
        # 0 is off, and what is on stays on.
        return max(1, round(count * config.second_length)) if count else 0

    return replace(
        classify,
        lr=classify.lr * config.second_lr,
        epochs=scaled(classify.epochs),
        updates=scaled(classify.updates),
        warmup=scaled(classify.warmup),
    )


def continued_groups(
    method: nn.Module, layers: nn.Module, lr: float, weight_decay: float, new_factor: float
) -> list[dict[str, Any]]:
    """Optimiser groups of a second training: the new ``layers`` x ``new_factor``, all others x1."""
    new = list(layers.parameters())
    ids = {id(p) for p in new}
    old = [p for p in method.parameters() if p.requires_grad and id(p) not in ids]
    return [
        {"name": "backbone", "params": old, "lr": lr, "weight_decay": weight_decay},
        {"name": "new", "params": new, "lr": lr * new_factor, "weight_decay": weight_decay},
    ]


def _train_first(shop: Workshop, stage: Output) -> None:
    config: SecondConfig = shop.config
    file = Path(config.first) if config.first else None
    start = Prepared(replace(config, second=False))
    shop.train(shop.build(start), stage, start, file)
