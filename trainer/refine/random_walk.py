"""Random walks of class maps over a sparse graph of neighbouring cells.

AffinityNet's: Ahn and Kwak, "Learning Pixel-level Semantic Affinity", CVPR 2018 (psa).
IRNet's: Ahn, Cho and Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel
Relations", CVPR 2019 (IRN). With A the affinities, 1 on the diagonal, and D the row
sums of A^beta (element-wise), a walk of n steps is ``y = S^n x``, ``S = D^-1 A^beta``. The released
codes square the dense ``[n,n]`` matrix. A cell has at most 69 neighbours, so here S stays sparse.

Shapes: K maps, C feature channels, P pairs per cell (``half_plane(radius)``), h w map, n = h w
cells.
"""

from __future__ import annotations

import math
import warnings
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.errors import ConfigError, nearest
from trainer.refine.pairs import Offset, half_plane, paths

Borders = Literal["psa", "full"]
Solver = Literal["chebyshev", "power"]
BORDERS: tuple[Borders, ...] = ("psa", "full")
SOLVERS: tuple[Solver, ...] = ("chebyshev", "power")

# Float32 loses 1e-6 (psa) to 5e-5 (IRN) in 256 steps, float64 1e-15; on a CPU both take about the
# same time.
CPU_DTYPE, GPU_DTYPE = torch.float64, torch.float32
TAIL = {torch.float64: 1e-12, torch.float32: 1e-7}


def affinity_walk(
    maps_Khw: Tensor,
    features_Chw: Tensor,
    beta: float = 8,
    steps: int = 256,
    radius: int = 5,
    borders: Borders = "psa",
    solver: Solver = "chebyshev",
) -> Tensor:
    """Maps after psa's walk, ``[K,h,w]`` in the dtype and on the device of ``maps_Khw``.

    Every result is a mean of the map's values with weights that sum to one, so its range does not
    grow. The walk computes in float64 on a CPU and in float32 elsewhere.

    Args:
        maps_Khw: any float maps, the background among them.
        features_Chw: AffinityNet's features; see ``feature_affinity``, also for ``borders``.
        beta: power of the affinities, above 0.
        steps: 256 is psa, 64 SEAM.
        radius: cells nearer than this are neighbours.
        borders: ``psa`` as released, ``full`` every pair inside the map.
        solver: ``chebyshev`` or ``power``, the plain chain of products.

    Raises:
        ConfigError: shapes that do not fit, maps that are not float, or an impossible knob.
    """
    _check(maps_Khw, features_Chw, "features", 3)
    affinity_Phw = feature_affinity(features_Chw.detach(), radius, borders)
    return walk(maps_Khw, transition(affinity_Phw, radius, beta), steps, solver)


def boundary_walk(
    cams_Khw: Tensor,
    edge_hw: Tensor,
    beta: float = 10,
    steps: int = 256,
    radius: int = 5,
    solver: Solver = "chebyshev",
) -> Tensor:
    """Maps after IRN's walk of ``cams * (1 - edge)``, ``[K,h,w]`` in the dtype of ``cams_Khw``.

    The maps are not divided by their maximum and get no background: IRN does both after the
    up-sampling.

    Args:
        cams_Khw: float maps of the present classes, each in 0..1.
        edge_hw: probability of a boundary, 0..1, after the sigmoid.
        beta: power of the affinities, above 0.
        steps: steps of the walk.
        radius: cells nearer than this are neighbours.
        solver: ``chebyshev`` or ``power``, see ``walk``.

    Raises:
        ConfigError: shapes that do not fit, maps that are not float, an edge outside 0..1, or an
            impossible knob.
    """
    _check(cams_Khw, edge_hw, "edge", 2)
    edge = edge_hw.detach().to(_working_dtype(cams_Khw))
    chain = transition(boundary_affinity(edge, radius), radius, beta)
    return walk(cams_Khw.to(edge.dtype) * (1 - edge), chain, steps, solver).to(cams_Khw.dtype)


def feature_affinity(features_Chw: Tensor, radius: int = 5, borders: Borders = "psa") -> Tensor:
    """``exp(-mean_c |f(p) - f(p+o)|)`` for each offset o of ``half_plane(radius)``, ``[P,h,w]``.

    Values lie in 0..1; 0 is no pair. psa's pairs start only in cells at least ``radius - 1`` away
    from the left, right and bottom border, so the first four cells of the first row and three in
    each lower corner have none. A map lower than 5 or narrower than 9 has no such cell; there pairs
    are nearer than ``(min(h, w) - 1) // 2``, SEAM's rule for tiny maps.

    Raises:
        ConfigError: radius below 1 or an unknown kind of borders.
    """
    if borders not in BORDERS:
        raise ConfigError(f"unknown borders {borders!r}", nearest(borders, BORDERS))
    f = features_Chw if features_Chw.dtype.itemsize >= 4 else features_Chw.float()
    _, h, w = f.shape
    offsets = _offsets(radius)
    margin = radius if h >= radius and w >= 2 * radius - 1 else (min(h, w) - 1) // 2
    usable = set(offsets if borders == "full" else half_plane(margin))
    affinity_Phw = f.new_zeros((len(offsets), h, w))
    for affinity_hw, offset in zip(affinity_Phw, offsets):
        if offset in usable:
            sources = (
                _sources(h, w, offset)
                if borders == "full"
                else (0, h - margin + 1, margin - 1, w - margin + 1)
            )
            near, far = _moved(f, sources, (0, 0)), _moved(f, sources, offset)
            _moved(affinity_hw, sources, (0, 0)).copy_((near - far).abs_().mean(0).neg_().exp_())
    return affinity_Phw


def boundary_affinity(edge_hw: Tensor, radius: int = 5) -> Tensor:
    """1 - the largest edge from p to p+o, for each offset o of ``half_plane(radius)``, ``[P,h,w]``.

    The lines are those of ``paths``. Pairs that leave the map are 0, as in IRN, which pads the edge
    with 1.

    Raises:
        ConfigError: radius below 1, or an edge outside 0..1.
    """
    h, w = edge_hw.shape
    offsets, lines = _offsets(radius), dict(paths(radius))
    if edge_hw.numel() and not (edge_hw.min() >= 0 and edge_hw.max() <= 1):
        raise ConfigError(
            f"edge from {edge_hw.min():g} to {edge_hw.max():g}",
            "probabilities, 0 to 1",
            "take the sigmoid of logits",
        )
    affinity_Phw = edge_hw.new_zeros((len(offsets), h, w))
    for affinity_hw, offset in zip(affinity_Phw, offsets):
        sources = _sources(h, w, offset)
        on_line = torch.stack([_moved(edge_hw, sources, cell) for cell in lines[offset]])
        _moved(affinity_hw, sources, (0, 0)).copy_(1 - on_line.amax(0))
    return affinity_Phw


def transition(affinity_Phw: Tensor, radius: int = 5, beta: float = 8) -> Tensor:
    """S = D^-1 A^beta as a sparse CSR matrix ``[n,n]``; float64 on a CPU, float32 elsewhere.

    Args:
        affinity_Phw: affinities in 0..1 in the order of ``half_plane(radius)``; 0 for no pair.
        radius: cells nearer than this are neighbours.
        beta: power of the affinities, above 0.

    Raises:
        ConfigError: radius below 1, or beta not above 0.
    """
    if not beta > 0:
        raise ConfigError(f"beta {beta:g}", "above 0")
    h, w = affinity_Phw.shape[1:]
    dtype, device = _working_dtype(affinity_Phw), affinity_Phw.device
    steps = [dy * w + dx for dy, dx in _offsets(radius)]
    ahead_Pn = affinity_Phw.detach().flatten(1).to(dtype) ** beta
    # No pair leaves the map, so what rolls over the end is 0.
    behind = [weight.roll(step) for weight, step in zip(ahead_Pn, steps)]
    weight_nQ = torch.stack([*reversed(behind), ahead_Pn.new_ones(h * w), *ahead_Pn], 1)
    step_Q = torch.tensor(
        [*(-step for step in reversed(steps)), 0, *steps], dtype=torch.int32, device=device
    )
    # Float32 sums would cost a third of the accuracy that the walk has in float32.
    degree_n1 = weight_nQ.sum(1, keepdim=True, dtype=torch.float64)
    present = weight_nQ != 0
    columns = (torch.arange(h * w, dtype=torch.int32, device=device)[:, None] + step_Q)[present]
    starts = F.pad(present.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    values = (weight_nQ / degree_n1).to(dtype)[present]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            starts, columns, values, (h * w, h * w), check_invariants=False
        )


@torch.no_grad()
def walk(
    maps_Khw: Tensor, transition_nn: Tensor, steps: int, solver: Solver = "chebyshev"
) -> Tensor:
    """``S^steps`` applied to each map, ``[K,h,w]`` in the dtype of the maps, without gradient.

    ``chebyshev`` takes 112 products for 256 steps (84 in float32). Its truncation error e of a map
    x obeys ``sum_i d_i e_i^2 <= TAIL^2 sum_i d_i x_i^2``, where d are the row sums of A^beta, 1 to
    69 at radius 5; TAIL is 1e-12 in float64 and 1e-7 in float32. Rounding adds 1e-15, in float32
    1e-6 to 5e-5.

    Raises:
        ConfigError: maps that are not float, steps below 0, or an unknown solver.
    """
    if solver not in SOLVERS:
        raise ConfigError(f"unknown solver {solver!r}", nearest(solver, SOLVERS))
    if steps < 0:
        raise ConfigError(f"a walk of {steps} steps", "0 or more")
    if not maps_Khw.is_floating_point():
        raise ConfigError(f"{maps_Khw.dtype} maps", "float maps")
    # A copy, because the solvers write into it.
    x_nK = (
        maps_Khw.flatten(1).T.to(transition_nn.dtype).clone(memory_format=torch.contiguous_format)
    )
    solve = _power if solver == "power" else _chebyshev
    # Autocast would round the products to 16 bits.
    with torch.autocast(x_nK.device.type, enabled=False):
        y_nK = solve(x_nK, transition_nn, steps)
    return y_nK.T.reshape(maps_Khw.shape).to(maps_Khw.dtype)


def _power(x_nK: Tensor, s_nn: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        x_nK = s_nn @ x_nK
    return x_nK


def _chebyshev(x_nK: Tensor, s_nn: Tensor, steps: int) -> Tensor:
    first, *rest = chebyshev_coefficients(steps, TAIL[x_nK.dtype])
    y_nK = first * x_nK
    previous, current = x_nK, s_nn @ x_nK
    for coefficient in rest:
        y_nK.add_(current, alpha=coefficient)
        # In place, as fresh memory costs as much as the product itself.
        following = torch.addmm(previous, s_nn, current, beta=-1, alpha=2, out=previous)
        previous, current = current, following
    return y_nK


@cache
def chebyshev_coefficients(steps: int, tail: float) -> tuple[float, ...]:
    """c_0.. of ``x^steps = sum_k c_k T_k(x)``, up to a rest that sums to less than ``tail``.

    ``c_k = 2^(1-n) C(n, (n-k)/2)`` where n - k is even, half of it for k = 0, else 0. All are >= 0
    and |T_k| <= 1 on the spectrum of S, so ``tail`` bounds the error.
    """
    # Quotients of whole numbers, since logarithms would cost digits.
    total = left = 2**steps
    coefficients = []
    for k in range(steps + 1):
        ways = 0 if (steps - k) % 2 else math.comb(steps, (steps - k) // 2) * (2 if k else 1)
        coefficients.append(ways / total)
        left -= ways
        if left / total < tail:
            break
    return tuple(coefficients)


def _offsets(radius: int) -> tuple[Offset, ...]:
    if radius < 1:
        raise ConfigError(f"radius {radius}", "1 or more")
    return half_plane(radius)


def _sources(h: int, w: int, offset: Offset) -> tuple[int, int, int, int]:
    """Top, bottom, left and right (ends exclusive) of the cells whose ``offset`` is in the map."""
    dy, dx = offset
    left = max(0, -dx)
    return 0, max(0, h - dy), left, max(left, w - max(0, dx))


def _moved(x: Tensor, box: tuple[int, int, int, int], offset: Offset) -> Tensor:
    (top, bottom, left, right), (dy, dx) = box, offset
    return x[..., top + dy : bottom + dy, left + dx : right + dx]


def _working_dtype(x: Tensor) -> torch.dtype:
    return CPU_DTYPE if x.device.type == "cpu" else GPU_DTYPE


def _check(maps_Khw: Tensor, other: Tensor, name: str, dimensions: int) -> None:
    if maps_Khw.ndim != 3 or not maps_Khw.is_floating_point():
        raise ConfigError(
            f"{maps_Khw.dtype} maps of shape {list(maps_Khw.shape)}", "float maps [K,h,w]"
        )
    size = list(maps_Khw.shape[1:])
    if other.ndim != dimensions or list(other.shape[-2:]) != size:
        raise ConfigError(
            f"{name} of shape {list(other.shape)} for maps of {size[0]}x{size[1]}",
            f"{name} of the maps' height, width",
        )
