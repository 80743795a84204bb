"""Time a step of the training loop against the plainest correct one: torchvision's modules, NCHW,
float32, unfolded norms.

Both sides start from the same weights and see the same batches; steps alternate, and medians are
compared. The loss after the last step shows whether the faster side still learns the same. A short
real training over JPEG files then measures how long the loop waits for the loader.

Prints for each side the milliseconds per step, the ratio and the losses, and for the real training
the images a second and the share of time spent waiting.

    python bench/train_step.py --backbone mobilenet_v2 --batch 16 --size 256 --rounds 18
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import command_line
import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn

from trainer.data.dataset import Record
from trainer.data.loader import Samples
from trainer.methods import recipes
from trainer.methods.base import Method
from trainer.methods.cam import Config
from trainer.methods.registry import build_method
from trainer.methods.samples import make_sample
from trainer.run import Metrics
from trainer.training.devices import Precision
from trainer.training.loop import Trainer
from trainer.training.memory import keep_freed_memory
from trainer.training.optimiser import Training, make_optimizer, set_rate
from trainer.weights.loading import load_backbone

CLASSES = 20
TURN = 4
RATE = 1e-3
Batch = tuple[torch.Tensor, torch.Tensor]


class Plain(nn.Module):
    """Torchvision's body and a linear head: the plainest classifier."""

    def __init__(self, name: str, ours: Method) -> None:
        super().__init__()
        body = getattr(torchvision.models, name)(weights=None)
        heads = ("avgpool", "fc", "classifier")
        self.body = nn.Sequential(
            OrderedDict((k, m) for k, m in body.named_children() if k not in heads)
        )
        head: Any = ours.classifier
        convs = {k: m for k, m in ours.backbone.named_modules() if isinstance(m, nn.Conv2d)}
        for key, module in self.body.named_modules():
            if isinstance(module, nn.Conv2d):
                twin = convs[key]
                module.stride, module.dilation, module.padding = (
                    twin.stride,
                    twin.dilation,
                    twin.padding,
                )
        self.body.load_state_dict(ours.backbone.state_dict())
        self.classifier = nn.Conv2d(head.in_channels, CLASSES, 1, bias=False)
        self.classifier.load_state_dict(head.state_dict())
        trained = {key for key, p in ours.backbone.named_parameters() if p.requires_grad}
        for key, parameter in self.body.named_parameters():
            parameter.requires_grad_(key in trained)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = self.body(images).mean((2, 3), keepdim=True)
        logits: torch.Tensor = self.classifier(pooled)
        return logits.flatten(1)


def build(backbone: str, images: torch.Tensor, weights: Path | None = None) -> Method:
    """Our classifier for images of this size. Without a weight file its batch norms get the
    statistics of these images, as trained ones would.
    """
    torch.manual_seed(0)
    config = recipes.make_config("small", {"crop": images.shape[-1]})
    method = build_method(
        "cam", Config(), backbone, recipes.backbone_knobs(backbone, config), CLASSES
    )
    if weights:
        load_backbone(method.backbone, weights)
        return method
    for norm in (m for m in method.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.Module.train(norm)
        norm.momentum = None
    with torch.no_grad():
        method(images)
    return method.train()


def our_step(
    method: Method,
    folder: Path,
    batch: int,
    precision: Precision = "fp32",
    steps: int = 10_000,
    lr: float = RATE,
    device: str = "cpu",
) -> Callable[[Batch], float]:
    """A step of our loop, which returns its loss. Steps beyond ``steps`` learn nothing."""
    config = Training(
        epochs=steps,
        batch=batch,
        lr=lr,
        momentum=0.9,
        weight_decay=1e-4,
        precision=precision,
        workers=0,
    )
    records = [Record(str(n), folder, ()) for n in range(batch)]
    groups = method.param_groups(config.lr, config.weight_decay)
    samples: Any = Samples(records, lambda record, rng: {}, 0)
    metrics = Metrics(folder / "metrics.csv", "bench")
    trainer = Trainer(
        method, type(method).loss, groups, samples, config, folder, metrics, 0, device
    )
    method.train()

    def step(pair: Batch) -> float:
        trainer.update({"id": ["x"], "image": pair[0], "tags": pair[1]})
        trainer.step += 1
        return float(trainer.unlogged.pop()[2]["cls"])

    return step


def plain_step(plain: Plain, steps: int, lr: float) -> Callable[[Batch], float]:
    config = Training(lr=lr, momentum=0.9, weight_decay=1e-4)
    free = [p for p in plain.body.parameters() if p.requires_grad]
    optimizer = make_optimizer(
        [
            {"params": free, "lr": config.lr, "weight_decay": 1e-4},
            {
                "params": list(plain.classifier.parameters()),
                "lr": 10 * config.lr,
                "weight_decay": 1e-4,
            },
        ],
        config,
    )
    plain.eval()
    number = 0

    def step(batch: Batch) -> float:
        nonlocal number
        set_rate(optimizer, number, steps, config)
        number += 1
        optimizer.zero_grad()
        loss = nn.functional.multilabel_soft_margin_loss(plain(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def batches(batch: int, size: int, count: int = 4) -> list[Batch]:
    """Blurred noise with tags that depend on it."""
    draw = torch.Generator().manual_seed(0)
    batch_list = []
    for _ in range(count):
        coarse = torch.randn(batch, 3, 8, 8, generator=draw)
        images = nn.functional.interpolate(coarse, (size, size), mode="bicubic")
        tags = (coarse.flatten(1)[:, :CLASSES] > 1).float()
        batch_list.append((images.contiguous(memory_format=torch.channels_last), tags))
    return batch_list


def compare(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Time all sides in turns and print a line for each; returns its figures by side."""
    data = batches(args.batch, args.size)
    method = build(args.backbone, data[0][0], args.weights)
    plain = Plain(args.backbone, method).to(args.device)
    data = [(images.to(args.device), tags.to(args.device)) for images, tags in data]
    # The plain side gets NCHW, the layout that a plain loader makes.
    plain_data = [(images.contiguous(), tags) for images, tags in data]
    sides: dict[str, tuple[Callable[[Batch], float], list[Batch]]] = {
        "plain eager fp32": (plain_step(plain, args.steps, args.lr), plain_data)
    }
    for precision in ("fp32", "auto"):
        own = folder / precision
        own.mkdir()
        step = our_step(
            *(copy.deepcopy(method), own, args.batch),
            precision,
            args.steps,
            args.lr,
            args.device,
        )
        sides[f"this loop, {precision}"] = (step, data)
    times: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    for first in range(0, args.steps, TURN):
        for name, (step, own_data) in sides.items():
            keep_freed_memory(name != "plain eager fp32")
            for k in range(first, min(first + TURN, args.steps)):
                start = time.perf_counter()
                losses[name].append(step(own_data[k % len(own_data)]))
                # Not the first step of a turn: the allocator still has the other side's layout.
                if k >= args.warmup and k > first:
                    times[name].append(time.perf_counter() - start)
    base = statistics.median(times["plain eager fp32"])
    reference = np.array(losses["plain eager fp32"])
    figures = {}
    for name in sides:
        median = statistics.median(times[name])
        gap = float(np.abs(np.array(losses[name]) / reference - 1).max())
        print(
            f"{name:18s} {1000 * median:9.1f} ms/step   ratio {base / median:5.2f}   loss"
            f" {losses[name][0]:.5f} -> {losses[name][-1]:.5f}   largest relative difference"
            f" {gap:.1e}"
        )
        figures[name] = {"ms": 1000 * median, "ratio": base / median, "loss_gap": gap}
    return figures


def waiting(args: argparse.Namespace, folder: Path) -> None:
    """A real training over JPEG files of 500x375."""
    records = []
    for n in range(4 * args.batch):
        coarse = np.random.default_rng(n).integers(0, 256, (47, 63, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        image.save(folder / f"{n}.jpg", quality=92)
        records.append(Record(str(n), folder / f"{n}.jpg", (n % CLASSES,)))
    config = recipes.make_config(
        "small",
        {
            "crop": args.size,
            "batch": args.batch,
            "epochs": 5,
            "workers": args.workers,
            "validate": False,
        },
    )
    images, _ = batches(args.batch, args.size, 1)[0]
    method = build(args.backbone, images, args.weights)
    make = partial(make_sample, config=config, num_classes=CLASSES)
    groups = method.param_groups(config.lr, config.weight_decay, config.new_factor)
    metrics = Metrics(folder / "metrics.csv", "classify")
    trainer = Trainer(
        method,
        type(method).loss,
        groups,
        Samples(records, make, 0),
        config,
        folder,
        metrics,
        0,
        args.device,
    )
    trainer.run()
    last = trainer.last
    print(
        f"real loop, steps 11 to 20: {last['images_per_second']:.1f} images/s,"
        f" {100 * last['data_wait']:.1f} % of the time waiting for data"
    )


def main() -> None:
    args = arguments()
    print(
        f"{args.backbone}, batch {args.batch}, {args.size}x{args.size}, {torch.get_num_threads()}"
        " threads"
    )
    with tempfile.TemporaryDirectory() as folder:
        compare(args, Path(folder))
    if not args.no_loader:
        with tempfile.TemporaryDirectory() as folder:
            waiting(args, Path(folder))


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The options in ``words``, or in the command line."""
    parser = command_line.parser(__doc__)
    command_line.add_backbone(parser, "network of both sides")
    parser.add_argument("--weights", type=Path, help="a weight file; without one, random weights")
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--size", type=int, default=256, help="side of the images")
    parser.add_argument("--rounds", type=int, default=18, help="steps of each side; medians count")
    parser.add_argument(
        "--warmup", type=int, default=2, help="steps of each side that are not timed"
    )
    parser.add_argument("--lr", type=float, default=RATE, help="learning rate")
    parser.add_argument(
        "--workers",
        type=int,
        default=-1,
        help="loader processes of the real training; -1 chooses by cores",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--no-loader", action="store_true", help="only the steps")
    args = parser.parse_args(words)
    args.steps = args.rounds + args.warmup
    return args


if __name__ == "__main__":
    main()
