"""High-dimensional Gaussian filter on the permutohedral lattice, and mean-field updates with it.

Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice",
Eurographics 2010, with the constants and the rounding of pydensecrf, so that both back ends give
the same masks. Shapes: N pixels, d feature dimensions, C labels, M lattice points.
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
    """The lattice points around features ``float32 [N,d]``, with symmetric normalisation.

    Splatting and slicing are weighted sums over index lists, hence ``embedding_bag``: it is
    parallel, sums in the same order on every call, and exists on CPU and GPU.
    """

    def __init__(self, features_Nd: Tensor) -> None:
        count, d = features_Nd.shape
        keys, weights = _simplices(features_Nd)
        codes, strides = _pack(keys)
        points, vertex = torch.unique(codes, return_inverse=True)
        self.vertex = vertex.reshape(count, d + 1)
        self.weight = weights.contiguous()
        # Stable, so that the order of summation does not depend on the device or the run.
        order = torch.argsort(vertex.reshape(-1), stable=True)
        self.pixel = torch.div(order, d + 1, rounding_mode="floor")
        self.pixel_weight = weights.reshape(-1)[order].contiguous()
        counts = torch.bincount(vertex.reshape(-1), minlength=len(points))
        self.offsets = counts.cumsum(0) - counts
        self.neighbours = _neighbours(points, strides)
        # pydensecrf's constant.
        self.gain = 1.0 / (1.0 + 2.0**-d)
        ones = torch.ones(count, 1, device=features_Nd.device)
        # pydensecrf's epsilon.
        self.norm_N1 = torch.rsqrt(self.raw_filter(ones) + 1e-20)

    def raw_filter(self, x_NC: Tensor) -> Tensor:
        """Splat, blur along each axis, slice: about ``sum_j exp(-|f_i - f_j|^2 / 2) x_j [N,C]``."""
        v_MC = F.embedding_bag(
            self.pixel,
            x_NC,
            self.offsets,
            mode="sum",
            per_sample_weights=self.pixel_weight.to(x_NC.dtype),
        )
        for before, after in self.neighbours:
            # Index M stands for a neighbour outside of the lattice, whose value is 0.
            ring = F.pad(v_MC, (0, 0, 0, 1))
            v_MC = v_MC + 0.5 * (ring.index_select(0, before) + ring.index_select(0, after))
        x_NC = F.embedding_bag(
            self.vertex, v_MC, mode="sum", per_sample_weights=self.weight.to(x_NC.dtype)
        )
        return x_NC * self.gain

    def filter(self, x_NC: Tensor) -> Tensor:
        """``n_i sum_j K(i,j) n_j x_j`` with ``n = 1/sqrt(K 1)``, ``[N,C]``."""
        return self.norm_N1 * self.raw_filter(self.norm_N1 * x_NC)


def _simplices(features_Nd: Tensor) -> tuple[Tensor, Tensor]:
    """Corners around each feature: keys ``int64 [N,d+1,d]``, barycentric weights ``[N,d+1]``."""
    count, d = features_Nd.shape
    device = features_Nd.device
    # Section 3.1: this scale makes the blur of the lattice a Gaussian of deviation 1.
    k = np.arange(d, dtype=np.float64)
    scale = (math.sqrt(2.0 / 3.0) * (d + 1) / np.sqrt((k + 1) * (k + 2))).astype(np.float32)
    features_Nd = features_Nd * torch.from_numpy(scale).to(device)

    # Onto the plane of d+1 coordinates whose sum is 0.
    plane = torch.empty(count, d + 1, device=device)
    total = torch.zeros(count, device=device)
    for j in range(d, 0, -1):
        plane[:, j] = total - j * features_Nd[:, j - 1]
        total = total + features_Nd[:, j - 1]
    plane[:, 0] = total

    # The nearest point whose coordinates are multiples of d+1, moved back onto the plane where
    # rounding has left it.
    cell = torch.round(plane * (1.0 / (d + 1)))
    rest = plane - cell * (d + 1)
    base = cell.long() * (d + 1)
    rank = _ranks(rest) + cell.long().sum(1, keepdim=True)
    low, high = rank < 0, rank > d
    shift = (low.long() - high.long()) * (d + 1)
    rank, base = rank + shift, base + shift

    t = (plane - base.to(torch.float32)) * (1.0 / (d + 1))
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
    """Number of larger coordinates of each one; of equal ones, the earlier counts as larger."""
    rank = torch.zeros(rest_Nd1.shape, dtype=torch.int64, device=rest_Nd1.device)
    for i in range(rest_Nd1.shape[1]):
        for j in range(i + 1, rest_Nd1.shape[1]):
            smaller = rest_Nd1[:, i] < rest_Nd1[:, j]
            rank[:, i] += smaller
            rank[:, j] += ~smaller
    return rank


def _pack(keys_NVd: Tensor) -> tuple[Tensor, list[int]]:
    """One int64 per key, in mixed radix, and the stride of each digit."""
    d = keys_NVd.shape[2]
    # Room for the neighbours of every key, so that a step never carries into the next digit.
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
    """For each axis, the index of the point before and after every point; M where there is none."""
    d = len(strides)
    pairs = []
    for axis in range(d + 1):
        step = -sum(strides) + ((d + 1) * strides[axis] if axis < d else 0)
        pairs.append((_look_up(points_M, points_M + step), _look_up(points_M, points_M - step)))
    return pairs


def _look_up(points_M: Tensor, codes_M: Tensor) -> Tensor:
    at = torch.searchsorted(points_M, codes_M).clamp_(max=len(points_M) - 1)
    return torch.where(points_M[at] == codes_M, at, len(points_M))


def image_lattices(
    image_HW3: npt.NDArray[np.uint8],
    gaussian: tuple[float, float],
    bilateral: tuple[float, float, float],
    device: str = "cpu",
) -> list[tuple[float, Lattice]]:
    """Weight and lattice of the smoothness and the appearance kernel of an image."""
    height, width = image_HW3.shape[:2]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    # x before y, as in pydensecrf: each dimension has a scale of its own.
    place = torch.stack([x, y], 2).reshape(-1, 2).to(device, torch.float32)
    colour = torch.tensor(image_HW3).reshape(-1, 3).to(device, torch.float32)
    (w, sxy), (w_b, sxy_b, srgb) = gaussian, bilateral
    near = Lattice(place / sxy)
    alike = Lattice(torch.cat([place / sxy_b, colour / srgb], 1))
    return [(w, near), (w_b, alike)]


def mean_field(unary_NC: Tensor, kernels: list[tuple[float, Lattice]], iterations: int) -> Tensor:
    """Probabilities ``[N,C]`` after parallel updates from ``softmax(-unary)``."""
    q_NC = torch.softmax(-unary_NC, 1)
    for _ in range(iterations):
        message_NC = -unary_NC
        for weight, lattice in kernels:
            message_NC = message_NC + weight * lattice.filter(q_NC)
        q_NC = torch.softmax(message_NC, 1)
    return q_NC
