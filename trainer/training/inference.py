"""Multi-scale views of images, batched by equal size, for maps and for segmentation.

Images are never padded to make a batch: padding would change what the convolutions see at the
border. A budget in pixels limits memory. It decides how many images make a batch, and an image
whose largest view exceeds it is viewed in a smaller size.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from trainer.cores import cores
from trainer.data.dataset import Record
from trainer.data.loader import Guarded, default_workers, start_worker, unguarded
from trainer.data.pixels import image_size, read_image
from trainer.data.sizes import PIXELS, shrunk, working_size
from trainer.data.transforms import IMAGENET_PIXELS, PixelScale, normalise, to_tensor
from trainer.errors import TrainingError, explained
from trainer.nets.folding import folded_once
from trainer.progress import progress_bar
from trainer.training.devices import Precision, has_bf16_units, target_device
from trainer.training.memory import keep_freed_memory

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


@dataclass(frozen=True)
class Views:
    """The views of an image.

    Attributes:
        scales: resize factors, in order.
        rounding: of the scaled sides: ``round`` half to even, ``trunc`` towards zero.
        filter: ``bicubic`` or ``lanczos`` (Pillow).
        pixels: scale of the values.
        min_side: views whose longer side has fewer pixels are left out, except the largest view.
    """

    scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0)
    rounding: Literal["round", "trunc"] = "round"
    filter: Literal["bicubic", "lanczos"] = "bicubic"
    pixels: PixelScale = IMAGENET_PIXELS
    min_side: int = 0

    def usable(self, height: int, width: int) -> tuple[float, ...]:
        """The scales of the views of an image of this size, in order."""
        largest = max(self.scales)
        return tuple(
            scale
            for scale in self.scales
            if scale == largest or max(self.size(height, width, scale)) >= self.min_side
        )

    def size(self, height: int, width: int, scale: float) -> tuple[int, int]:
        """(height, width) of one view."""
        cut = round if self.rounding == "round" else int
        return max(1, cut(height * scale)), max(1, cut(width * scale))

    def make(self, pixels: np.ndarray, scale: float) -> torch.Tensor:
        """One normalised view ``float32 [3,h,w]`` of ``uint8 [H,W,3]``; scale 1 is not resized."""
        height, width = self.size(pixels.shape[0], pixels.shape[1], scale)
        image = Image.fromarray(pixels)
        if (height, width) != pixels.shape[:2]:
            image = image.resize((width, height), FILTERS[self.filter])
        return to_tensor(normalise(image, self.pixels))


@dataclass(frozen=True)
class ViewBatch:
    """Images of one size.

    Attributes:
        records: B images.
        size: their (H, W).
        working: the (H, W) that views are made from, smaller than ``size`` above the budget.
        images: one ``[B,3,h,w]`` for each of the usable scales.
    """

    records: list[Record]
    size: tuple[int, int]
    working: tuple[int, int]
    images: list[torch.Tensor]


@dataclass(frozen=True)
class Budget:
    """How much is viewed at once.

    Attributes:
        images: of one size in a batch.
        pixels: of the largest view of the batch, without mirror images.
        scale: of the largest view of an image, if it is not one of ``Views.scales``.
        canvas: side of the square on which views lie; 1 for none.
        side: longer side in which every image is viewed; 0: its own.
    """

    images: int = 4
    pixels: int = PIXELS
    scale: float = 1.0
    canvas: int = 1
    side: int = 0

    def working(self, size: tuple[int, int], views: Views) -> tuple[int, int]:
        """(H, W) at which an image of ``size`` is viewed."""
        return working_size(size, self.pixels, self.largest(views), self.canvas, self.side)

    def count(self, size: tuple[int, int], views: Views) -> int:
        """Images of ``size`` that make a batch; at least one."""
        height, width = self.working(size, views)
        view = height * width * self.largest(views) ** 2
        return max(1, min(self.images, int(self.pixels / view)))

    def largest(self, views: Views) -> float:
        """The largest scale; below 1 the image itself counts."""
        return max(1.0, self.scale, *views.scales)


class _Batches(TorchDataset[ViewBatch]):
    def __init__(self, batches: list[list[Record]], views: Views, budget: Budget) -> None:
        self.batches, self.views, self.budget = batches, views, budget

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> ViewBatch:
        records = self.batches[index]
        size = image_size(records[0].image)
        working = self.budget.working(size, self.views)
        pixels = [shrunk(read_image(record.image), working) for record in records]
        images = []
        for scale in self.views.usable(*pixels[0].shape[:2]):
            stack = torch.stack([self.views.make(p, scale).permute(1, 2, 0) for p in pixels])
            # Stacked with the channels last and seen with them second: channels-last memory, as the
            # network wants it, without another copy.
            images.append(stack.permute(0, 3, 1, 2))
        return ViewBatch(records, size, working, images)


def equal_size_batches(
    records: Sequence[Record], views: Views, budget: Budget
) -> list[list[Record]]:
    """Group records by image size (read from the headers) into batches within ``budget``, largest
    images first.
    """
    groups: dict[tuple[int, int], list[Record]] = defaultdict(list)
    for record in records:
        groups[image_size(record.image)].append(record)
    by_area = sorted(groups.items(), key=lambda item: -item[0][0] * item[0][1])
    return [
        group[i : i + count]
        for size, group in by_area
        for count in [budget.count(size, views)]
        for i in range(0, len(group), count)
    ]


def iterate_views(
    records: Sequence[Record], views: Views, budget: Budget, workers: int = -1
) -> Iterator[ViewBatch]:
    """Decode, scale and normalise in worker processes, a batch of equal sizes at a time."""
    batches = equal_size_batches(records, views, budget)
    if workers < 0:
        # On few cores a loader process costs the network more time than it saves (bench/cams.py).
        workers = 0 if cores() <= 4 and not torch.cuda.is_available() else default_workers()
    loader = DataLoader(
        Guarded(_Batches(batches, views, budget)),
        # An item is a batch already.
        batch_size=None,
        num_workers=workers,
        worker_init_fn=start_worker,
        # torch refuses a number without workers.
        prefetch_factor=2 if workers else None,
    )
    yield from unguarded(loader)


def with_mirror(images: torch.Tensor) -> torch.Tensor:
    """``[B,...] -> [2B,...]``: the images, then their horizontal mirrors."""
    return torch.cat([images, images.flip(3)])


def orientations(images: torch.Tensor, upright: bool) -> list[torch.Tensor]:
    """``images [B,C,H,W]`` as they are and mirrored from left to right; without an up also each of
    both upside down.
    """
    pair = [images, images.flip(3)]
    return pair if upright else [*pair, *(view.flip(2) for view in pair)]


def in_parts(
    network: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, pixels: int
) -> torch.Tensor:
    """``network(images)``, with at most ``pixels`` at a time, but at least one image."""
    count = max(1, pixels // (images.shape[-2] * images.shape[-1]))
    if len(images) <= count:
        return network(images)
    return torch.cat([network(part) for part in torch.split(images, count)])


def finite(values: torch.Tensor, what: str) -> torch.Tensor:
    """``values``, if all of them are finite.

    Raises:
        TrainingError: NaN or inf, so the weights are useless.
    """
    if not values.isfinite().all():
        raise TrainingError(
            f"the network gives {what} with NaN or inf: its training went wrong",
            "finite values",
            "train it again with a lower rate (knob lr) or precision=fp32",
        )
    return values


@contextlib.contextmanager
def inference(
    module: nn.Module, precision: Precision, device: str = "auto", gradients: bool = False
) -> Iterator[torch.device]:
    """Evaluation mode, channels-last, no gradients, on the best device, in the wanted precision.

    With ``gradients`` they can be switched on inside.
    """
    target = target_device(device)
    gpu = target.type == "cuda"
    if not gpu:
        keep_freed_memory()
    module.eval().to(target, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if precision == "auto":
        precision = "bf16" if has_bf16_units(gpu) else "fp32"
    low: Any = contextlib.nullcontext()
    if precision != "fp32":
        low = torch.autocast(target.type, torch.bfloat16 if precision == "bf16" else torch.float16)
    try:
        # No weight changes in here, so batch norms are folded once.
        with torch.no_grad() if gradients else torch.inference_mode(), folded_once(module), low:
            yield target
    except (RuntimeError, MemoryError) as error:
        if explanation := explained(error):
            raise explanation from error
        raise


def image_logits(
    network: nn.Module,
    records: Sequence[Record],
    precision: Precision = "fp32",
    device: str = "auto",
    *,
    budget: Budget | None = None,
    views: Callable[[torch.Tensor], Sequence[torch.Tensor]] = lambda images: [images],
    workers: int = 0,
    title: str = "",
    on_batch: Callable[[list[Record], np.ndarray], None] | None = None,
) -> np.ndarray:
    """Image logits of a classifier, ``float32 [N,K]`` in the order of ``records``.

    Every image is seen at its own size or what ``budget`` allows.

    Args:
        network: ``images_B3HW -> logits_BK``.
        records: N images.
        precision: of the network.
        device: ``auto``, ``cpu`` or ``cuda``.
        budget: how much is viewed at once.
        views: makes of images ``[B,3,H,W]`` those that the network sees, whose mean logits count;
            by default each image as it is.
        workers: loader processes; -1 chooses by cores.
        title: of the progress bar; without one there is none.
        on_batch: is told the images of each batch and their logits, for long work to keep.
    """
    rows: dict[str, np.ndarray] = {}
    with (
        inference(network, precision, device) as target,
        progress_bar(title, len(records), show=bool(title)) as advance,
    ):
        for batch in iterate_views(records, Views((1.0,)), budget or Budget(images=16), workers):
            looks = [network(view).float() for view in views(batch.images[0].to(target))]
            logits = finite(torch.stack(looks).mean(0).cpu(), "scores").numpy()
            for record, row in zip(batch.records, logits, strict=True):
                rows[record.id] = row
                advance()
            if on_batch:
                on_batch(batch.records, logits)
    return np.stack([rows[record.id] for record in records])
