"""Knobs of a training, its optimiser and its schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch

from trainer.config import Knobs, Range
from trainer.errors import ConfigError
from trainer.ranks import world_size
from trainer.training.devices import Precision


@dataclass(frozen=True)
class Training(Knobs):
    """Knobs of a training.

    Attributes:
        epochs: passes over the training list.
        updates: number of updates in all, whatever the length of the list; 0 counts ``epochs``.
        batch: images per update, over all devices and accumulated parts.
        negatives: largest share of images without a tag in a batch: negatives, and images with
            unknown classes alone. Every epoch draws each of the other images; 1 draws these as
            often.
        balance: draw images of rare classes more often, so that all classes come up alike.
        accumulate: parts of a batch, each with its own forward and backward pass.
        optimizer: ``sgd``, ``adam``, or ``adamw``, whose weight decay is apart from the gradient.
        lr: learning rate of the backbone.
        new_factor: learning rate of new layers, as a multiple of ``lr``.
        weight_decay: L2 penalty.
        momentum: a number, or ``code``: the released trainers pass the weight decay to SGD as its
            momentum by accident, so their momentum is nearly 0. Published figures were made that
            way.
        schedule: ``poly``; ``poly_held``: changes every 10 updates only (deeplab-pytorch);
            ``poly_open``: T is one more than the number of updates (SEAM's segmenter); ``cosine``
            to 0 after the warm-up; ``cosine_epochs``: the same with epochs for updates, a warm-up
            of 500 and 0 at 1000, as MVA's teacher was trained by accident.
        poly_power: exponent of the schedule lr * (1 - t/T)^power.
        warmup: updates over which the rate rises linearly at the start; 0 as published.
        ema: decay of the averaged weights, which are the final ones; 0 is off.
        precision: ``fp32``, ``bf16``, ``fp16``, or ``auto``: bf16 where the processor has units for
            it.
        clip: largest gradient norm; 0 is off, as published.
        workers: loader processes; -1 chooses by cores.
        checkpoint_minutes: minutes between checkpoints.
        tensorboard: also write TensorBoard events.
    """

    section: ClassVar[str] = "classify"

    epochs: Annotated[int, Range(1, 10_000)] = 15
    updates: Annotated[int, Range(0, 10_000_000)] = 0
    batch: Annotated[int, Range(1, 4096)] = 16
    negatives: Annotated[float, Range(0, 1)] = 0.5
    balance: bool = False
    accumulate: Annotated[int, Range(1, 4096)] = 1
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Annotated[float, Range(0, 100, above=True)] = 0.1
    new_factor: Annotated[float, Range(0, 1000)] = 10.0
    weight_decay: Annotated[float, Range(0, 1)] = 5e-4
    momentum: Annotated[float | Literal["code"], Range(0, 1, below=True)] = "code"
    schedule: Literal["poly", "poly_held", "poly_open", "cosine", "cosine_epochs"] = "poly"
    poly_power: Annotated[float, Range(0, 10)] = 0.9
    warmup: Annotated[int, Range(0, 10_000_000)] = 0
    ema: Annotated[float, Range(0, 1, below=True)] = 0.0
    precision: Precision = "auto"
    clip: Annotated[float, Range(0, 1e6)] = 0.0
    workers: Annotated[int, Range(-1, 128)] = -1
    checkpoint_minutes: Annotated[float, Range(0, 10_080)] = 5.0
    tensorboard: bool = False

    def total(self, images: int) -> int:
        """Updates of a training whose epochs draw so many images."""
        return self.updates or max(1, images // self.batch) * self.epochs

    def check_processes(self, images: int) -> None:
        """Check that the processes of torchrun can share each batch of a training.

        Args:
            images: of the training.

        Raises:
            ConfigError: they cannot.
        """
        count = world_size()
        if images and images < count:
            raise ConfigError(
                f"{count} processes and {images} images to train on",
                "an image for each process",
                "fewer processes (torchrun --nproc_per_node)",
            )
        if rest := self.batch % count:
            sizes = [size for size in (self.batch - rest, self.batch - rest + count) if size]
            raise ConfigError(
                f"{self.section}.batch={self.batch} images for {count} processes",
                "a batch that is divided evenly",
                f"--set {self.section}.batch={' or '.join(map(str, sizes))}",
            )

    def check_plan(self, images: int) -> None:
        """Check the plan of a training whose epochs draw so many images.

        Raises:
            ConfigError: the warm-up is as long as the training, or longer; or see
                ``check_processes``.
        """
        self.check_processes(images)
        total = self.total(images)
        if self.warmup and self.warmup >= total and self.schedule != "cosine_epochs":
            raise ConfigError(
                f"{self.section}.warmup={self.warmup} of {total} updates",
                "a warm-up that is shorter than the training",
            )


def poly(step: int, total: int, power: float = 0.9) -> float:
    """Factor of the learning rate at update ``step`` (from 0): (1 - t/T)^power, held at its last
    value after T.
    """
    return float((1 - min(step, total - 1) / total) ** power)


def held_poly(step: int, total: int, power: float = 0.9, every: int = 10) -> float:
    """Poly that changes every ``every`` updates only, as in deeplab-pytorch."""
    return poly(step - step % every, total, power)


def open_poly(step: int, total: int, power: float = 0.9) -> float:
    """(1 - t/(T+1))^power, as SEAM's released segmenter."""
    return poly(step, total + 1, power)


def make_optimizer(groups: list[dict[str, Any]], config: Training) -> torch.optim.Optimizer:
    """SGD (no Nesterov, no dampening), Adam or AdamW. Each group has its own ``lr`` and
    ``weight_decay``.
    """
    if config.optimizer == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(groups, lr=config.lr)
    elif config.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=config.lr)
    else:
        # The accident of the released trainers, see the knob.
        momentum = config.weight_decay if config.momentum == "code" else config.momentum
        optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=momentum)
    for group in optimizer.param_groups:
        # Rates are computed from this one, never from the last rate, so that a resumed run has the
        # same rates.
        group["base_lr"] = group["lr"]
    return optimizer


def cosine(step: int, total: int, warmup: int) -> float:
    """Factor at update ``step``: linear from 0 over ``warmup`` updates, then half a cosine to 0 at
    ``total``.
    """
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))


def set_rate(optimizer: torch.optim.Optimizer, step: int, total: int, config: Training) -> float:
    """Set every group's rate for update ``step``; returns the first one."""
    if config.schedule == "cosine":
        factor = cosine(step, total, config.warmup)
    elif config.schedule == "cosine_epochs":
        # The released code's numbers of updates, counted in epochs.
        factor = cosine(step * config.epochs // total, 1000, 500)
    else:
        curve = {"poly_held": held_poly, "poly_open": open_poly}.get(config.schedule, poly)
        factor = curve(step, total, config.poly_power)
        if config.warmup and step < config.warmup:
            # From 1 on: a rate of 0 would waste the first update.
            factor *= (step + 1) / config.warmup
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])
