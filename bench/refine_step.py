"""Time a training step of AffinityNet and of IRNet against the form of the released code.

The released code gathers every pair (AffinityNet) and every cell of every line (IRNet) by index,
from three float32 masks of all pairs that its loader processes send. Ours slices shifted maps, and
its loader sends the small label.

Prints three lines for each network, each with both times, their ratio and the difference of the
losses:

losses alone     forward and backward of the losses, from the same outputs of the network
same network     a whole step; both sides use our network: layout, precision and folded norms
as shipped       the step of our loop against plain modules (NCHW, float32, norms apart), as one
                 would write it from the paper

    OMP_NUM_THREADS=2 python bench/refine_step.py --backbone mobilenet_v2 --batch 2
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import command_line
import torch
from segment import unfolded
from torch import Tensor, nn

from trainer.data.dataset import Record
from trainer.data.loader import Samples
from trainer.nets import build_backbone
from trainer.refine import affinitynet
from trainer.refine.affinitynet import AffinityNet, affinities, affinity_loss
from trainer.refine.irnet import EPS, IrNet, boundary_losses
from trainer.refine.pairs import half_plane, pair_labels, paths, shifted
from trainer.run import Metrics
from trainer.stages import affinity as affinity_stage
from trainer.stages import irn as irn_stage
from trainer.training.devices import has_bf16_units
from trainer.training.loop import Trainer
from trainer.training.memory import keep_freed_memory
from trainer.training.optimiser import Training

Masks = tuple[Tensor, Tensor, Tensor]
Outputs = tuple[Tensor, ...]
LR = 1e-4


class Affinity:
    """AffinityNet's side of the comparison, with the published sizes."""

    crop, cells, radius = 448, 56, 5
    loss = staticmethod(affinity_stage._loss)

    @staticmethod
    def build(backbone: str) -> AffinityNet:
        return AffinityNet(build_backbone(backbone, output_stride=8))

    def outputs(self, net: nn.Module, images: Tensor) -> Outputs:
        return (net(images),)

    def masks(self, label: Tensor) -> Masks:
        return affinitynet.pair_labels(label, self.radius)

    def ours(self, outputs: Outputs, label: Tensor) -> Tensor:
        return affinity_loss(affinities(outputs[0], self.radius), self.masks(label))["total"]

    def released(self, outputs: Outputs, masks: Masks) -> Tensor:
        return affinity_loss(gathered_affinities(outputs[0].float(), self.radius), masks)["total"]


class Irn:
    """IRNet's side of the comparison, with the published sizes."""

    crop, cells, radius = 512, 128, 10
    loss = staticmethod(irn_stage._loss)

    @staticmethod
    def build(backbone: str) -> IrNet:
        return IrNet(build_backbone(backbone, output_stride=16, dilate=False))

    def outputs(self, net: nn.Module, images: Tensor) -> Outputs:
        return tuple(net(images))

    def masks(self, label: Tensor) -> Masks:
        return pair_labels(label, [offset for offset, _ in paths(self.radius)], self.radius)

    def ours(self, outputs: Outputs, label: Tensor) -> Tensor:
        edge, displacement = outputs
        return boundary_losses(edge, displacement, label, self.radius)["total"]

    def released(self, outputs: Outputs, masks: Masks) -> Tensor:
        edge, displacement = (x.float() for x in outputs)
        background, foreground, different = masks
        affinity = 1 - gathered_maxima(edge[:, 0].sigmoid(), self.radius)
        alike, unlike = -(affinity + EPS).log(), -(1 + EPS - affinity).log()
        offsets = [offset for offset, _ in paths(self.radius)]
        end = torch.stack([shifted(displacement, offset, self.radius) for offset in offsets], 2)
        d = (shifted(displacement, (0, 0), self.radius)[:, :, None] - end).flatten(3)
        gap = (d - d.new_tensor(offsets).T[..., None]).abs().sum(1)
        pos, neg = (mean(alike, background) + mean(alike, foreground)) / 2, mean(unlike, different)
        return (pos + neg) / 2 + (
            mean(gap, foreground, 2) + mean(d.abs().sum(1), background, 2)
        ) / 2


def mean(values: Tensor, mask: Tensor, channels: int = 1) -> Tensor:
    return (values * mask).sum() / (channels * mask.sum() + EPS)


def gathered_affinities(features_BChw: Tensor, radius: int) -> Tensor:
    height, width = features_BChw.shape[2:]
    cells = torch.arange(height * width).view(height, width)
    source = cells[: height - radius + 1, radius - 1 : width - radius + 1].reshape(-1)
    other = torch.stack([source + dy * width + dx for dy, dx in half_plane(radius)])
    flat = features_BChw.flatten(2)
    return torch.exp(-(flat[:, :, None, source] - flat[:, :, other]).abs().mean(1))


def gathered_maxima(edge_Bhw: Tensor, radius: int) -> Tensor:
    """Maxima of all lines of one length at once, as in the released code."""
    height, width = edge_Bhw.shape[1:]
    rows, columns = torch.arange(height - radius + 1), torch.arange(radius - 1, width - radius + 1)
    source = (rows[:, None] * width + columns).flatten()
    groups = defaultdict(list)
    for _, line in paths(radius):
        groups[len(line)].append([dy * width + dx for dy, dx in line])
    maxima = []
    for lines in groups.values():
        index = torch.tensor(lines)[:, :, None] + source
        maxima.append(
            edge_Bhw.flatten(1)[:, index.flatten()].view(len(edge_Bhw), *index.shape).max(2).values
        )
    return torch.cat(maxima, 1)


def timed(
    ours: Callable[[], float], theirs: Callable[[], float], rounds: int
) -> tuple[float, float, float]:
    """Median seconds of both, in turn, and the difference of their losses on the first, untimed
    call.
    """
    times: dict[Callable[[], float], list[float]] = {ours: [], theirs: []}
    gap = abs(ours() - theirs())
    for _ in range(rounds):
        for step, taken in times.items():
            start = time.perf_counter()
            step()
            taken.append(time.perf_counter() - start)
    return statistics.median(times[ours]), statistics.median(times[theirs]), gap


def report(name: str, ours: float, theirs: float, gap: float) -> None:
    print(
        f"  {name:14s} {1000 * ours:8.0f} ms   released form {1000 * theirs:8.0f} ms   ratio"
        f" {theirs / ours:5.2f}   losses differ by {gap:.1e}",
        flush=True,
    )


def loop_step(kind: Any, net: Any, batch: list[Tensor], folder: Path) -> Callable[[], float]:
    """The step of our loop, with its precision, layout and optimiser."""
    config = Training(
        epochs=10_000, batch=len(batch[0]), lr=LR, momentum=0.9, weight_decay=1e-4, workers=0
    )
    samples: Any = Samples(
        [Record(str(n), folder, ()) for n in range(len(batch[0]))], lambda record, rng: {}, 0
    )
    loss, groups = partial(kind.loss, radius=kind.radius), net.param_groups(LR, 1e-4, 10.0)
    loop = Trainer(
        net, loss, groups, samples, config, folder, Metrics(folder / "m.csv", "bench"), 0, "cpu"
    )
    net.train()

    def step() -> float:
        loop.update({"id": ["x"], "image": batch[0], "label": batch[1]})
        loop.step += 1
        return float(sum(loop.unlogged.pop()[2].values()))

    return step


def compare(kind: Affinity | Irn, args: argparse.Namespace, folder: Path) -> None:
    torch.manual_seed(0)
    net: Any = kind.build(args.backbone).train().to(memory_format=torch.channels_last)
    images = torch.randn(args.batch, 3, kind.crop, kind.crop)
    last = images.contiguous(memory_format=torch.channels_last)
    label = torch.tensor([0, 1, 2, 255], dtype=torch.uint8)[
        torch.randint(0, 4, (args.batch, kind.cells, kind.cells))
    ]
    masks: Any = tuple(mask.float() for mask in kind.masks(label))
    print(
        f"{type(net).__name__} on {args.backbone}, batch {args.batch}, crop {kind.crop}, radius"
        f" {kind.radius}; a sample to the trainer: {label[0].numel():,} bytes instead of"
        f" {sum(m[0].numel() * 4 for m in masks):,}"
    )
    precise = torch.autocast("cpu", torch.bfloat16, enabled=has_bf16_units(gpu=False))

    def alone(loss: Callable[[Outputs, Any], Tensor], labels_of_pairs: Any) -> Callable[[], float]:
        with torch.no_grad():
            outputs = tuple(x.float().requires_grad_() for x in kind.outputs(net, last))

        def step() -> float:
            total = loss(outputs, labels_of_pairs)
            torch.autograd.grad(total, outputs)
            return total.item()

        return step

    def whole(loss: Callable[[Outputs, Any], Tensor], labels_of_pairs: Any) -> Callable[[], float]:
        optimizer = torch.optim.SGD(net.param_groups(0.0, 0.0), lr=0.0)

        def step() -> float:
            optimizer.zero_grad()
            with precise:
                outputs = kind.outputs(net, last)
            total = loss(outputs, labels_of_pairs)
            total.backward()
            optimizer.step()
            return total.item()

        return step

    def unrefined() -> Callable[[], float]:
        other: Any = unfolded(net)
        optimizer = torch.optim.SGD(other.param_groups(LR, 1e-4, 10.0), lr=LR, momentum=0.9)

        def step() -> float:
            optimizer.zero_grad()
            total = kind.released(kind.outputs(other, images), masks)
            total.backward()
            optimizer.step()
            return total.item()

        return step

    report(
        "losses alone", *timed(alone(kind.ours, label), alone(kind.released, masks), args.rounds)
    )
    report(
        "same network", *timed(whole(kind.ours, label), whole(kind.released, masks), args.rounds)
    )
    released = unrefined()
    report("as shipped", *timed(loop_step(kind, net, [last, label], folder), released, args.rounds))


def main() -> None:
    parser = command_line.parser(__doc__)
    command_line.add_backbone(parser, "network of both sides")
    parser.add_argument("--only", choices=("affinity", "irn"), help="one of the two networks")
    parser.add_argument("--batch", type=int, default=2, help="images per step")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each side; medians count")
    args = parser.parse_args()
    keep_freed_memory()
    precision = "bfloat16" if has_bf16_units(gpu=False) else "float32"
    print(f"{torch.get_num_threads()} threads, our loop computes in {precision}")
    sides: dict[str, Affinity | Irn] = {"affinity": Affinity(), "irn": Irn()}
    for name, kind in sides.items():
        if args.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                compare(kind, args, Path(folder))


if __name__ == "__main__":
    main()
