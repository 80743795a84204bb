"""``model.pt``: trained weights, and what they are."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.errors import WeightsError
from trainer.files import write_atomic
from trainer.ranks import rank
from trainer.training.checkpoints import Checkpoints
from trainer.training.collectives import wait_for_all
from trainer.weights.numbers import check_finite


def save_model(folder: Path, module: nn.Module, identity: dict[str, Any]) -> None:
    """Write ``model.pt``, the final weights and their identity, and remove the checkpoints. All
    processes wait for the file.
    """
    if rank() == 0:
        buffer = io.BytesIO()
        torch.save({"identity": identity, "state": module.state_dict()}, buffer)
        write_atomic(folder / "model.pt", buffer.getvalue())
        # Last: until the weights are there, a checkpoint is all there is.
        Checkpoints(folder).clear()
    wait_for_all()


def read_model(
    path: Path, expected: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Identity and state of a ``model.pt``.

    Raises:
        WeightsError: missing, damaged, or with other entries than ``expected``.
    """
    if not path.exists():
        raise WeightsError(
            f"{path} is missing",
            "trained weights",
            "run wsss-trainer fit again: it goes on where it stopped",
        )
    try:
        # Weights only: an unrestricted pickle could run code.
        content = torch.load(path, map_location="cpu", weights_only=True)
        identity, state = content["identity"], content["state"]
    except Exception as error:
        raise WeightsError(
            f"{path} cannot be read: {error}", "weights written by wsss-trainer"
        ) from error
    check_finite(path, state)
    for key, value in expected.items():
        if identity.get(key) != value:
            raise WeightsError(
                f"{path} was made with {key} = {identity.get(key)}",
                f"{key} = {value}",
                "choose the run that made it, or another --run",
            )
    return identity, state


def knobs_of(values: dict[str, Any]) -> dict[str, Any]:
    """Knobs from their JSON form: lists become tuples again."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
