"""IRNet: where one region ends, and where its centre lies, learnt from class maps (Ahn, Cho & Kwak, CVPR 2019).

Shapes: B images, k classes of the image, H W image, h w map at stride 4, P pairs from a cell, n source cells. Spec
refine-segment 4.1 to 4.4. What follows the training, masks and instances, is in ``irn_inference.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from trainer.data.dataset import IGNORE
from trainer.data.transforms import Rng, segment_sample
from trainer.errors import ConfigError
from trainer.methods.base import at_least_float32, full_precision
from trainer.nets.backbone import Backbone, StagedBackbone
from trainer.optimiser import Training
from trainer.refine.crf import DenseCrf, preset, unary_from_labels
from trainer.refine.pairs import Offset, paths

STRIDE = 4
EPS = 1e-5

Float = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class IrnConfig(Training):
    """Knobs of IRNet's labels, training and inference, besides those of ``Training``.

    Attributes:
        foreground: score of the background when sure foreground is looked for; cells above it keep their class.
        background: the same for sure background; between the two a pixel is left open.
        crf: preset that refines both label maps (spec 2.3), from labels.
        crf_backend: ``auto``, ``pydensecrf`` or ``torch``: the same labels.
        crop: side of the training crop in pixels, a multiple of 4.
        rescale: range of the random scale of image and label.
        radius: pairs of cells nearer than this are compared in training; published figures use 10.
        displacement: also learn where each cell's instance has its centre. Semantic masks do not need it, instances do.
        canvas: side of the square, in pixels, on which an image is laid for inference, a multiple of 16. Group norm
            sees its empty part, so another side gives other maps. A larger image has the next multiple of 16.
        walk_radius: pairs of cells nearer than this are joined in the random walk.
        beta: exponent of the affinities; larger makes boundaries harder to cross.
        steps: of the walk.
        threshold: score of the background after the walk when instances are cut; masks have ``refine.threshold``.
        solver: ``chebyshev``, or ``power``, the plain product chain: the same scores.
        instances: also cut the walked maps into instances; needs ``displacement``.
    """

    epochs: int = 3
    batch: int = 32
    lr: float = 0.1
    new_factor: float = 10.0
    weight_decay: float = 1e-4
    foreground: float = 0.30
    background: float = 0.05
    crf: str = "P2"
    crf_backend: Literal["auto", "pydensecrf", "torch"] = "auto"
    crop: int = 512
    rescale: tuple[float, float] = (0.5, 1.5)
    radius: int = 10
    displacement: bool = True
    canvas: int = 512
    walk_radius: int = 5
    beta: float = 10.0
    steps: int = 256
    threshold: float = 0.25
    solver: Literal["chebyshev", "power"] = "chebyshev"
    instances: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.background <= self.foreground < 1 or not 0 <= self.threshold < 1:
            raise ConfigError(
                f"irn.background={self.background} foreground={self.foreground} threshold={self.threshold}",
                "0 <= background <= foreground < 1 and a threshold from 0 to below 1",
            )
        least = STRIDE * (2 * self.radius - 1)
        if self.radius < 2 or self.crop < least or self.crop % STRIDE:
            raise ConfigError(
                f"irn.crop={self.crop} radius={self.radius}",
                f"radius at least 2, and crop a multiple of {STRIDE}, at least {least} for this radius",
            )
        if self.canvas < 16 or self.canvas % 16:
            raise ConfigError(f"irn.canvas={self.canvas}", "a multiple of 16")
        if not 0 < self.rescale[0] <= self.rescale[1]:
            raise ConfigError(f"irn.rescale={self.rescale}", "two factors above 0, the smaller first")
        if self.instances and not self.displacement:
            raise ConfigError("irn.instances=on without displacements", "irn.displacement=on")
        preset(self.crf)


PRESETS: dict[str, dict[str, Any]] = {"irn": {}, "irn-coco": {"foreground": 0.35, "background": 0.10}}
"""Changes to the defaults: PASCAL VOC as released, and ReCAM's thresholds for COCO."""


class IrNet(nn.Module):
    """Two branches of 1x1 convolutions on the stages of a fixed backbone.

    Besides ``stage1`` .. ``stage4`` they see what enters the last module of stage 1: ResNet's stem after its max pool
    (64 channels, as published), MobileNetV2's ``features.2`` (24 channels); both at stride 4.

    Published: ``ResNet(50, output_stride=16)`` without dilation.

    Args:
        backbone: with trained weights; it stays in evaluation mode and gets no gradient.
        displacement: build the displacement branch.

    Raises:
        ConfigError: a backbone without stages.
    """

    mean_shift: torch.Tensor

    def __init__(self, backbone: Backbone, displacement: bool = True) -> None:
        super().__init__()
        if not isinstance(backbone, StagedBackbone):
            raise ConfigError(
                f"IRNet cannot use {type(backbone).__name__}", "ResNet 18 to 101 or MobileNetV2", "--backbone resnet50"
            )
        self.backbone = backbone.eval().requires_grad_(False)
        side = 64
        features = self.features(next(backbone.parameters()).new_zeros(1, 3, side, side))
        channels, strides = [x.shape[1] for x in features], [side // x.shape[2] for x in features]
        self.edge = EdgeBranch(channels, strides)
        self.displacement = DisplacementBranch(channels, strides) if displacement else None
        self.register_buffer("mean_shift", torch.zeros(2))

    def features(self, images_B3HW: torch.Tensor) -> list[torch.Tensor]:
        """The five inputs of the branches, shallow to deep, without gradient."""
        found: list[torch.Tensor] = []
        x = before = images_B3HW
        with torch.no_grad():
            for modules in self.backbone.stages().values():
                for module in modules:
                    before, x = x, module(x)
                found += [x] if found else [before, x]
        return found

    def forward(self, images_B3HW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Edge logits ``[B,1,h,w]`` and displacement (dy, dx) in cells ``[B,2,h,w]`` of normalised RGB images.

        h = ceil(H/4), w = ceil(W/4). The displacement is None without its branch; in evaluation mode ``mean_shift``
        is taken off it.
        """
        features = self.features(images_B3HW)
        edge: torch.Tensor = self.edge(features)
        if self.displacement is None:
            return edge, None
        displacement: torch.Tensor = self.displacement(features)
        return edge, displacement if self.training else displacement - self.mean_shift[:, None, None]

    def train(self, mode: bool = True) -> IrNet:
        """As ``nn.Module.train``, but the backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def param_groups(self, lr: float, weight_decay: float, new_factor: float = 10.0) -> list[dict[str, Any]]:
        """Optimiser groups: edge branch x1, displacement branch x ``new_factor``; everything decays."""
        parts = {"edge": (self.edge, lr), "displacement": (self.displacement, lr * new_factor)}
        return [
            {"name": name, "params": list(branch.parameters()), "lr": rate, "weight_decay": weight_decay}
            for name, (branch, rate) in parts.items()
            if branch is not None
        ]


class EdgeBranch(nn.Module):
    """Logit of a boundary at each cell of stride 4, from five features."""

    def __init__(self, channels: list[int], strides: list[int]) -> None:
        super().__init__()
        self.lifts = nn.ModuleList(lift(c, 32, 4, s // STRIDE) for c, s in zip(channels, strides))
        self.head = nn.Conv2d(160, 1, 1)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """``[B,1,h,w]``."""
        lifted = [layers(x) for layers, x in zip(self.lifts, features)]
        logits: torch.Tensor = self.head(torch.cat([cropped(x, lifted[1]) for x in lifted], 1))
        return logits


class DisplacementBranch(nn.Module):
    """Way from each cell of stride 4 to its instance's centre, from five features, before the mean shift."""

    def __init__(self, channels: list[int], strides: list[int]) -> None:
        super().__init__()
        factors = [1, 1, 1, strides[3] // strides[2], strides[4] // strides[2]]
        shapes = zip(channels, (64, 128, 256, 256, 256), (8, 16, 16, 16, 16), factors)
        self.lifts = nn.ModuleList(lift(*shape) for shape in shapes)
        self.deep = lift(768, 256, 16, strides[2] // STRIDE)
        self.head = nn.Sequential(lift(448, 256, 16), nn.Conv2d(256, 2, 1, bias=False))

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """``[B,2,h,w]``."""
        x1, x2, *deep = (layers(x) for layers, x in zip(self.lifts, features))
        joined = self.deep(torch.cat([cropped(x, deep[0]) for x in deep], 1))
        displacement: torch.Tensor = self.head(torch.cat([x1, x2, cropped(joined, x2)], 1))
        return displacement


def lift(inputs: int, outputs: int, groups: int, factor: int = 1) -> nn.Sequential:
    """1x1 convolution, group norm, up-sampling, ReLU; the ReLU comes last, as released."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 1, bias=False), nn.GroupNorm(groups, outputs)]
    if factor > 1:
        layers.append(nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers, nn.ReLU())


def cropped(x_BChw: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The top left of ``x`` that has the size of ``like``: odd sizes come back one cell too large."""
    return x_BChw[..., : like.shape[2], : like.shape[3]]


def shifted(x_hw: torch.Tensor, offset: Offset, radius: int) -> torch.Tensor:
    """What each source cell sees at ``offset``: a view of ``[...,h,w]``, ``[...,h-r,w-2r]`` with r = radius - 1.

    Sources are the cells from which no offset of ``half_plane(radius)`` leaves the map (spec 4.2).

    Raises:
        ConfigError: a map without such cells.
    """
    (dy, dx), reach = offset, radius - 1
    rows, columns = x_hw.shape[-2] - reach, x_hw.shape[-1] - 2 * reach
    if rows < 1 or columns < 1:
        raise ConfigError(
            f"a map of {x_hw.shape[-2]}x{x_hw.shape[-1]} cells for radius {radius}",
            f"at least {radius}x{2 * radius - 1} cells",
        )
    return x_hw[..., dy : dy + rows, reach + dx : reach + dx + columns]


def path_maxima(edge_Bhw: torch.Tensor, radius: int) -> torch.Tensor:
    """Largest edge on the thick line from each source cell to each of its partners, ``[B,P,n]``, pairs as in ``paths``."""
    lines = [line for _, line in paths(radius)]
    views = {cell: shifted(edge_Bhw, cell, radius) for cell in sorted({cell for line in lines for cell in line})}
    # One stack a line: chained maxima have a backward that is six times slower.
    return torch.stack([torch.stack([views[cell] for cell in line]).max(0).values for line in lines], 1).flatten(2)


def pair_labels(label_Bhw: torch.Tensor, radius: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Whether each pair is both background, one and the same class, or of two kinds: bool ``[B,P,n]`` each.

    The label holds 0, class ids, and 255, which is in no pair.
    """
    start = shifted(label_Bhw, (0, 0), radius).flatten(1)[:, None]
    end = torch.stack([shifted(label_Bhw, offset, radius) for offset, _ in paths(radius)], 1).flatten(2)
    valid, same = (start != IGNORE) & (end != IGNORE), start == end
    return same & (start == 0), same & valid & (start != 0), ~same & valid


def boundary_losses(
    edge_logits_B1hw: torch.Tensor, displacement_B2hw: torch.Tensor | None, label_Bhw: torch.Tensor, radius: int = 5
) -> dict[str, torch.Tensor]:
    """Terms ``pos``, ``neg``, ``dp_fg``, ``dp_bg`` and their ``total`` (Ahn et al., section 4; spec 4.4).

    With a = 1 - the largest edge between two cells: pos is -log a over pairs of one kind, background and foreground in
    equal parts, neg is -log(1 - a) over pairs of two kinds. With D the difference of the displacements of two cells
    and o the way from one to the other: dp_fg is |D - o| over foreground pairs, dp_bg is |D| over background pairs.
    total = (pos + neg)/2 + (dp_fg + dp_bg)/2, every mean over the whole batch.

    Args:
        edge_logits_B1hw: before the sigmoid.
        displacement_B2hw: (dy, dx); None leaves the last two terms out.
        label_Bhw: 0 background, class ids, 255 open.
        radius: see ``IrnConfig``.

    Raises:
        ConfigError: a map too small for the radius.
    """
    with full_precision(edge_logits_B1hw.device.type):
        affinity = 1 - path_maxima(at_least_float32(edge_logits_B1hw)[:, 0].sigmoid(), radius)
        background, foreground, different = pair_labels(label_Bhw, radius)
        alike, unlike = -(affinity + EPS).log(), -(1 + EPS - affinity).log()
        pos, neg = (masked_mean(alike, background) + masked_mean(alike, foreground)) / 2, masked_mean(unlike, different)
        losses, total = {"pos": pos, "neg": neg}, (pos + neg) / 2
        if displacement_B2hw is not None:
            d_B2Pn, o_2P1 = displacement_differences(at_least_float32(displacement_B2hw), radius)
            losses["dp_fg"] = masked_mean((d_B2Pn - o_2P1).abs().sum(1), foreground, channels=2)
            losses["dp_bg"] = masked_mean(d_B2Pn.abs().sum(1), background, channels=2)
            total = total + (losses["dp_fg"] + losses["dp_bg"]) / 2
    return {**losses, "total": total}


def displacement_differences(displacement_B2hw: torch.Tensor, radius: int) -> tuple[torch.Tensor, torch.Tensor]:
    """D = displacement at a cell - that at its partner, ``[B,2,P,n]``, and the way o to the partner, ``[2,P,1]``."""
    offsets = [offset for offset, _ in paths(radius)]
    end = torch.stack([shifted(displacement_B2hw, offset, radius) for offset in offsets], 2)
    difference = (shifted(displacement_B2hw, (0, 0), radius)[:, :, None] - end).flatten(3)
    return difference, displacement_B2hw.new_tensor(offsets).T[..., None]


def masked_mean(values_BPn: torch.Tensor, mask_BPn: torch.Tensor, channels: int = 1) -> torch.Tensor:
    """Sum of the values under the mask over its count times ``channels``, 0 under an empty one."""
    return (values_BPn * mask_BPn).sum() / (channels * mask_BPn.sum() + EPS)


def ir_label(cams_kHW: Float, image_HW3: Labels, config: IrnConfig) -> Labels:
    """What IRNet learns from: ``uint8 [H,W]``, 0 background, i+1 the i-th map, 255 open (spec 4.3).

    Args:
        cams_kHW: maps >= 0 of the classes of the image, at its size; none gives background everywhere.
        image_HW3: RGB, for the two CRFs, which share their kernels.
        config: its two thresholds and its CRF.
    """
    if not len(cams_kHW):
        return np.zeros(image_HW3.shape[:2], np.uint8)
    parameters = preset(config.crf)
    crf = DenseCrf(image_HW3, parameters.gaussian, parameters.bilateral, config.crf_backend)

    def refined(threshold: float) -> npt.NDArray[np.int64]:
        winner = winners(cams_kHW, threshold)
        unary = unary_from_labels(winner, len(cams_kHW) + 1, parameters.gt_prob or 0.7)
        best: npt.NDArray[np.int64] = crf.infer(unary, parameters.iterations).argmax(0)
        return best

    return sure_labels(refined(config.foreground), refined(config.background))


def winners(cams_kHW: Float, threshold: float) -> npt.NDArray[np.int64]:
    """Arg-max of a constant background and the maps, each over its maximum + 1e-5; ties are background."""
    maps = cams_kHW / (cams_kHW.max((1, 2), keepdims=True) + EPS)
    best: npt.NDArray[np.int64] = np.concatenate([np.full_like(maps[:1], threshold), maps]).argmax(0)
    return best


def sure_labels(foreground_HW: npt.NDArray[np.int64], background_HW: npt.NDArray[np.int64]) -> Labels:
    """The label under the strong threshold; where that is background, 0 if the weak one agrees and 255 if not."""
    ground = np.where(background_HW == 0, 0, IGNORE)
    return np.where(foreground_HW == 0, ground, foreground_HW).astype(np.uint8)


def irn_sample(pixels: Labels, label: Labels, rng: Rng, config: IrnConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Training view: image ``float32 [3,crop,crop]`` and label ``uint8 [crop/4,crop/4]``, every fourth pixel from 2.

    Scale, flip, normalise, crop as in spec 4.4; outside of the image it is mean colour and 255.
    """
    image, view = segment_sample(pixels, label, rng, config.rescale, config.crop, jitter=False)
    return image, view[STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE].contiguous()
