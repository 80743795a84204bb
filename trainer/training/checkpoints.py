"""Checkpoints of a training in progress."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch

from trainer.files import write_atomic


class Checkpoints:
    """The last two checkpoints of a training: model, optimiser, averaged weights and step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, state: dict[str, Any]) -> None:
        """Write ``checkpoint-<step>.pt`` whole or not at all, and remove all but the last two.

        Raises:
            RunError: no space left.
        """
        # With leading zeros, the order of the names is the order of the steps.
        path = self.folder / f"checkpoint-{state['step']:08d}.pt"
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(path, buffer.getvalue())
        # The last but one stays in case the newest does not load.
        for old in self._paths()[:-2]:
            old.unlink()

    def latest(self) -> dict[str, Any] | None:
        """The newest checkpoint that loads; damaged ones are renamed."""
        for path in reversed(self._paths()):
            try:
                return dict(torch.load(path, map_location="cpu", weights_only=True))
            # A damaged file makes torch raise errors of many kinds.
            except Exception:
                # Another process of the same run may have renamed it already.
                with contextlib.suppress(FileNotFoundError):
                    path.rename(path.with_suffix(".damaged"))
        return None

    def clear(self) -> None:
        """Remove all checkpoints, damaged and unfinished ones too."""
        for path in self.folder.glob("checkpoint-*"):
            path.unlink()

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*.pt"))
