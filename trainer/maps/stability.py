"""Whether the views of an image agree on where a class is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

HALF = 0.5
"""Share of its maximum from which a map counts as being on its object."""


def stability(maps: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float | None:
    """How much the largest view and the others agree, without knowing the truth.

    It is the IoU of the cells where the map of each view has over half of its maximum, averaged
    over classes and pairs of views.

    Args:
        maps: for each scale the maps ``[k,h,w] >= 0`` of the image and of its mirror (still
            mirrored), as for ``merge``.

    Returns:
        0..1; None for a single view.
    """
    if len(maps) < 2:
        return None
    sums = [straight + mirror.flip(-1) for straight, mirror in maps]
    largest = max(sums, key=lambda view: view.shape[-1])
    regions = [_region(view, largest.shape[1:]) for view in sums if view is not largest]
    own = _region(largest, largest.shape[1:])
    shared = [(own & other).sum((1, 2)) / (own | other).sum((1, 2)) for other in regions]
    # A map that is 0 everywhere has no region.
    return float(torch.stack(shared).nan_to_num(0).mean())


def _region(maps_Khw: torch.Tensor, size: torch.Size) -> torch.Tensor:
    large = F.interpolate(maps_Khw[None], size, mode="bilinear", align_corners=False)[0]
    return large > HALF * large.amax((1, 2), keepdim=True)
