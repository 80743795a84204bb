"""Time a training step and the test of a segmenter against the way of the released loops.

The other side does what deeplab-pytorch and similar code do: float32, NCHW, batch norm as a module;
labels resized on the host by Pillow, image by image and once for every output; samples made in the
same process between the steps (no workers); one image, one scale and one mirror image at a time in
the test. Both sides have the same weights, see the same batches in turns, and medians are compared.
CRFs are left out, because both sides have the same.

Prints for each side the time per step or the images a second, the ratio, the difference of losses
or the share of equal pixels, and the peak memory. The peak is that of the process while a side
works; the weights of all sides are in it. A trained network or ImageNet's weights make bfloat16's
label maps comparable; random ones have no clear winner at many pixels.

    python bench/segment.py    # DeepLab-v2 ResNet-101, then aspp on MobileNetV2; about 3 minutes
    python bench/segment.py --segmenter aspp --steps 12 --images 8 --weights mobilenet_v2.pth
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import command_line
import memory
import numpy as np
import torch
import torch.nn.functional as F
from cams import pictures
from PIL import Image
from torch import nn

from trainer.data.dataset import Record
from trainer.data.loader import Samples, collate
from trainer.data.pixels import read_image
from trainer.data.transforms import sample_rng
from trainer.nets.folding import FoldedBatchNorm2d, FoldingConv2d
from trainer.run import Metrics
from trainer.segmenters import make_segmenter
from trainer.segmenters import prediction as segment
from trainer.segmenters.base import Segmenter
from trainer.segmenters.config import PRESETS, SegmentConfig
from trainer.segmenters.training import make_sample
from trainer.training.devices import Precision
from trainer.training.inference import inference
from trainer.training.loop import Trainer
from trainer.training.memory import keep_freed_memory
from trainer.training.optimiser import make_optimizer, set_rate

CLASSES = 20
PRECISIONS: tuple[Precision, ...] = ("fp32", "auto")
SIZES = {
    "deeplab-v2-r101": {"crop": 161, "batch": 4, "accumulate": 2},
    "aspp": {"crop": 256, "batch": 16},
}
STEPS = {"deeplab-v2-r101": 3, "aspp": 6}
RATE = 1e-7
"""Random weights have steep losses: at published rates two sides that differ by rounding part
within a few steps.
"""
Labels = dict[str, np.ndarray]


def unfolded(network: nn.Module) -> nn.Module:
    """The same network with batch norms and convolutions as torch has them, NCHW."""
    plain = copy.deepcopy(network)
    classes: dict[type[nn.Module], type[nn.Module]] = {
        FoldingConv2d: nn.Conv2d,
        FoldedBatchNorm2d: nn.BatchNorm2d,
    }
    for module in plain.modules():
        module.__class__ = classes.get(type(module), type(module))
    return plain.to(memory_format=torch.contiguous_format)


def fresh(segmenter: Segmenter, weights: Path | None, images: torch.Tensor) -> nn.Module:
    """The weights of a file, or random ones and batch norms with the statistics of ``images``, as
    trained ones would have.
    """
    torch.manual_seed(0)
    network = segmenter.build()
    if weights is not None:
        segmenter.load(network, weights)
        return network.train()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.Module.train(norm)
        norm.momentum = None
    with torch.no_grad():
        network(images)
    for norm in norms:
        norm.momentum = 0.1
    head = [p for n, p in network.named_parameters() if "aspp" in n]
    for parameter in head:
        nn.init.normal_(parameter, std=0.02)
    return network.train()


def truth(record: Record) -> np.ndarray:
    """Rectangles of classes on background, with an ignored border."""
    height, width = read_image(record.image).shape[:2]
    mask = np.zeros((height, width), np.uint8)
    for tag in record.tags:
        rng = np.random.default_rng(tag)
        top, left = int(rng.integers(0, height // 2)), int(rng.integers(0, width // 2))
        mask[top : top + height // 3, left : left + width // 3] = tag + 1
    mask[:2] = 255
    return mask


def pillow_labels(labels: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Labels resized as in deeplab-pytorch: each to NumPy and Pillow and back, for one output."""
    resized = []
    for label in labels:
        picture = Image.fromarray(label.float().numpy()).resize(
            (size[1], size[0]), Image.Resampling.NEAREST
        )
        resized.append(np.asarray(picture))
    return torch.from_numpy(np.stack(resized)).long()


def released_loss(
    network: nn.Module, images: torch.Tensor, labels: torch.Tensor, stride: int
) -> torch.Tensor:
    """Sum of cross-entropies at every output's own size; for ``aspp``, of its one output stretched
    to the label grid.
    """
    outputs = network(images)
    if isinstance(outputs, list):
        terms = [
            F.cross_entropy(x, pillow_labels(labels, x.shape[2:]), ignore_index=255)
            for x in outputs
        ]
        return torch.stack(terms).sum()
    size = (labels.shape[1] // stride, labels.shape[2] // stride)
    logits = F.interpolate(outputs, size, mode="bilinear", align_corners=False)
    return F.cross_entropy(logits, pillow_labels(labels, size), ignore_index=255)


def released_step(segmenter: Segmenter, network: nn.Module, total: int) -> Callable[[Any], float]:
    config = segmenter.config
    network.train()
    optimizer = make_optimizer(segmenter.groups(network), config)
    number = 0

    def step(batch: tuple[torch.Tensor, torch.Tensor]) -> float:
        nonlocal number
        set_rate(optimizer, number, total, config)
        number += 1
        optimizer.zero_grad()
        loss = 0.0
        for images, labels in zip(*(part.chunk(config.accumulate) for part in batch)):
            part = (
                released_loss(network, images.contiguous(), labels, config.label_stride)
                / config.accumulate
            )
            part.backward()
            loss += part.item()
        optimizer.step()
        return loss

    return step


def our_step(
    segmenter: Segmenter, network: nn.Module, precision: Precision, total: int, folder: Path
) -> Callable[[Any], float]:
    config = replace(segmenter.config, precision=precision, epochs=total, updates=0, workers=0)
    records = [Record(str(n), folder, ()) for n in range(config.batch)]
    samples: Any = Samples(records, lambda record, rng: {}, 0)
    folder.mkdir()
    metrics = Metrics(folder / "metrics.csv", "bench")
    trainer = Trainer(
        network,
        segmenter.loss,
        segmenter.groups(network),
        samples,
        config,
        folder,
        metrics,
        0,
        "cpu",
    )
    network.train()

    def step(batch: tuple[torch.Tensor, torch.Tensor]) -> float:
        trainer.update({"id": ["x"], "image": batch[0], "label": batch[1]})
        trainer.step += 1
        return float(trainer.unlogged.pop()[2]["ce"])

    return step


def training(
    segmenter: Segmenter, records: list[Record], args: argparse.Namespace, folder: Path
) -> None:
    """Time the steps in turns, then a step of the released loop with its samples, which it makes
    between the steps.
    """
    config, steps = segmenter.config, args.steps or STEPS[segmenter.config.network]
    start = time.perf_counter()
    batches = [batch(segmenter, records, n) for n in range(2)]
    sampling = (time.perf_counter() - start) / len(batches)
    network = fresh(segmenter, args.weights, batches[0][0][:4])
    sides = {"released way": released_step(segmenter, unfolded(network), steps)}
    for precision in PRECISIONS:
        sides[f"here, {precision}"] = our_step(
            segmenter, copy.deepcopy(network), precision, steps, folder / precision
        )
    times: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    peaks: dict[str, float] = dict.fromkeys(sides, 0.0)
    for k in range(steps):
        for name, step in sides.items():
            keep_freed_memory(name != "released way")
            memory.reset_peak()
            start = time.perf_counter()
            losses[name].append(step(batches[k % 2]))
            times[name].append(time.perf_counter() - start)
            peaks[name] = max(peaks[name], memory.peak() / 2**20)
    base = statistics.median(times["released way"][1:]) + sampling
    print(
        f"training step: crop {config.crop}, batch {config.batch} in {config.accumulate} parts,"
        f" {steps} steps in turns"
    )
    for name in sides:
        median = statistics.median(times[name][1:])
        spent = base if name == "released way" else max(median, sampling / max(1, args.workers))
        gap = float(np.abs(np.array(losses[name]) / np.array(losses["released way"]) - 1).max())
        print(
            f"  {name:13s} {spent:7.3f} s/step (update {median:.3f}, samples"
            f" {sampling:.3f}{'' if name == 'released way' else ' in a worker beside'})   ratio"
            f" {base / spent:5.2f}   loss {losses[name][0]:.5f} -> {losses[name][-1]:.5f}   largest"
            f" relative difference {gap:.1e}   peak {peaks[name]:.0f} MB"
        )


def batch(
    segmenter: Segmenter, records: list[Record], number: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of one step."""
    samples = []
    for i in range(segmenter.config.batch):
        record = records[(number * segmenter.config.batch + i) % len(records)]
        sample = make_sample(record, sample_rng(0, number, i), segmenter, truth)
        samples.append({"id": record.id, **sample})
    stacked: Any = collate(samples)
    return stacked["image"], stacked["label"]


@torch.no_grad()
def released_test(segmenter: Segmenter, network: nn.Module, records: list[Record]) -> Labels:
    """One image, one scale, one flip at a time."""
    views, label_maps = segmenter.views(), {}
    for record in records:
        pixels = read_image(record.image)
        total = torch.zeros(())
        for scale in views.scales:
            view = views.make(pixels, scale)[None].contiguous()
            for mirror in (False, True) if segmenter.config.flip else (False,):
                logits = network(view.flip(3) if mirror else view)
                chance = F.interpolate(
                    logits, pixels.shape[:2], mode="bilinear", align_corners=False
                ).softmax(1)
                total = total + (chance.flip(3) if mirror else chance)
        label_maps[record.id] = total[0].argmax(0).numpy().astype(np.uint8)
    return label_maps


def our_test(
    segmenter: Segmenter, network: nn.Module, records: list[Record], precision: Precision
) -> Labels:
    """``trainer.segmenters.prediction.predict`` without its files."""
    variant = make_segmenter(
        replace(segmenter.config, test_precision=precision), "mobilenet_v2", CLASSES
    )
    with inference(network, variant.config.test_precision, "cpu") as target:
        guesses = segment._probabilities(variant, network, records, target)
        return {record.id: chance.argmax(0).astype(np.uint8) for record, chance in guesses}


def testing(segmenter: Segmenter, records: list[Record], args: argparse.Namespace) -> None:
    network = fresh(segmenter, args.weights, batch(segmenter, records, 0)[0][:4]).eval()
    plain = unfolded(network).eval()
    sides: dict[str, Callable[[], Labels]] = {
        "released way": lambda: released_test(segmenter, plain, records)
    }
    for precision in PRECISIONS:
        own = copy.deepcopy(network)
        sides[f"here, {precision}"] = partial(our_test, segmenter, own, records, precision)
    times: dict[str, list[float]] = {name: [] for name in sides}
    labels: dict[str, Labels] = {}
    peaks: dict[str, float] = dict.fromkeys(sides, 0.0)
    for _ in range(args.rounds):
        for name, side in sides.items():
            keep_freed_memory(name != "released way")
            memory.reset_peak()
            start = time.perf_counter()
            labels[name] = side()
            times[name].append(time.perf_counter() - start)
            peaks[name] = max(peaks[name], memory.peak() / 2**20)
    base = statistics.median(times["released way"])
    views = (
        f"{len(segmenter.views().scales)} scales{' and mirror' if segmenter.config.flip else ''}"
    )
    print(
        f"test: {len(records)} images of {args.width}x{args.height}, {views}, {args.rounds} rounds"
        " in turns"
    )
    for name in sides:
        median = statistics.median(times[name])
        same = np.mean(
            [(labels[name][k] == labels["released way"][k]).mean() for k in labels[name]]
        )
        print(
            f"  {name:13s} {len(records) / median:7.2f} images/s   ratio {base / median:5.2f}   "
            f"equal pixels {100 * same:.3f} %   peak {peaks[name]:.0f} MB"
        )


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("--segmenter", choices=list(SIZES), help="one of the two; without it, both")
    parser.add_argument(
        "--weights",
        type=Path,
        help="a weight file for the one segmenter; without one, random weights",
    )
    parser.add_argument(
        "--steps", type=int, default=0, help="training steps of each side; 0 is 3 and 6"
    )
    parser.add_argument(
        "--crop", type=int, default=0, help="side of the training crop; 0 is 161 and 256"
    )
    parser.add_argument("--batch", type=int, default=0, help="images per step; 0 is 4 and 16")
    parser.add_argument("--images", type=int, default=4, help="images of the test")
    parser.add_argument("--width", type=int, default=320, help="width of the test images")
    parser.add_argument("--height", type=int, default=240, help="height of the test images")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the test; medians count")
    parser.add_argument("--workers", type=int, default=1, help="loader processes beside our loop")
    args = parser.parse_args()
    if args.weights and not args.segmenter:
        parser.error("--weights needs --segmenter")
    print(f"{torch.get_num_threads()} threads, {CLASSES} classes")
    for name in [args.segmenter] if args.segmenter else list(SIZES):
        sizes = {k: v for k, v in (("crop", args.crop), ("batch", args.batch)) if v}
        config: SegmentConfig = replace(PRESETS[name], **(SIZES[name] | sizes), crf="none", lr=RATE)
        segmenter = make_segmenter(config, "mobilenet_v2", CLASSES)
        print(f"\n{name}")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "images").mkdir()
            records = pictures(Path(folder) / "images", args.images, args.width, args.height)
            training(segmenter, records, args, Path(folder))
            testing(segmenter, records, args)


if __name__ == "__main__":
    main()
