"""The deterministic test generator of the method specification, section 2."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def U(shape: Sequence[int], s: int) -> torch.Tensor:
    """float64 in 0..1: ``frac(sin(12.9898 (i+1) + 78.233 s) * 43758.5453)``, i counting in C
    order.
    """
    i = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    v = torch.sin(12.9898 * i + 78.233 * s) * 43758.5453
    return (v - v.floor()).reshape(tuple(shape))
