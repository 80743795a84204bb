"""Time a training step of each method as a multiple of a step of ``cam``.

Every method steps in turn on the same batch, forward, backward and update, in fp32. Passes count
the pixels that go through the backbone: SEAM's second view at 0.6 of the size counts 0.36.

Prints for each method the milliseconds per step, the multiple of ``cam``, the passes, and the
multiple per pass.

    python bench/methods.py --backbone mobilenet_v2 --batch 8 --size 224
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

import command_line
import numpy as np
import torch

from trainer.methods import recipes
from trainer.methods.base import Method
from trainer.methods.registry import build_method, method_classes, method_names
from trainer.training.memory import keep_freed_memory
from trainer.training.optimiser import Training, make_optimizer

CLASSES = 20


class Stepper:
    """One method with its optimiser; counts the pixels that its backbone sees."""

    def __init__(self, name: str, backbone: str, size: int, changes: dict[str, Any]) -> None:
        torch.manual_seed(0)
        config = recipes.make_config("small", {"crop": size})
        knobs = dataclasses.replace(method_classes(name)[1](), **changes)
        if hasattr(knobs, "subcategories"):
            knobs = dataclasses.replace(knobs, subcategories=(10,) * CLASSES)
        self.method: Method = build_method(
            name, knobs, backbone, recipes.backbone_knobs(backbone, config), CLASSES
        )
        self.method.train().to(memory_format=torch.channels_last)
        self.optimizer = make_optimizer(
            self.method.param_groups(1e-4, 1e-4), Training(momentum=0.9)
        )
        self.pixels = 0
        self.method.backbone.register_forward_pre_hook(self.count)
        self.times: list[float] = []

    def count(self, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.pixels += inputs[0].shape[0] * inputs[0].shape[2] * inputs[0].shape[3]

    def step(self, images: torch.Tensor, tags: torch.Tensor, seed: int) -> None:
        self.pixels = 0
        start = time.perf_counter()
        self.optimizer.zero_grad()
        # Squares of 16 pixels as super-pixels: their shape does not matter for the cost.
        rows, columns = (torch.arange(side) // 16 for side in images.shape[2:])
        squares = (1 + rows[:, None] * (columns[-1] + 1) + columns).expand(len(images), -1, -1)
        # amn's labels + 1, of every class; 0 is open.
        extra = {"segments": squares, "label": squares % (CLASSES + 2)}
        if hasattr(self.method.config, "subcategories"):
            extra["subcategories"] = tags.repeat_interleave(10, dim=1)
        batch = {"image": images, "tags": tags, **extra}
        terms = self.method.loss(batch, np.random.default_rng(seed))
        torch.stack(list(terms.values())).sum().backward()
        self.optimizer.step()
        self.times.append(time.perf_counter() - start)


def main() -> None:
    parser = command_line.parser(__doc__)
    command_line.add_backbone(parser, "network of every method")
    parser.add_argument("--batch", type=int, default=8, help="images per step")
    parser.add_argument("--size", type=int, default=224, help="side of the images")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each method; medians count")
    args = parser.parse_args()
    keep_freed_memory()
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(args.batch, 3, args.size, args.size, generator=draw).contiguous(
        memory_format=torch.channels_last
    )
    tags = (torch.rand(args.batch, CLASSES, generator=draw) > 0.9).float()
    steppers = {name: Stepper(name, args.backbone, args.size, {}) for name in method_names()}
    steppers["seam prcm=on"] = Stepper("seam", args.backbone, args.size, {"prcm": "on"})
    steppers["cpn superpixel"] = Stepper("cpn", args.backbone, args.size, {"patches": "superpixel"})
    for k in range(args.rounds + 2):
        for stepper in steppers.values():
            stepper.step(images, tags, k)
    base = statistics.median(steppers["cam"].times[2:])
    whole = images.shape[0] * args.size * args.size
    print(
        f"{args.backbone}, batch {args.batch}, {args.size}x{args.size}, {torch.get_num_threads()}"
        " threads"
    )
    print(f"{'method':20s} {'ms/step':>8s} {'x cam':>6s} {'passes':>7s} {'x cam / pass':>12s}")
    for name, stepper in steppers.items():
        median = statistics.median(stepper.times[2:])
        passes = stepper.pixels / whole
        print(
            f"{name:20s} {1000 * median:8.1f} {median / base:6.2f} {passes:7.2f}"
            f" {median / base / passes:12.2f}"
        )


if __name__ == "__main__":
    main()
