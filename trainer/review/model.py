"""The trained segmenter of a run, and what it learnt from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from trainer.data.dataset import Dataset, read_index_png
from trainer.predict import segmenter_config, segmenter_weights
from trainer.review.form import Pixels
from trainer.run import Run
from trainer.segmenters import prediction
from trainer.segmenters.base import Segmenter


@dataclass(frozen=True)
class Model:
    """A trained segmenter.

    Attributes:
        run: its run.
        weights: its file.
        segmenter: with the knobs of the run's test.
        network: in evaluation mode.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    run: Run
    weights: Path
    segmenter: Segmenter
    network: nn.Module
    device: str = "auto"

    @classmethod
    def of(cls, run: Run, dataset: Dataset, device: str = "auto") -> Model:
        """The segmenter of a run.

        Raises:
            RunError: the run has none.
            WeightsError: damaged, or of other classes.
        """
        weights = segmenter_weights(run, "segment")
        expected = {"classes": list(dataset.classes)}
        segmenter, network, _ = prediction.load(weights, expected, segmenter_config(run, ()))
        return cls(run, weights, segmenter, network, device)

    def refined_mask(self, record_id: str) -> Pixels | None:
        """The refined mask of an image ``uint8 [H,W]``, 255 where it says nothing; None without
        one.
        """
        path = self.run.path / "masks" / f"{record_id}.png"
        return read_index_png(path) if path.is_file() else None
