"""Graphs of two layers, for tests of the export."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from trainer.nets.graphs import CamGraph, SegmenterGraph
from trainer.nets.pixel_graph import PixelGraph

CLASSES = ["cat", "dog", "cow"]


def body(channels: int) -> nn.Sequential:
    """Stride 4, with batch norms whose statistics matter."""
    layers: list[nn.Module] = []
    for inside, outside in ((3, 8), (8, 8)):
        norm = nn.BatchNorm2d(outside)
        norm.running_mean, norm.running_var = torch.rand(outside), torch.rand(outside) + 0.5
        layers += [nn.Conv2d(inside, outside, 3, 2, 1, bias=False), norm, nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(8, channels, 1))


class TinyMethod(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = body(len(CLASSES))
        self.drop = nn.Dropout(0.5)

    def cams_and_logits(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = self.drop(self.body(images))
        return F.relu(maps), maps.mean((2, 3))


def make(kind: str, seed: int = 0) -> PixelGraph:
    torch.manual_seed(seed)
    if kind == "cam":
        return CamGraph(TinyMethod().train(), scales=(1, 0.5))
    segmenter = body(len(CLASSES) + 1)
    return (
        SegmenterGraph(segmenter, (0.5, 1), True)
        if kind == "segmenter multi"
        else SegmenterGraph(segmenter)
    )
