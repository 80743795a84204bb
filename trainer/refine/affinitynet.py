"""AffinityNet: Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision
for Weakly Supervised Semantic Segmentation", CVPR 2018.

The network learns features that agree between cells of one class, from pairs of cells that a CRF is
sure of. The class activation maps then walk along its affinities.

Shapes: B images, K classes with the background first, C feature channels, H W image, h w map of 8
pixels a cell, O pair offsets, N source cells of a map.

Deviations, all of psa's released code, which is followed here: the affinity takes the mean over
channels where the paper takes the sum; the loss is a quarter of the paper's; cells near the border
have fewer neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import Range
from trainer.errors import ConfigError
from trainer.methods.base import at_least_float32
from trainer.nets.backbone import Backbone
from trainer.refine import pairs
from trainer.refine.crf import preset
from trainer.refine.pairs import PairLabels, half_plane, shifted
from trainer.refine.random_walk import Borders, Solver, affinity_walk
from trainer.training.collectives import process_mean
from trainer.training.optimiser import Training

STRIDE = 8
HEADS = {"f8_3": 64, "f8_4": 128, "f8_5": 256}
WIDTH = sum(HEADS.values())
EPS = 1e-5
BAND = 8
"""Rows of cells compared at a time on a CPU: their differences then fit into its cache."""

PRESETS: dict[str, dict[str, Any]] = {
    "psa": {"beta": 8.0, "steps": 256},
    "seam": {"beta": 8.0, "steps": 64, "high_alpha": 24.0, "walk_alpha": 6.0},
}
"""Walks of psa's and of SEAM's released code, for small networks too."""
PUBLISHED_LR = {"psa": 0.1, "psa-crf": 0.1, "seam": 0.01}
"""Learning rates of the presets on the networks of the papers. SEAM's, for ResNet-38, is also the
default; psa's was found for VGG-16.
"""


@dataclass(frozen=True)
class AffinityConfig(Training):
    """Knobs of AffinityNet, besides those of ``Training``. Defaults follow psa's released code,
    with SEAM's learning rate for ResNet-38.

    Attributes:
        init: what the backbone starts from: ``weights`` (the file of ``--weights``; ImageNet's
            reproduce psa's table), ``classifier`` (this run's own), or ``auto``: ``weights`` where
            there are some.
        output_stride: of the backbone. The features always have 8 pixels a cell; ResNet-38 has
            stride 8 only.
        bn: batch norm of the backbone: ``frozen`` as released, ``stats`` or ``train``.
        low_alpha: exponent of the strong background score (1 - max)^alpha, under which an object
            that stays is surely an object.
        high_alpha: exponent of the weak one, under which background that stays is surely
            background. 32 as released, 24 in the paper and in SEAM.
        crf: preset of the dense CRF that sharpens both scores before they become labels.
        crop: side of the training crop, a multiple of 8.
        jitter: colour jitter.
        radius: cells nearer than this make a pair.
        beta: exponent of the affinities in the walk.
        steps: of the walk; 256 as released, 64 in SEAM.
        walk_alpha: exponent of the background score in the walk; 16 as released, 6 in SEAM.
        checkpoint: file of a trained AffinityNet, ours (``model.pt``) or released
            (``res38_aff.pth``), instead of a training; ``none`` trains one.
        borders: ``psa``: cells near the border have fewer neighbours, as released; ``full``: every
            pair in the map.
        solver: how the walk is computed: ``chebyshev`` or ``power``, which give the same scores.
    """

    section: ClassVar[str] = "affinity"

    epochs: Annotated[int, Range(1, 10_000)] = 8
    batch: Annotated[int, Range(1, 4096)] = 8
    lr: Annotated[float, Range(0, 100, above=True)] = 0.01
    init: Literal["auto", "weights", "classifier"] = "auto"
    output_stride: Annotated[int, Range(8, 32)] = 8
    bn: str = "frozen"
    low_alpha: Annotated[float, Range(0, 1000, above=True)] = 4.0
    high_alpha: Annotated[float, Range(0, 1000, above=True)] = 32.0
    crf: str = "P1"
    crop: Annotated[int, Range(8, 4096)] = 448
    jitter: bool = True
    radius: Annotated[int, Range(2, 16)] = 5
    beta: Annotated[float, Range(0, 1000, above=True)] = 8.0
    steps: Annotated[int, Range(1, 4096)] = 256
    walk_alpha: Annotated[float, Range(0, 1000, above=True)] = 16.0
    checkpoint: str = "none"
    borders: Borders = "psa"
    solver: Solver = "chebyshev"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low_alpha > self.high_alpha:
            raise ConfigError(
                f"affinity.low_alpha={self.low_alpha:g} high_alpha={self.high_alpha:g}",
                "low_alpha, of the strong background, is the smaller one",
            )
        smallest = STRIDE * (2 * self.radius - 1)
        if self.crop % STRIDE or self.crop < smallest:
            raise ConfigError(
                f"affinity.crop={self.crop}",
                f"a multiple of {STRIDE}, at least {smallest} for radius {self.radius}",
            )
        preset(self.crf)


class AffinityNet(nn.Module):
    """Features whose distance tells whether two cells are of one class.

    ``ELU(f9(concat(ELU(f8_3), ELU(f8_4), ELU(f8_5))))``: 1x1 convolutions without bias on the last
    three features of the backbone, the coarser two up-sampled (bilinear) to the first. The state
    dict has the released names, with ``backbone.`` before those of the backbone.

    Args:
        backbone: any with three features, the first of them with stride 8.

    Raises:
        ConfigError: a backbone with fewer features, or another stride.
    """

    released: Mapping[str, tuple[str, ...]] = {}
    unused: tuple[str, ...] = ()

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.taps = tuple(backbone.channels)[-len(HEADS) :]
        if len(self.taps) < len(HEADS) or backbone.strides[self.taps[0]] != STRIDE:
            taps = ", ".join(f"{name} with stride {backbone.strides[name]}" for name in self.taps)
            raise ConfigError(
                f"AffinityNet on a backbone with {taps}",
                f"three features, the first with stride {STRIDE}",
            )
        for tap, (name, width) in zip(self.taps, HEADS.items()):
            head = nn.Conv2d(backbone.channels[tap], width, 1, bias=False)
            # psa's initial values, here and for f9.
            nn.init.kaiming_normal_(head.weight)
            self.add_module(name, head)
        self.f9 = nn.Conv2d(WIDTH, WIDTH, 1, bias=False)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Normalised RGB ``[B,3,H,W]`` -> features ``[B,448,ceil(H/8),ceil(W/8)]``."""
        features = self.backbone(images_B3HW)
        size = features[self.taps[0]].shape[2:]
        parts = []
        for tap, name in zip(self.taps, HEADS):
            # A 1x1 convolution and an interpolation commute. In this order the interpolation has
            # fewer channels to work on.
            part = self.get_submodule(name)(features[tap])
            if part.shape[2:] != size:
                part = F.interpolate(part, size, mode="bilinear", align_corners=False)
            parts.append(F.elu(part))
        return F.elu(self.f9(torch.cat(parts, 1)))

    def param_groups(
        self, lr: float, weight_decay: float, new_factor: float = 10.0
    ) -> list[dict[str, Any]]:
        """Optimiser groups: backbone x1, new layers x ``new_factor``; there are no biases."""
        new = [p for n, p in self.named_parameters() if not n.startswith("backbone.")]
        parts = (("backbone", self.backbone.parameters(), 1.0), ("new", new, new_factor))
        groups = [
            {
                "name": n,
                "params": [p for p in ps if p.requires_grad],
                "lr": lr * factor,
                "weight_decay": weight_decay,
            }
            for n, ps, factor in parts
        ]
        return [group for group in groups if group["params"]]


def affinities(features_BChw: Tensor, radius: int = 5) -> Tensor:
    """a = exp(-mean_c |f_c(p) - f_c(p + o)|), ``[B,O,N]`` in 0..1, N = (h-r+1)(w-2r+2); at least
    float32.

    Offsets o in the order of ``pairs.half_plane``, sources p row by row. Needs the memory of one
    offset at a time, not of all pairs.

    Raises:
        ConfigError: a map too small for the radius.
    """
    return torch.exp(-_Distances.apply(at_least_float32(features_BChw), radius)).flatten(2)


class _Distances(torch.autograd.Function):
    """Mean absolute difference of the two cells of each pair, ``[B,O,h-r+1,w-2r+2]``.

    The backward pass computes the differences again: autograd would store O maps of C channels.
    """

    @staticmethod
    def forward(ctx: Any, features_BChw: Tensor, radius: int) -> Tensor:
        ctx.save_for_backward(features_BChw)
        ctx.radius = radius
        offsets, (batch, _, h, w) = half_plane(radius), shifted(features_BChw, (0, 0), radius).shape
        distances_BOhw = features_BChw.new_empty(batch, len(offsets), h, w)
        for band, result in zip(_bands(features_BChw, radius), _bands(distances_BOhw)):
            start = shifted(band, (0, 0), radius)
            for offset, distance in zip(offsets, result.unbind(-3)):
                torch.mean((start - shifted(band, offset, radius)).abs_(), -3, out=distance)
        return distances_BOhw

    @staticmethod
    def backward(ctx: Any, grad_BOhw: Tensor) -> tuple[Tensor, None]:
        (features,), radius = ctx.saved_tensors, ctx.radius
        grad = torch.zeros_like(features)
        bands = (
            _bands(features, radius),
            _bands(grad, radius),
            _bands(grad_BOhw / features.shape[1]),
        )
        for band, change_band, weights in zip(*bands):
            start, at_start = shifted(band, (0, 0), radius), shifted(change_band, (0, 0), radius)
            for offset, weight in zip(half_plane(radius), weights.unbind(-3)):
                change = (start - shifted(band, offset, radius)).sign_().mul_(weight.unsqueeze(-3))
                at_start.add_(change)
                shifted(change_band, offset, radius).sub_(change)
        return grad, None


def _bands(x_BChw: Tensor, radius: int = 1) -> Iterator[Tensor]:
    """On a CPU, views of ``BAND`` rows of source cells and the ``radius - 1`` rows below, image by
    image; elsewhere the whole batch.
    """
    if x_BChw.device.type != "cpu":
        yield x_BChw
        return
    for image in x_BChw:
        for top in range(0, image.shape[1] - radius + 1, BAND):
            yield image[:, top : top + BAND + radius - 1]


def pair_labels(label_hw: Tensor, radius: int = 5) -> PairLabels:
    """Which pairs agree: ``(bg, fg, neg)``, bool ``[O,N]`` each, N = (h-r+1)(w-2r+2), on the
    label's device.

    bg: both cells background; fg: both of one class; neg: of different labels. A
    pair with an open cell is in none. Pairs are in the order of ``affinities``.

    Args:
        label_hw: integer ``[h,w]``, or ``[B,h,w]`` for ``[B,O,N]``: 0 background, 255 open, else
            any numbers of classes.
        radius: cells nearer than this make a pair.

    Raises:
        ConfigError: a map too small for the radius.
    """
    return pairs.pair_labels(label_hw, half_plane(radius), radius)


def affinity_loss(affinities_BON: Tensor, labels: PairLabels) -> dict[str, Tensor]:
    """Means over the pairs of the whole batch, and ``total`` = bg/4 + fg/4 + neg/2.

    bg, fg: mean of -log(a + 1e-5); neg: mean of -log(1 + 1e-5 - a); 0 where there is no such pair.
    The paper's loss, bg + fg + 2 neg, is four times this total of the released code.

    Args:
        affinities_BON: a of ``affinities``.
        labels: ``pair_labels`` of the batch, ``[B,O,N]`` each.
    """
    a = at_least_float32(affinities_BON)
    alike, different = -torch.log(a + EPS), -torch.log(1 + EPS - a)
    terms = zip(("bg", "fg", "neg"), labels, (alike, alike, different))
    # The epsilon also gives 0 where the batch has no pair of a kind.
    means = {
        name: (mask * term).sum() / (process_mean(mask.sum()) + EPS) for name, mask, term in terms
    }
    return {**means, "total": means["bg"] / 4 + means["fg"] / 4 + means["neg"] / 2}


def pad_to_stride(x_HW: Tensor) -> Tensor:
    """``[...,H,W]`` with zeros to the right and below, up to multiples of 8."""
    height, width = x_HW.shape[-2:]
    return F.pad(x_HW, (0, -width % STRIDE, 0, -height % STRIDE))


def walk_scores(features_Chw: Tensor, cams_kHW: Tensor, config: AffinityConfig) -> Tensor:
    """Class activation maps after the walk, ``[k+1,H,W]`` with the background first (paper,
    section 3.3).

    Scores are not normalised; the label of a pixel is their arg-max.

    Args:
        features_Chw: of the image after ``pad_to_stride``, ``[C,ceil(H/8),ceil(W/8)]``.
        cams_kHW: maps of the present classes in 0..1 at the size of the image, on the features'
            device.
        config: beta, steps, radius, walk_alpha, borders and solver count.

    Raises:
        ConfigError: features that do not fit the maps.
    """
    height, width = cams_kHW.shape[1:]
    h, w = features_Chw.shape[1:]
    if (h, w) != (-(-height // STRIDE), -(-width // STRIDE)):
        raise ConfigError(
            f"features of {h}x{w} cells for maps of {height}x{width}", f"{STRIDE} pixels a cell"
        )
    # The background is computed before the padding: outside of the image every score is 0.
    # The extra channel of zeros gives an image without classes a maximum.
    strongest = F.pad(cams_kHW, (0, 0, 0, 0, 1, 0)).amax(0, keepdim=True)
    scores = torch.cat([(1 - strongest.clamp(max=1)) ** config.walk_alpha, cams_kHW])
    # As released, zeros of the padding count in the means of the last cells.
    grid = F.avg_pool2d(pad_to_stride(scores), STRIDE)
    walk = (config.beta, config.steps, config.radius, config.borders, config.solver)
    result = affinity_walk(grid, features_Chw, *walk)
    full = F.interpolate(
        result[None], (STRIDE * h, STRIDE * w), mode="bilinear", align_corners=False
    )
    return full[0, :, :height, :width]


SMALL: dict[str, Any] = {
    "epochs": 3,
    "batch": 8,
    "lr": 1e-3,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "crop": 256,
    "borders": "full",
    "beta": 16,
    "steps": 16,
}
"""Changes for small networks and short trainings, which no paper has. Their affinities tell less,
and a walk of the published length mixes all regions (docs/refinement.md).
"""
