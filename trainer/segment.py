"""Stage ``segment``: train a segmenter on masks, and predict with several scales and the mirror image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from trainer.classify import read_weights, save
from trainer.data.dataset import IGNORE, Record, read_image, read_index_png
from trainer.data.loader import Samples
from trainer.data.transforms import Rng, segment_sample
from trainer.devices import Precision, shard
from trainer.errors import DataError
from trainer.inference import Views, inference, iterate_views, with_mirror
from trainer.loop import train
from trainer.nets import build_backbone
from trainer.nets.deeplab import AsppSegmenter
from trainer.optimiser import Training
from trainer.palette import write_index_png
from trainer.pool import over_images
from trainer.refine.crf import DenseCrf, Float, preset, unary_from_softmax
from trainer.run import Metrics, Stage

ReadMask = Callable[[Record], np.ndarray]


@dataclass(frozen=True)
class SegmentConfig(Training):
    """Knobs of the segmenter, besides those of ``Training``.

    Attributes:
        init: what the backbone starts from: ``weights`` (the file given as ``--weights``), ``classifier`` (this run's
            own), or ``auto``: ``weights`` where there are some.
        scale: range of the random resize factor.
        crop: side of the training crop.
        jitter: colour jitter.
        output_stride: of the backbone.
        bn: batch norm of the backbone: ``frozen`` as in DeepLab-v2, ``stats`` or ``train``.
        rates: dilation rates of the ASPP head.
        label_stride: the loss is taken on a grid of this many pixels a cell.
        scales: of the test.
        flip: whether the test also sees the mirror image.
        crf: dense CRF after the test's soft-max: a preset of spec refine-segment 2.3 (DeepLab-v2's is ``P3``), or
            ``none``.
        test_precision: of the test.
    """

    epochs: int = 12
    batch: int = 16
    lr: float = 1e-3
    momentum: float | Literal["code"] = 0.9
    init: Literal["auto", "weights", "classifier"] = "auto"
    scale: tuple[float, float] = (0.7, 1.5)
    crop: int = 256
    jitter: bool = False
    output_stride: int = 16
    bn: str = "frozen"
    rates: tuple[int, ...] = (6, 12, 18, 24)
    label_stride: int = 4
    scales: tuple[float, ...] = (0.75, 1.0, 1.25)
    flip: bool = True
    crf: str = "none"
    test_precision: Precision = "fp32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crf != "none":
            preset(self.crf)


SCRATCH = SegmentConfig(
    epochs=24, lr=1.5e-3, ema=0.97, new_factor=1.0, optimizer="adam", weight_decay=1e-4, crop=112, bn="train", scale=(0.8, 1.3),
    output_stride=8, rates=(1, 2, 4, 6), label_stride=1, crf="P3",
)  # fmt: skip
"""For a backbone that only this run's classifier has trained, on small images."""


def build(backbone: str, config: SegmentConfig, num_classes: int) -> AsppSegmenter:
    """A fresh segmenter for ``num_classes`` classes and background."""
    options: dict[str, Any] = {} if backbone == "resnet38" else {"bn": config.bn, "dilate": True}
    net = build_backbone(backbone, None if backbone == "resnet38" else config.output_stride, **options)
    return AsppSegmenter(net, num_classes + 1, config.rates)


def segment_loss(
    module: nn.Module, images: torch.Tensor, labels: torch.Tensor, rng: np.random.Generator, stride: int
) -> dict[str, torch.Tensor]:
    """``ce``: cross-entropy of up-sampled logits against labels picked every ``stride`` pixels; 255 is ignored."""
    size = (labels.shape[1] // stride, labels.shape[2] // stride)
    logits = F.interpolate(module(images).float(), size, mode="bilinear", align_corners=False)
    target = F.interpolate(labels[:, None].float(), size, mode="nearest-exact")[:, 0].long()
    summed = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum")
    # A batch may hold nothing but ignored pixels; the mean would be 0/0.
    return {"ce": summed / (target != IGNORE).sum().clamp_min(1)}


def make_sample(
    record: Record, rng: Rng, config: SegmentConfig, read_mask: ReadMask
) -> tuple[torch.Tensor, torch.Tensor]:
    """Training view of an image and its mask."""
    pixels, mask = read_image(record.image), read_mask(record)
    if mask.shape != pixels.shape[:2]:
        raise DataError(
            f"the mask of {record.id!r} is {mask.shape[1]}x{mask.shape[0]}, its image {pixels.shape[1]}x{pixels.shape[0]}",
            "masks of the image's size",
        )
    return segment_sample(pixels, mask, rng, config.scale, config.crop, config.jitter)


def read_pseudo_mask(record: Record, folder: Path) -> np.ndarray:
    """The refined mask of an image."""
    return read_index_png(folder / f"{record.id}.png")


def segment(
    module: AsppSegmenter, records: Sequence[Record], read_mask: ReadMask, config: SegmentConfig, stage: Stage,
    metrics: Metrics, seed: int, identity: dict[str, Any], device: str = "auto",
) -> None:  # fmt: skip
    """Train on the masks that ``read_mask`` returns and write ``model.pt``."""
    groups = parameter_groups(module, config)
    make = partial(make_sample, config=config, read_mask=read_mask)
    loss = partial(segment_loss, stride=config.label_stride)
    last = train(
        module,
        loss,
        groups,
        Samples(records, make, seed),
        config,
        stage.folder,
        metrics,
        seed,
        metrics.stage,
        None,
        device,
    )
    save(stage.folder, module, identity)
    stage.metrics.update({k: float(f"{v:.6g}") for k, v in last.items()})
    stage.outputs.update(count=1, weights="model.pt", images=len(records))


def parameter_groups(module: AsppSegmenter, config: SegmentConfig) -> list[dict[str, Any]]:
    """DeepLab's groups (spec refine-segment 6.4): backbone x1, head weights x10, head biases x20 without decay."""
    head = [(n, p) for n, p in module.named_parameters() if not n.startswith("backbone.")]
    wanted = [
        ([p for p in module.backbone.parameters() if p.requires_grad], 1.0, config.weight_decay),
        ([p for n, p in head if not n.endswith("bias")], config.new_factor, config.weight_decay),
        ([p for n, p in head if n.endswith("bias")], 2 * config.new_factor, 0.0),
    ]
    return [{"params": p, "lr": config.lr * factor, "weight_decay": decay} for p, factor, decay in wanted if p]


def load(path: Path, expected: dict[str, Any]) -> AsppSegmenter:
    """The trained segmenter of ``segment/model.pt``, in evaluation mode. See ``classify.read_weights`` for errors."""
    identity, state = read_weights(path, expected)
    config = SegmentConfig(output_stride=identity["output_stride"], bn=identity["bn"], rates=tuple(identity["rates"]))
    module = build(identity["backbone"], config, len(identity["classes"]))
    module.load_state_dict(state)
    return module.eval()


def predict(
    module: AsppSegmenter,
    records: Sequence[Record],
    folder: Path,
    config: SegmentConfig,
    title: str,
    device: str = "auto",
) -> None:
    """Write a label map a record: soft-max probabilities averaged over scales and the mirror image, CRF, arg-max."""
    missing = shard([r for r in records if not _readable(folder / f"{r.id}.png")])
    write = partial(_write, folder, config.crf)
    workers = 0 if config.crf == "none" else None
    with inference(module, config.test_precision, device) as target:
        guesses = _probabilities(module, missing, config, target)
        for _, problem in over_images(write, guesses, workers, title, True, _name, len(missing)):
            if problem is not None:
                raise problem


Guess = tuple[Record, Float]


def _probabilities(
    module: AsppSegmenter, records: Sequence[Record], config: SegmentConfig, target: torch.device
) -> Iterator[Guess]:
    """Each record with its probabilities ``float32 [C,H,W]``."""
    for batch in iterate_views(records, Views(config.scales), batch=4, workers=config.workers):
        total = torch.zeros(())
        for images in batch.images:
            images = images.to(target)
            logits = module(with_mirror(images) if config.flip else images).float()
            chance = F.interpolate(logits, batch.size, mode="bilinear", align_corners=False).softmax(1)
            count = len(images)
            total = total + chance[:count] + (chance[count:].flip(3) if config.flip else 0)
        yield from zip(batch.records, (total / total.sum(1, keepdim=True)).cpu().numpy())


def _write(folder: Path, crf: str, guess: Guess) -> None:
    record, chance = guess
    if crf != "none":
        kernels = preset(crf)
        field = DenseCrf(read_image(record.image), kernels.gaussian, kernels.bilateral, "auto")
        chance = field.infer(unary_from_softmax(chance), kernels.iterations)
    write_index_png(folder / f"{record.id}.png", chance.argmax(0).astype(np.uint8))


def _name(guess: Guess) -> str:
    return guess[0].id


def _readable(path: Path) -> bool:
    try:
        read_index_png(path)
    except DataError:
        return False
    return True
