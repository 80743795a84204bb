"""High-dimensional Gaussian filter on the permutohedral lattice, and the mean-field update on top
of it, in torch.

Adams, Baek & Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Eurographics
2010, as spec refine-segment 2.5 lays down. N pixels, d feature dimensions, C labels, M lattice
points.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.errors import ConfigError


class Lattice:
    """The lattice that features ``float32 [N,d]`` touch, with the symmetric normalisation of spec
    2.1.

    Splatting and slicing are weighted sums over index lists, hence ``embedding_bag``: parallel, the
    same order of summation on every call, and present on CPU and GPU alike.
    """

    def __init__(self, features_Nd: Tensor) -> None:
        count, d = features_Nd.shape
        keys, weights = _simplices(features_Nd)
        codes, strides = _pack(keys)
        points, vertex = torch.unique(codes, return_inverse=True)
        self.vertex = vertex.reshape(count, d + 1)
        self.weight = weights.contiguous()
        order = torch.argsort(vertex.reshape(-1), stable=True)
        self.pixel = torch.div(order, d + 1, rounding_mode="floor")
        self.pixel_weight = weights.reshape(-1)[order].contiguous()
        counts = torch.bincount(vertex.reshape(-1), minlength=len(points))
        self.offsets = counts.cumsum(0) - counts
        self.neighbours = _neighbours(points, strides)
        self.gain = 1.0 / (1.0 + 2.0**-d)
        ones = torch.ones(count, 1, device=features_Nd.device)
        self.norm_N1 = torch.rsqrt(self.raw_filter(ones) + 1e-20)

    def raw_filter(self, x_NC: Tensor) -> Tensor:
        """Splat, blur along every lattice axis, slice: about ``sum_j exp(-|f_i - f_j|^2 / 2) x_j``,
        ``[N,C]``.
        """
        v_MC = F.embedding_bag(
            self.pixel,
            x_NC,
            self.offsets,
            mode="sum",
            per_sample_weights=self.pixel_weight.to(x_NC.dtype),
        )
        for before, after in self.neighbours:
            padded = F.pad(v_MC, (0, 0, 0, 1))
            v_MC = v_MC + 0.5 * (padded.index_select(0, before) + padded.index_select(0, after))
        sliced = F.embedding_bag(
            self.vertex, v_MC, mode="sum", per_sample_weights=self.weight.to(x_NC.dtype)
        )
        return sliced * self.gain

    def filter(self, x_NC: Tensor) -> Tensor:
        """``n_i sum_j K(i,j) n_j x_j`` with ``n = 1/sqrt(K 1)``, ``[N,C]``."""
        return self.norm_N1 * self.raw_filter(self.norm_N1 * x_NC)


def _simplices(features_Nd: Tensor) -> tuple[Tensor, Tensor]:
    """The d+1 corners around each feature: keys ``int64 [N,d+1,d]`` and barycentric weights
    ``float32 [N,d+1]``.
    """
    count, d = features_Nd.shape
    device = features_Nd.device
    k = np.arange(d, dtype=np.float64)
    scale = (math.sqrt(2.0 / 3.0) * (d + 1) / np.sqrt((k + 1) * (k + 2))).astype(np.float32)
    scaled = features_Nd * torch.from_numpy(scale).to(device)

    elevated = torch.empty(count, d + 1, device=device)
    total = torch.zeros(count, device=device)
    for j in range(d, 0, -1):
        elevated[:, j] = total - j * scaled[:, j - 1]
        total = total + scaled[:, j - 1]
    elevated[:, 0] = total

    cell = torch.round(elevated * (1.0 / (d + 1)))
    rest = elevated - cell * (d + 1)
    base = cell.long() * (d + 1)
    rank = _ranks(rest) + cell.long().sum(1, keepdim=True)
    low, high = rank < 0, rank > d
    shift = (low.long() - high.long()) * (d + 1)
    rank, base = rank + shift, base + shift

    t = (elevated - base.to(torch.float32)) * (1.0 / (d + 1))
    weights = torch.zeros(count, d + 2, device=device)
    for i in range(d + 1):
        column = t[:, i : i + 1]
        weights.scatter_add_(1, d - rank[:, i : i + 1], column)
        weights.scatter_add_(1, d - rank[:, i : i + 1] + 1, -column)
    weights[:, 0] += 1.0 + weights[:, d + 1]

    remainder = torch.arange(d + 1, device=device).view(1, -1, 1)
    corner = torch.where(rank[:, None, :d] <= d - remainder, remainder, remainder - (d + 1))
    return base[:, None, :d] + corner, weights[:, : d + 1]


def _ranks(rest_Nd1: Tensor) -> Tensor:
    """How many coordinates are larger than each one; among equals the later one ranks as the larger
    index does.
    """
    rank = torch.zeros(rest_Nd1.shape, dtype=torch.int64, device=rest_Nd1.device)
    for i in range(rest_Nd1.shape[1]):
        for j in range(i + 1, rest_Nd1.shape[1]):
            smaller = rest_Nd1[:, i] < rest_Nd1[:, j]
            rank[:, i] += smaller
            rank[:, j] += ~smaller
    return rank


def _pack(keys_NVd: Tensor) -> tuple[Tensor, list[int]]:
    """One int64 a key, in mixed radix with room for the neighbours of every key, and the stride of
    each digit.
    """
    d = keys_NVd.shape[2]
    flat = keys_NVd.reshape(-1, d)
    low = flat.amin(0) - (d + 2)
    radix = [int(r) for r in flat.amax(0) + (d + 3) - low]
    if math.prod(radix) >= 2**62:
        raise ConfigError(
            "the image is too large for kernels this narrow",
            "larger deviations (sxy, srgb) or a smaller image",
        )
    strides = [math.prod(radix[i + 1 :]) for i in range(d)]
    return ((flat - low) * torch.tensor(strides, device=flat.device)).sum(1), strides


def _neighbours(points_M: Tensor, strides: list[int]) -> list[tuple[Tensor, Tensor]]:
    """For each of the d+1 axes the index of the point before and after every point; M where there
    is none.
    """
    d = len(strides)
    found = []
    for axis in range(d + 1):
        step = -sum(strides) + ((d + 1) * strides[axis] if axis < d else 0)
        found.append((_look_up(points_M, points_M + step), _look_up(points_M, points_M - step)))
    return found


def _look_up(points_M: Tensor, wanted_M: Tensor) -> Tensor:
    at = torch.searchsorted(points_M, wanted_M).clamp_(max=len(points_M) - 1)
    return torch.where(points_M[at] == wanted_M, at, len(points_M))


def image_lattices(
    image_HW3: npt.NDArray[np.uint8],
    gaussian: tuple[float, float],
    bilateral: tuple[float, float, float],
    device: str = "cpu",
) -> list[tuple[float, Lattice]]:
    """Weight and lattice of the smoothness and the appearance kernel of an image ``uint8
    [H,W,3]``.
    """
    height, width = image_HW3.shape[:2]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([x, y], 2).reshape(-1, 2).to(device, torch.float32)
    colour = torch.tensor(image_HW3).reshape(-1, 3).to(device, torch.float32)
    (w, sxy), (w_b, sxy_b, srgb) = gaussian, bilateral
    near = Lattice(place / sxy)
    alike = Lattice(torch.cat([place / sxy_b, colour / srgb], 1))
    return [(w, near), (w_b, alike)]


def mean_field(unary_NC: Tensor, kernels: list[tuple[float, Lattice]], iterations: int) -> Tensor:
    """``Q`` ``[N,C]`` after parallel updates from ``softmax(-U)`` (spec 2.1)."""
    q_NC = torch.softmax(-unary_NC, 1)
    for _ in range(iterations):
        message_NC = -unary_NC
        for weight, lattice in kernels:
            message_NC = message_NC + weight * lattice.filter(q_NC)
        q_NC = torch.softmax(message_NC, 1)
    return q_NC
