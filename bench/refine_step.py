"""A training step of AffinityNet and of IRNet against the released code's form of the losses, same network and batch, one run.

The released code gathers every pair (AffinityNet) and every cell of every line (IRNet) by index, and its loader processes send
three float32 masks of all pairs; ours slices shifted maps, and the loader sends the small label. All else is equal: network,
forward, backward, SGD.

python bench/refine_step.py --backbone mobilenet_v2 --batch 2
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import torch

from trainer.memory import keep_freed_memory
from trainer.nets import build_backbone
from trainer.refine.affinitynet import AffinityNet, affinities, affinity_loss, pair_labels
from trainer.refine.irnet import EPS, IrNet, boundary_losses, displacement_differences, masked_mean
from trainer.refine.irnet import pair_labels as line_labels
from trainer.refine.pairs import half_plane, paths

Step = Callable[[], torch.Tensor]


def gathered_affinities(features_BChw: torch.Tensor, radius: int) -> torch.Tensor:
    height, width = features_BChw.shape[2:]
    cells = torch.arange(height * width).view(height, width)
    source = cells[: height - radius + 1, radius - 1 : width - radius + 1].reshape(-1)
    other = torch.stack([source + dy * width + dx for dy, dx in half_plane(radius)])
    flat = features_BChw.flatten(2)
    return torch.exp(-(flat[:, :, None, source] - flat[:, :, other]).abs().mean(1))


def gathered_maxima(edge_Bhw: torch.Tensor, radius: int) -> torch.Tensor:
    """Lines of equal length at once, as released."""
    height, width = edge_Bhw.shape[1:]
    rows, columns = torch.arange(height - radius + 1), torch.arange(radius - 1, width - radius + 1)
    source = (rows[:, None] * width + columns).flatten()
    groups = defaultdict(list)
    for _, line in paths(radius):
        groups[len(line)].append([dy * width + dx for dy, dx in line])
    found = []
    for lines in groups.values():
        index = torch.tensor(lines)[:, :, None] + source
        found.append(edge_Bhw.flatten(1)[:, index.flatten()].view(len(edge_Bhw), *index.shape).max(2).values)
    return torch.cat(found, 1)


def boundary_terms(
    edge: torch.Tensor, displacement: torch.Tensor, masks: list[torch.Tensor], radius: int
) -> torch.Tensor:
    """The total of ``boundary_losses`` from gathered maxima and float masks."""
    background, foreground, different = masks
    affinity = 1 - gathered_maxima(edge[:, 0].sigmoid(), radius)
    alike, unlike = -(affinity + EPS).log(), -(1 + EPS - affinity).log()
    pos = (masked_mean(alike, background) + masked_mean(alike, foreground)) / 2
    d_B2Pn, o_2P1 = displacement_differences(displacement, radius)
    fg = masked_mean((d_B2Pn - o_2P1).abs().sum(1), foreground, channels=2)
    bg = masked_mean(d_B2Pn.abs().sum(1), background, channels=2)
    return (pos + masked_mean(unlike, different)) / 2 + (fg + bg) / 2


def timed(ours: Step, theirs: Step, parameters: list[torch.nn.Parameter], rounds: int) -> tuple[float, float, float]:
    """Median seconds of a step of both, in turn, and the difference of their losses on the first."""
    times: dict[Step, list[float]] = {ours: [], theirs: []}
    first = {}
    for k in range(rounds + 1):
        for step, taken in times.items():
            start = time.perf_counter()
            loss = step()
            loss.backward()  # type: ignore[no-untyped-call]
            taken.append(time.perf_counter() - start)
            if k == 0:
                first[step] = loss.item()
            for parameter in parameters:
                parameter.grad = None
    return statistics.median(times[ours][1:]), statistics.median(times[theirs][1:]), abs(first[ours] - first[theirs])


def report(name: str, ours: float, theirs: float, difference: float, label: int, masks: int) -> None:
    print(
        f"{name:12s} {1000 * ours:8.0f} ms  gathered {1000 * theirs:8.0f} ms  ratio {theirs / ours:5.2f}  losses differ by "
        f"{difference:.1e}  a sample to the trainer {label:,} bytes instead of {masks:,}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("mobilenet_v2", "resnet18", "resnet34", "resnet50", "resnet101")
    parser.add_argument("--backbone", choices=names, default="mobilenet_v2")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    keep_freed_memory()
    draw = torch.Generator().manual_seed(0)
    choices = torch.tensor([0, 1, 2, 255])
    print(f"{args.backbone}, batch {args.batch}, {torch.get_num_threads()} threads")

    torch.manual_seed(0)
    affinity = AffinityNet(build_backbone(args.backbone, output_stride=8)).train()
    images = torch.randn(args.batch, 3, 448, 448, generator=draw)
    label = choices[torch.randint(0, 4, (args.batch, 56, 56), generator=draw)]
    masks = [mask.float() for mask in pair_labels(label)]
    trained = [p for p in affinity.parameters() if p.requires_grad]
    result = timed(
        lambda: affinity_loss(affinities(affinity(images)), pair_labels(label))["total"],
        lambda: affinity_loss(gathered_affinities(affinity(images), 5), tuple(masks))["total"],  # type: ignore[arg-type]
        trained,
        args.rounds,
    )
    report("AffinityNet", *result, 56 * 56, sum(mask[0].numel() * 4 for mask in masks))

    torch.manual_seed(0)
    irn = IrNet(build_backbone(args.backbone, output_stride=16, dilate=False)).train()
    images = torch.randn(args.batch, 3, 512, 512, generator=draw)
    label = choices[torch.randint(0, 4, (args.batch, 128, 128), generator=draw)]
    wide = [mask.float() for mask in line_labels(label, 10)]

    def theirs() -> torch.Tensor:
        edge, displacement = irn(images)
        assert displacement is not None
        return boundary_terms(edge, displacement, wide, 10)

    def ours() -> torch.Tensor:
        edge, displacement = irn(images)
        return boundary_losses(edge, displacement, label, 10)["total"]

    trained = [p for p in irn.parameters() if p.requires_grad]
    result = timed(ours, theirs, trained, args.rounds)
    report("IRNet", *result, 128 * 128, sum(mask[0].numel() * 4 for mask in wide))


if __name__ == "__main__":
    main()
