"""A tiny training with everything random in it, run by ``test_loop`` in its own process and in
others.

python loop_job.py FOLDER: end the process in the middle of update 8, as a power cut would.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from trainer.data.dataset import Record
from trainer.data.loader import Batch, Samples
from trainer.data.transforms import Rng
from trainer.run import Metrics
from trainer.training.loop import Trainer
from trainer.training.optimiser import Training

RECORDS = [Record(f"r{n}", Path(f"r{n}.png"), (n % 2,)) for n in range(22)]
BASE = {"epochs": 3, "batch": 5, "lr": 0.05, "momentum": 0.9, "precision": "fp32", "workers": 0}
ALL = Training(**BASE, accumulate=2, ema=0.9, checkpoint_minutes=0.0)  # type: ignore[arg-type]
TOTAL = 12
OnStep = Callable[[int], None]


class Net(nn.Module):
    """Convolutions with batch norm and both kinds of dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout2d(0.3),
            nn.Conv2d(8, 6, 3),
        )
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(6, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))  # type: ignore[no-any-return]


def sample(record: Record, rng: Rng) -> dict[str, torch.Tensor]:
    tags = torch.zeros(2)
    tags[list(record.tags)] = 1
    image = torch.from_numpy(rng.normal(size=(8, 9, 3)).astype("float32")).permute(2, 0, 1)
    return {"image": image, "tags": tags}


def noisy_loss(
    module: nn.Module, batch: Batch, rng: np.random.Generator
) -> dict[str, torch.Tensor]:
    images, tags = batch["image"], batch["tags"]
    noise = torch.from_numpy(rng.normal(size=tuple(images.shape)).astype("float32"))
    logits = module(images + 0.1 * noise)
    return {
        "cls": nn.functional.binary_cross_entropy_with_logits(logits, tags),
        "size": 1e-3 * logits.square().mean(),
    }


def job(
    folder: Path, config: Training, before_loss: OnStep = lambda step: None, seed: int = 3
) -> dict[str, torch.Tensor]:
    """Final weights. ``before_loss`` is called with the number of loss calls before."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    net = Net()
    calls = 0

    def loss(*arguments: object) -> dict[str, torch.Tensor]:
        nonlocal calls
        before_loss(calls)
        calls += 1
        return noisy_loss(*arguments)  # type: ignore[arg-type]

    groups = [
        {
            "params": list(net.body.parameters()),
            "lr": config.lr,
            "weight_decay": config.weight_decay,
        },
        {"params": list(net.head.parameters()), "lr": 10 * config.lr, "weight_decay": 0.0},
    ]
    samples, metrics = Samples(RECORDS, sample, seed), Metrics(folder / "metrics.csv", "classify")
    Trainer(net, loss, groups, samples, config, folder, metrics, seed, "cpu").run()
    return net.state_dict()


def whole(folder: Path) -> None:
    """Train to the end, from where a killed process stopped, and write ``final.pt``; slowly, so
    that a kill meets every part of it.
    """
    state = job(folder, ALL, lambda call: time.sleep(0.02))
    torch.save(state, folder / "final.pt")


def main(folder: Path) -> None:
    def end(call: int) -> None:
        if call == 8 * ALL.accumulate:
            os.kill(os.getpid(), signal.SIGKILL)

    job(folder, ALL, end)


if __name__ == "__main__":
    main(Path(sys.argv[1]))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Byte for byte."""
    return list(one) == list(other) and all(
        one[k].contiguous().numpy().tobytes() == other[k].contiguous().numpy().tobytes()
        for k in one
    )
