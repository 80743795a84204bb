"""Arithmetic over the labels of a map, in the form that engines are fast at.

Shapes: N images, B views, L labels, H W image, h w map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def softmax(logits_BLhw: torch.Tensor) -> torch.Tensor:
    """Soft-max over the labels, spelt out: onnxruntime's own transposes twice where the axis is not
    the last.
    """
    powers = (logits_BLhw - logits_BLhw.amax(1, keepdim=True)).exp()
    return powers / powers.sum(1, keepdim=True)


def planes_of(maps_NLHW: torch.Tensor) -> list[torch.Tensor]:
    """[N,H,W] of each label, each a Gather in the graph: OpenVINO takes ten times as long over a
    Split.
    """
    return [maps_NLHW[:, label] for label in range(maps_NLHW.shape[1])]


def largest_of(planes: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest value of each pixel, and which plane has it (uint8; the first one of equals), of
    planes [N,H,W].

    One plane after another, each still in the cache: twice as fast in onnxruntime as reductions
    over an axis that is not the last (bench/export_head.py).
    """
    peak_NHW, index_NHW = planes[0], torch.zeros_like(planes[0], dtype=torch.uint8)
    for number, plane in enumerate(planes[1:], 1):
        index_NHW = torch.where(
            plane > peak_NHW, torch.tensor(number, dtype=torch.uint8), index_NHW
        )
        peak_NHW = torch.maximum(peak_NHW, plane)
    return peak_NHW, index_NHW


def add_up(maps: list[torch.Tensor]) -> torch.Tensor:
    """Sum of equally sized tensors, without the integer 0 that ``sum`` starts from."""
    total = maps[0]
    for other in maps[1:]:
        total = total + other
    return total
