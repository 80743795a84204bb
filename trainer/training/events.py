"""TensorBoard events of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.errors import ConfigError


def make_events(folder: Path) -> Any:
    """Writer of TensorBoard events.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "tensorboard is not installed",
            "tensorboard=off, or the package",
            "pip install 'wsss[tensorboard]'",
        ) from error
    return SummaryWriter(folder / "tensorboard")
