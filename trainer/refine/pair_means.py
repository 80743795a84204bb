"""Mean losses of IRNet over pairs of cells, in the memory of one pair offset.

Their gradients are formed on the way forward: autograd would store several maps of all pairs.

Shapes: B images, h w map at stride 4, P pair offsets, n source cells; K kinds of pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from trainer.refine.pairs import paths, shifted
from trainer.training.collectives import process_mean

EPS = 1e-5


def edge_means(
    edge_Bhw: torch.Tensor, masks_3BPn: torch.Tensor, radius: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean -log a of background and of foreground pairs and mean -log(1 - a) of pairs of two kinds,
    where a = 1 - the largest edge between the cells.

    Args:
        edge_Bhw: float32 in 0..1.
        masks_3BPn: pairs of the three kinds.
        radius: see ``IrnConfig``.
    """
    background, foreground, different = _EdgeMeans.apply(edge_Bhw, masks_3BPn, radius)
    return background, foreground, different


def way_means(
    displacement_B2hw: torch.Tensor, masks_2BPn: torch.Tensor, radius: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean |D| of background and |D - o| of foreground pairs: D is the displacement at a pair's
    start minus that at its end, o the offset between them.

    Args:
        displacement_B2hw: (dy, dx) in cells, float32.
        masks_2BPn: background and foreground pairs.
        radius: see ``IrnConfig``.
    """
    background, foreground = _WayMeans.apply(displacement_B2hw, masks_2BPn, radius)
    return background, foreground


class _PairMeans(torch.autograd.Function):
    """Means over kinds of pairs, with the slopes of each kind from the forward pass."""

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (slopes_Kx,) = ctx.saved_tensors
        return torch.tensordot(torch.stack(grads), slopes_Kx, 1), None, None


class _EdgeMeans(_PairMeans):
    @staticmethod
    def forward(
        ctx: Any, edge_Bhw: torch.Tensor, masks_3BPn: torch.Tensor, radius: int
    ) -> tuple[torch.Tensor, ...]:
        ones = masks_3BPn.view(torch.uint8)
        # The row of each pair in ``slopes_4n``: 0 background, 1 foreground, 2 different, 3 none.
        kinds_BPn = 3 - 3 * ones[0] - 2 * ones[1] - ones[2]
        sums, counts = torch.zeros(2, 3, device=edge_Bhw.device)
        # Pairs of no kind write into the fourth row, which is dropped.
        slopes_4n = edge_Bhw.new_zeros(4, edge_Bhw.numel())
        for k, (largest, place) in enumerate(line_maxima(edge_Bhw, radius)):
            masks_3N = masks_3BPn[:, :, k].reshape(3, -1).float()
            # The largest edge of a pair of two kinds; 1 minus it for all other pairs.
            share = (largest.flatten() + masks_3N[2] - 1).abs_().add_(EPS)
            sums -= masks_3N @ share.log()
            counts += masks_3N.sum(1)
            index = torch.add(place.flatten(), kinds_BPn[:, k].flatten(), alpha=edge_Bhw.numel())
            slopes_4n.view(-1).scatter_add_(0, index, (1 - 2 * masks_3N[2]).div_(share))
        scale = 1 / (process_mean(counts) + EPS)
        ctx.save_for_backward((slopes_4n[:3] * scale[:, None]).view(3, *edge_Bhw.shape))
        return tuple(sums * scale)


class _WayMeans(_PairMeans):
    @staticmethod
    def forward(
        ctx: Any, displacement_B2hw: torch.Tensor, masks_2BPn: torch.Tensor, radius: int
    ) -> tuple[torch.Tensor, ...]:
        start = shifted(displacement_B2hw, (0, 0), radius)
        sums, counts = torch.zeros(2, 2, device=start.device)
        slopes_2B2hw = displacement_B2hw.new_zeros(2, *displacement_B2hw.shape)
        for k, (offset, _) in enumerate(paths(radius)):
            masks_2Bhw = masks_2BPn[:, :, k].reshape(2, -1, *start.shape[2:]).float()
            end, way = (
                shifted(displacement_B2hw, offset, radius),
                start.new_tensor(offset)[:, None, None],
            )
            gap_B2hw = (start - end).sub_(masks_2Bhw[1, :, None] * way)
            sums += masks_2Bhw.flatten(1) @ gap_B2hw.abs().sum(1).flatten()
            # A pair has two coordinates, and the mean is over both.
            counts += 2 * masks_2Bhw.flatten(1).sum(1)
            change = gap_B2hw.sign_() * masks_2Bhw[:, :, None]
            shifted(slopes_2B2hw, (0, 0), radius).add_(change)
            shifted(slopes_2B2hw, offset, radius).sub_(change)
        scale = 1 / (process_mean(counts) + EPS)
        ctx.save_for_backward(slopes_2B2hw * scale.view(2, 1, 1, 1, 1))
        return tuple(sums * scale)


def line_maxima(edge_Bhw: torch.Tensor, radius: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Largest edge on the thick line from each source cell to its partner, and its index in the
    flattened ``edge_Bhw``; of equal edges the last.

    Yields ``[B,h-r+1,w-2r+2]`` of each for every offset of ``paths``.

    Args:
        edge_Bhw: float32, at least 0.
        radius: see ``IrnConfig``.
    """
    # The bits of non-negative floats are ordered like the floats, so value and place share one
    # integer and one chain of maxima finds both.
    places = torch.arange(edge_Bhw.numel(), device=edge_Bhw.device).view_as(edge_Bhw)
    keys_Bhw = edge_Bhw.contiguous().view(torch.int32).long() << 32 | places
    for _, (first, second, *rest) in paths(radius):
        best = torch.maximum(shifted(keys_Bhw, first, radius), shifted(keys_Bhw, second, radius))
        for cell in rest:
            torch.maximum(best, shifted(keys_Bhw, cell, radius), out=best)
        yield (best >> 32).int().view(torch.float32), best & 0xFFFFFFFF
