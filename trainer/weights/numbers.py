"""Weights that are numbers: NaN and infinity are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """Name of the first tensor that holds NaN or inf; empty where all are finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            return name
    return ""


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that cannot give a result.

    Raises:
        WeightsError: NaN or inf, with the name of the tensor.
    """
    if name := not_finite(tensors):
        count = int((~tensors[name].isfinite()).sum())
        raise WeightsError(
            f"{path}: the tensor {name} holds NaN or inf ({count} of {tensors[name].numel()}"
            " values)",
            "finite weights",
            "an earlier checkpoint of that training, or another file",
        )
