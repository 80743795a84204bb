"""From a trained IRNet to masks and instances (Ahn, Cho and Kwak, CVPR 2019, section 5).

Shapes: B images, k classes of the image, n instances, H W image, h w map at stride 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage

from trainer.data.sizes import PIXELS
from trainer.methods.base import at_least_float32
from trainer.refine.irnet import EPS, STRIDE, IrnConfig, IrNet
from trainer.refine.random_walk import boundary_walk

# Constants of the released code: steps along the displacement, the length in cells below which a
# displacement is a centre, and the share of the image below which an instance has score 0.
MOVES = 300
WEAK = 2.5
LEAST_AREA = 0.01


def on_canvas(images: torch.Tensor, sides: tuple[int, int]) -> torch.Tensor:
    """``[...,H,W]`` at the top left of zeros ``[...,*sides]``, cut off where it does not fit."""
    height, width = sides
    return F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))


def mean_displacement(batches: Iterable[torch.Tensor]) -> torch.Tensor:
    """``[2]`` for ``IrNet.mean_shift``: mean over batches ``[B,2,h,w]`` of each batch's mean.

    The batches are outputs in evaluation mode, with a mean shift of 0, of images ``on_canvas``.
    All batches count alike, so leave out a last one that is not full, unless it is the only one.
    """
    return torch.stack([at_least_float32(batch).mean((0, 2, 3)) for batch in batches]).mean(0)


@torch.no_grad()
def edge_and_displacement(
    net: IrNet, image_3HW: torch.Tensor, canvas: int = 512, pixels: int = PIXELS
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Edge in 0..1 ``[h,w]``, and displacement ``[2,h,w]`` or None, of an image; h = ceil(H/4).

    The edge logits of image and mirror image are averaged.

    Args:
        net: in evaluation mode.
        image_3HW: RGB with ImageNet statistics, on the device of the network.
        canvas: see ``IrnConfig``.
        pixels: the most in one forward pass; one canvas always passes.
    """
    height, width = image_3HW.shape[1:]
    h, w = -(-height // STRIDE), -(-width // STRIDE)
    # Group norm sees the empty part too: published maps come from a canvas of one size.
    sides = (max(canvas, -(-height // 16) * 16), max(canvas, -(-width // 16) * 16))
    pair = on_canvas(torch.stack([image_3HW, image_3HW.flip(2)]), sides)
    together = 2 if 2 * sides[0] * sides[1] <= pixels else 1
    outputs = [net(part) for part in torch.split(pair, together)]
    edges = torch.cat([at_least_float32(edge)[:, 0, :h, :w] for edge, _ in outputs])
    # The mean is of logits, not of probabilities, as released.
    edge = ((edges[0] + edges[1].flip(1)) / 2).sigmoid()
    # Only the unmirrored one, as released: in the mirror image dx has the other sign.
    displacement = outputs[0][1]
    return edge, None if displacement is None else at_least_float32(displacement)[0, :, :h, :w]


def walked_maps(
    cams_khw: torch.Tensor,
    edge_hw: torch.Tensor,
    size: tuple[int, int],
    config: IrnConfig,
    enlarge: bool = True,
) -> torch.Tensor:
    """The maps after the random walk, divided by their largest value.

    Args:
        cams_khw: maps >= 0.
        edge_hw: from ``edge_and_displacement``.
        size: of the result ``[k,*size]``.
        config: of the walk.
        enlarge: fourfold, to the image's size; otherwise the maps stay at stride 4.
    """
    if not len(cams_khw):
        return cams_khw.new_zeros(0, *size)
    knobs = (config.beta, config.steps, config.walk_radius, config.solver)
    maps = boundary_walk(cams_khw, edge_hw, *knobs)
    if enlarge:
        maps = F.interpolate(maps[None], scale_factor=STRIDE, mode="bilinear", align_corners=False)
        maps = maps[0]
    maps = maps[:, : size[0], : size[1]]
    # One maximum for all classes: a class that is weak in the image stays weak.
    return maps / maps.amax().clamp_min(torch.finfo(maps.dtype).tiny)


def with_threshold(maps_kHW: torch.Tensor, threshold: float) -> torch.Tensor:
    """``[k+1,H,W]``: a constant score of the background, then the maps."""
    return torch.cat([maps_kHW.new_full((1, *maps_kHW.shape[1:]), threshold), maps_kHW])


@dataclass(frozen=True)
class Instances:
    """The instances of one image.

    Attributes:
        labels: ``int32 [H,W]``, 0 background, i+1 the i-th instance.
        classes: ``int64 [n]``, index of the map of each instance.
        scores: ``float32 [n]`` in 0..1, the largest score of the walk inside; 0 for an instance
            smaller than 1 % of the image.
    """

    labels: npt.NDArray[np.int32]
    classes: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]


def instances(
    cams_khw: torch.Tensor,
    edge_hw: torch.Tensor,
    displacement_2hw: torch.Tensor,
    size: tuple[int, int],
    config: IrnConfig,
) -> Instances:
    """Cut each class map into clusters of cells with one centre, and walk from each piece.

    Args:
        cams_khw: maps >= 0 of the classes of the image; each is divided by its maximum.
        edge_hw: from ``edge_and_displacement``.
        displacement_2hw: from ``edge_and_displacement``.
        size: (H, W) of the image.
        config: walk and threshold.
    """
    ids_hw = clusters(centroids(displacement_2hw), displacement_2hw).to(cams_khw.device)
    count = int(ids_hw.max()) + 1
    masks_nhw = torch.arange(count, device=ids_hw.device)[:, None, None] == ids_hw
    cams = cams_khw / (cams_khw.amax((1, 2), keepdim=True) + EPS)
    # Every class meets every cluster, as released.
    pieces = (cams[:, None] * masks_nhw).flatten(0, 1)
    classes = torch.arange(len(cams), device=cams.device).repeat_interleave(count)
    # A piece without any score would stay so, at the cost of a walk.
    some = pieces.flatten(1).any(1)
    maps = walked_maps(pieces[some], edge_hw, size, config)
    winner = with_threshold(maps, config.threshold).argmax(0)
    return connected(winner.cpu().numpy(), maps.cpu().numpy(), classes[some].cpu().numpy())


def centroids(displacement_2hw: torch.Tensor, moves: int = MOVES) -> torch.Tensor:
    """Cell (y, x) where each cell ends when it follows the displacement, ``int64 [2,h,w]``."""
    height, width = displacement_2hw.shape[1:]
    field_2N, device = displacement_2hw.flatten(1), displacement_2hw.device
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    at = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).flatten(1).to(field_2N.dtype)
    last = at[:, -1:]
    for _ in range(moves):
        low = at.floor()
        (y0, x0), (y1, x1), (ty, tx) = low.long(), at.ceil().long(), at - low
        above = field_2N[:, y0 * width + x0].lerp(field_2N[:, y0 * width + x1], tx)
        below = field_2N[:, y1 * width + x0].lerp(field_2N[:, y1 * width + x1], tx)
        # As released, a cell that would leave the map stops at its border.
        at = torch.minimum((at + above.lerp(below, ty)).clamp_min(0), last)
    return at.round().long().view(2, height, width)


def clusters(
    centroids_2hw: torch.Tensor, displacement_2hw: torch.Tensor, weak: float = WEAK
) -> torch.Tensor:
    """Cluster 0, 1, ... of each cell, ``int64 [h,w]`` on the CPU.

    Clusters are the 4-connected regions where the displacement is shorter than ``weak``; a cell
    belongs to the cluster around its centroid. Cells whose centroid lies in none form one more.
    """
    regions, _ = ndimage.label((displacement_2hw.norm(dim=0) < weak).cpu().numpy())
    y, x = centroids_2hw.cpu().numpy()
    _, ids = np.unique(regions[y, x], return_inverse=True)
    return torch.from_numpy(ids.reshape(regions.shape))


def connected(
    winner_HW: npt.NDArray[np.int64],
    maps_nHW: npt.NDArray[np.floating[Any]],
    classes_n: npt.NDArray[np.int64],
) -> Instances:
    """Instances: the 4-connected parts of a map of winners (0 background, i+1 the i-th map)."""
    labels = np.zeros(winner_HW.shape, np.int32)
    classes: list[int] = []
    scores: list[float] = []
    for index in np.unique(winner_HW[winner_HW > 0]) - 1:
        parts, count = ndimage.label(winner_HW == index + 1)
        inside, each = parts > 0, range(1, count + 1)
        labels[inside] = parts[inside] + len(classes)
        areas = ndimage.sum_labels(inside, parts, each)
        best = ndimage.maximum(maps_nHW[index], parts, each)
        classes += [int(classes_n[index])] * count
        scores += np.where(areas < LEAST_AREA * labels.size, 0, best).tolist()
    return Instances(labels, np.array(classes, np.int64), np.array(scores, np.float32))
