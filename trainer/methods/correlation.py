"""Maps refined by how alike their cells are: PCM (Wang et al., "SEAM", CVPR 2020) and PRCM (Zhang et al., "CPN", ICCV 2021).

Shapes: B images, K channels of the map with the background first, C feature channels, h w map, n = h w cells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F

EPS = 1e-5
RegionMode = Literal["code", "transposed", "class_softmax"]


def strongest_foreground(y_BKhw: torch.Tensor) -> torch.Tensor:
    """At each pixel the largest foreground channels, ties kept, the others 0; background (channel 0) untouched."""
    foreground = y_BKhw[:, 1:]
    strongest = foreground.amax(1, keepdim=True)
    return torch.cat([y_BKhw[:, :1], foreground * (foreground == strongest).to(foreground.dtype)], 1)


def with_background(y_BKhw: torch.Tensor) -> torch.Tensor:
    """Channel 0 replaced by 1 - the largest foreground channel."""
    foreground = y_BKhw[:, 1:]
    return torch.cat([1 - foreground.amax(1, keepdim=True), foreground], 1)


def normalised_seed(cam_BKhw: torch.Tensor) -> torch.Tensor:
    """Seed e of SEAM, ``[B,K,h,w]`` in 0..1 without gradient, of a class map before the ReLU (spec methods 14.1).

    With d = ReLU(cam): e = ReLU(d - 1e-5) / (max d + 1e-5), e_0 = 1 - max_c e_c; then each pixel keeps its largest
    foreground channel only. Channel 0 of the map is not read.
    """
    d = F.relu(cam_BKhw.detach())
    e = F.relu(d - EPS) / (d.amax((2, 3), keepdim=True) + EPS)
    return strongest_foreground(with_background(e))


def pixel_correlation(seed_BKhw: torch.Tensor, embedding_BChw: torch.Tensor) -> torch.Tensor:
    """PCM: a map refined by the likeness of its cells, ``[B,K,h,w]`` (SEAM, eq. 6; spec methods 14.1).

    With theta the embedding over its norm at each cell and A = ReLU(theta^T theta), [n,n]:
    refined_j = sum_i e_i A_ij / (sum_i A_ij + 1e-5).

    Deviation (D-PCM-1): the CPN paper prints a double sum as denominator; this is the released code of both papers.

    Args:
        seed_BKhw: e, see ``normalised_seed``.
        embedding_BChw: theta before its normalisation.
    """
    theta = embedding_BChw / (embedding_BChw.norm(dim=1, keepdim=True) + EPS)
    seed, theta = seed_BKhw.flatten(2), theta.flatten(2)
    if torch.compiler.is_compiling():
        refined = correlate(seed, theta)
    else:
        # One image at a time: A of a single photograph at twice its size takes half a gigabyte.
        refined = torch.cat([correlate(e[None], t[None]) for e, t in zip(seed, theta)])
    return refined.view_as(seed_BKhw)


def correlate(seed_BKn: torch.Tensor, theta_BCn: torch.Tensor) -> torch.Tensor:
    """e A with the columns of A = ReLU(theta^T theta) over their sum + 1e-5, ``[B,K,n]``."""
    affinity = torch.bmm(theta_BCn.transpose(1, 2), theta_BCn).relu_()
    # Dividing the product instead of A saves a second matrix of its size.
    return torch.bmm(seed_BKn, affinity) / (affinity.sum(1, keepdim=True) + EPS)


def pixel_region_correlation(
    seed_BKhw: torch.Tensor,
    features_BChw: torch.Tensor,
    f9: Callable[[torch.Tensor], torch.Tensor],
    f10: Callable[[torch.Tensor], torch.Tensor],
    mode: RegionMode = "code",
) -> torch.Tensor:
    """PRCM: weight P of each class at each cell, ``[B,K,h,w]``; the refined map is PCM + P e (spec methods 15.2).

    Z = class means of F, weighted by the spatial soft-max of e; key = ReLU(f10(Z)), query = ReLU(f9(F));
    P = soft-max(scale key query).

    Deviations of the released code from the paper: D-PRCM-1, the key ``[C',K]`` is read in memory order as ``[K,C']``;
    D-PRCM-2, the soft-max runs over space, which the paper does not say.

    Args:
        seed_BKhw: e.
        features_BChw: F, what ``f9`` and ``f10`` take.
        f9: 1x1 convolution of the query, C to C' channels, the one of PCM.
        f10: 1x1 convolution of the key, C to C' channels.
        mode: ``code`` as released, scale K^(-1/2); ``transposed`` the same with the key transposed, not re-read;
            ``class_softmax`` transposed, scale C'^(-1/2), soft-max over classes at each cell.
    """
    weights_BKn = seed_BKhw.flatten(2).softmax(2)
    z_BCK = torch.bmm(features_BChw.flatten(2), weights_BKn.transpose(1, 2))
    key_BcK = F.relu(f10(z_BCK[..., None])).squeeze(3)
    query_Bcn = F.relu(f9(features_BChw)).flatten(2)
    _, channels, classes = key_BcK.shape
    key_BKc = key_BcK.reshape(-1, classes, channels) if mode == "code" else key_BcK.transpose(1, 2)
    scale = (channels if mode == "class_softmax" else classes) ** -0.5
    scores: torch.Tensor = scale * torch.bmm(key_BKc, query_Bcn)
    weights = scores.softmax(1 if mode == "class_softmax" else 2)
    return weights.view_as(seed_BKhw)
