"""IRNet: Ahn, Cho and Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel
Relations", CVPR 2019.

The network learns from class maps where one region ends and where the centre of each instance lies.
``irn_labels`` has what it learns from, ``irn_inference`` what follows: maps and instances.

Shapes: B images, k classes of the image, H W image, h w map at stride 4, P pairs from a cell, n
source cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import nn

from trainer.config import Range
from trainer.errors import ConfigError
from trainer.methods.base import full_precision
from trainer.nets.backbone import Backbone, StagedBackbone
from trainer.refine.crf import preset
from trainer.refine.pair_means import edge_means, way_means
from trainer.refine.pairs import pair_labels, paths
from trainer.training.optimiser import Training

STRIDE = 4
EPS = 1e-5


@dataclass(frozen=True)
class IrnConfig(Training):
    """Knobs of IRNet's labels, training and inference, besides those of ``Training``.

    Attributes:
        foreground: score of the background in the search for sure foreground: pixels above it keep
            their class.
        background: score of the background in the search for sure background; pixels between the
            two stay open.
        crf: preset of the dense CRF that refines both label maps.
        crf_backend: ``auto``, ``pydensecrf`` or ``torch``: the same labels.
        crop: side of the training crop in pixels, a multiple of 4.
        rescale: range of the random scale of image and label.
        radius: cells nearer than this make a pair in training; published figures use 10.
        displacement: also learn the way from each cell to the centre of its instance. Instances
            need it, semantic masks do not.
        canvas: side in pixels of the square on which an image lies for inference, a multiple of 16.
            Group norm sees its empty part, so another side gives other maps. A longer side of an
            image is rounded up to the next multiple of 16.
        walk_radius: the random walk joins cells nearer than this.
        beta: exponent of the affinities; a larger one makes boundaries harder to cross.
        steps: of the walk.
        threshold: score of the background where instances are cut; masks have
            ``refine.threshold``.
        solver: ``chebyshev``, or ``power``, the plain product chain; both give the same scores.
        checkpoint: file of a trained IRNet, ours (``model.pt``) or released (``res50_irn.pth``),
            instead of a training; ``none`` trains one.
        instances: also cut the maps after the walk into instances; needs ``displacement``.
    """

    section: ClassVar[str] = "irn"

    epochs: Annotated[int, Range(1, 10_000)] = 3
    batch: Annotated[int, Range(1, 4096)] = 32
    lr: Annotated[float, Range(0, 100, above=True)] = 0.1
    new_factor: Annotated[float, Range(0, 1000)] = 10.0
    weight_decay: Annotated[float, Range(0, 1)] = 1e-4
    foreground: Annotated[float, Range(0, 1, below=True)] = 0.30
    background: Annotated[float, Range(0, 1, below=True)] = 0.05
    crf: str = "P2"
    crf_backend: Literal["auto", "pydensecrf", "torch"] = "auto"
    crop: Annotated[int, Range(8, 4096)] = 512
    rescale: Annotated[tuple[float, float], Range(0.05, 8)] = (0.5, 1.5)
    radius: Annotated[int, Range(2, 16)] = 10
    displacement: bool = True
    canvas: Annotated[int, Range(16, 4096)] = 512
    walk_radius: Annotated[int, Range(2, 16)] = 5
    beta: Annotated[float, Range(0, 1000, above=True)] = 10.0
    steps: Annotated[int, Range(1, 4096)] = 256
    threshold: Annotated[float, Range(0, 1, below=True)] = 0.25
    solver: Literal["chebyshev", "power"] = "chebyshev"
    checkpoint: str = "none"
    instances: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.background > self.foreground:
            raise ConfigError(
                f"irn.background={self.background} foreground={self.foreground}",
                "background is the smaller one",
            )
        least = STRIDE * (2 * self.radius - 1)
        if self.crop < least or self.crop % STRIDE:
            raise ConfigError(
                f"irn.crop={self.crop} radius={self.radius}",
                f"a crop that is a multiple of {STRIDE}, at least {least} for this radius",
            )
        if self.canvas % 16:
            raise ConfigError(f"irn.canvas={self.canvas}", "a multiple of 16")
        if self.rescale[0] > self.rescale[1]:
            raise ConfigError(f"irn.rescale={self.rescale}", "the smaller factor first")
        if self.instances and not self.displacement:
            raise ConfigError("irn.instances=on without displacements", "irn.displacement=on")
        preset(self.crf)


PRESETS: dict[str, dict[str, Any]] = {
    "irn": {},
    "irn-coco": {"foreground": 0.35, "background": 0.10},
    "irn-recam": {"foreground": 0.35, "background": 0.10},
}
"""Changes to the defaults: none for PASCAL VOC, as released; ReCAM's thresholds, which it has for
COCO too.
"""


def _released_names() -> dict[str, tuple[str, ...]]:
    """Our name of each tensor of the heads -> its name in IRN's files."""
    names = {
        "edge.head": "fc_edge6",
        "displacement.deep": "fc_dp6",
        "displacement.head.0": "fc_dp7",
    }
    for branch, theirs in (("edge", "fc_edge"), ("displacement", "fc_dp")):
        names |= {f"{branch}.lifts.{i}": f"{theirs}{i + 1}" for i in range(5)}
    tensors = {
        f"{ours}.{rest}": f"{theirs}.{rest}"
        for ours, theirs in names.items()
        for rest in (
            ("weight", "bias") if ours == "edge.head" else ("0.weight", "1.weight", "1.bias")
        )
    }
    tensors |= {
        "displacement.head.1.weight": "fc_dp7.3.weight",
        "mean_shift": "fc_dp7.4.running_mean",
    }
    return {ours: (theirs,) for ours, theirs in tensors.items()}


RELEASED = _released_names()


class IrNet(nn.Module):
    """Two branches of 1x1 convolutions on the stages of a fixed backbone.

    Besides ``stage1`` to ``stage4`` they see the input of the last module of stage 1: ResNet's stem
    after its max pool (64 channels, as published) or MobileNetV2's ``features.2`` (24 channels),
    both at stride 4. The published backbone is ``ResNet(50, output_stride=16)`` without dilation.

    Args:
        backbone: with trained weights; it stays in evaluation mode and gets no gradient.
        displacement: build the displacement branch.

    Raises:
        ConfigError: a backbone without stages.
    """

    mean_shift: torch.Tensor
    released: Mapping[str, tuple[str, ...]] = RELEASED
    unused: tuple[str, ...] = ()

    def __init__(self, backbone: Backbone, displacement: bool = True) -> None:
        super().__init__()
        if not isinstance(backbone, StagedBackbone):
            raise ConfigError(
                f"IRNet cannot use {type(backbone).__name__}",
                "ResNet 18 to 101 or MobileNetV2",
                "--backbone resnet50",
            )
        # As released: only the two branches learn.
        self.backbone = backbone.eval().requires_grad_(False)
        # A probe tells channels and strides, so that any staged backbone fits.
        side = 64
        features = self.features(next(backbone.parameters()).new_zeros(1, 3, side, side))
        channels, strides = [x.shape[1] for x in features], [side // x.shape[2] for x in features]
        if strides[:2] != [STRIDE, STRIDE]:
            # A first stage of one module has the image or its half as the input of its last.
            raise ConfigError(
                f"IRNet on a backbone whose first features have strides {strides[:2]}",
                f"two features with stride {STRIDE} in the first stage",
                "--backbone resnet50",
            )
        self.edge = EdgeBranch(channels, strides)
        self.displacement = DisplacementBranch(channels, strides) if displacement else None
        self.register_buffer("mean_shift", torch.zeros(2))

    def features(self, images_B3HW: torch.Tensor) -> list[torch.Tensor]:
        """The five inputs of the branches, shallow to deep, without gradient."""
        features: list[torch.Tensor] = []
        x = before = images_B3HW
        with torch.no_grad():
            for modules in self.backbone.stage_modules().values():
                for module in modules:
                    before, x = x, module(x)
                features += [x] if features else [before, x]
        return features

    def forward(self, images_B3HW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Edge logits ``[B,1,h,w]`` and displacement (dy, dx) in cells ``[B,2,h,w]`` of normalised
        RGB images.

        h = ceil(H/4), w = ceil(W/4). The displacement is None without its branch; in evaluation
        mode ``mean_shift`` is taken off it.
        """
        features = self.features(images_B3HW)
        edge: torch.Tensor = self.edge(features)
        if self.displacement is None:
            return edge, None
        displacement: torch.Tensor = self.displacement(features)
        return edge, (
            displacement if self.training else displacement - self.mean_shift[:, None, None]
        )

    def train(self, mode: bool = True) -> IrNet:
        """As ``nn.Module.train``, but the backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def param_groups(
        self, lr: float, weight_decay: float, new_factor: float = 10.0
    ) -> list[dict[str, Any]]:
        """Optimiser groups: edge branch x1, displacement branch x ``new_factor``; everything
        decays.
        """
        parts = {"edge": (self.edge, lr), "displacement": (self.displacement, lr * new_factor)}
        return [
            {
                "name": name,
                "params": list(branch.parameters()),
                "lr": rate,
                "weight_decay": weight_decay,
            }
            for name, (branch, rate) in parts.items()
            if branch is not None
        ]


class EdgeBranch(nn.Module):
    """Logit of a boundary at each cell, from five features."""

    def __init__(self, channels: list[int], strides: list[int]) -> None:
        super().__init__()
        self.lifts = nn.ModuleList(lift(c, 32, 4, s // STRIDE) for c, s in zip(channels, strides))
        # 32 channels of each of the five features.
        self.head = nn.Conv2d(160, 1, 1)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """``[B,1,h,w]``."""
        maps = [layers(x) for layers, x in zip(self.lifts, features)]
        logits: torch.Tensor = self.head(torch.cat([cropped(x, maps[1]) for x in maps], 1))
        return logits


class DisplacementBranch(nn.Module):
    """Way from each cell to the centre of its instance, from five features, before the mean
    shift.
    """

    def __init__(self, channels: list[int], strides: list[int]) -> None:
        super().__init__()
        factors = [1, 1, 1, strides[3] // strides[2], strides[4] // strides[2]]
        shapes = zip(channels, (64, 128, 256, 256, 256), (8, 16, 16, 16, 16), factors)
        self.lifts = nn.ModuleList(lift(*shape) for shape in shapes)
        # Three deep features of 256 channels; below, 448 are 64, 128 and 256.
        self.deep = lift(768, 256, 16, strides[2] // STRIDE)
        self.head = nn.Sequential(lift(448, 256, 16), nn.Conv2d(256, 2, 1, bias=False))

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """``[B,2,h,w]``."""
        x1, x2, *deep = (layers(x) for layers, x in zip(self.lifts, features))
        low = self.deep(torch.cat([cropped(x, deep[0]) for x in deep], 1))
        displacement: torch.Tensor = self.head(torch.cat([x1, x2, cropped(low, x2)], 1))
        return displacement


def lift(inputs: int, outputs: int, groups: int, factor: int = 1) -> nn.Sequential:
    """1x1 convolution, group norm, up-sampling, ReLU; the ReLU comes last, as released."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.GroupNorm(groups, outputs),
    ]
    if factor > 1:
        layers.append(nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers, nn.ReLU())


def cropped(x_BChw: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The top left part of ``x`` in the size of ``like``: up-sampled odd sizes are a cell too
    large.
    """
    return x_BChw[..., : like.shape[2], : like.shape[3]]


def boundary_losses(
    edge_logits_B1hw: torch.Tensor,
    displacement_B2hw: torch.Tensor | None,
    label_Bhw: torch.Tensor,
    radius: int = 5,
) -> dict[str, torch.Tensor]:
    """Terms ``pos``, ``neg``, ``dp_fg``, ``dp_bg`` and their ``total`` (paper, section 4).

    Let a = 1 - the largest edge between two cells. pos is the mean -log a over pairs of one kind,
    background and foreground in equal parts; neg is the mean -log(1 - a) over pairs of two kinds.
    Let D be the difference of the displacements of two cells and o the offset between them. dp_fg
    is the mean |D - o| over foreground pairs, dp_bg the mean |D| over background pairs. total =
    (pos + neg)/2 + (dp_fg + dp_bg)/2. Means are over the whole batch.

    Args:
        edge_logits_B1hw: before the sigmoid.
        displacement_B2hw: (dy, dx); None leaves the last two terms out.
        label_Bhw: 0 background, class ids, 255 open.
        radius: see ``IrnConfig``.

    Raises:
        ConfigError: a map too small for the radius.
    """
    masks = torch.stack(pair_labels(label_Bhw, [offset for offset, _ in paths(radius)], radius))
    with full_precision(edge_logits_B1hw.device.type):
        background, foreground, neg = edge_means(
            edge_logits_B1hw[:, 0].float().sigmoid(), masks, radius
        )
        pos = (background + foreground) / 2
        losses, total = {"pos": pos, "neg": neg}, (pos + neg) / 2
        if displacement_B2hw is not None:
            losses["dp_bg"], losses["dp_fg"] = way_means(
                displacement_B2hw.float(), masks[:2], radius
            )
            total = total + (losses["dp_fg"] + losses["dp_bg"]) / 2
    return {**losses, "total": total}


SMALL: dict[str, Any] = {
    "epochs": 3,
    "batch": 16,
    "lr": 0.05,
    "momentum": 0.9,
    "new_factor": 1.0,
    "crop": 256,
    "rescale": (0.75, 1.25),
    "radius": 5,
    "displacement": False,
    "canvas": 320,
    "steps": 64,
}
"""Changes for small networks and short trainings, which no paper has."""
