"""Knobs of the evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from trainer.config import Knobs, Range
from trainer.evaluation.boundary import CSURKA


@dataclass(frozen=True)
class EvaluateConfig(Knobs):
    """Knobs of the evaluation.

    Attributes:
        threshold_from: origin of the background threshold of the maps' figures: ``fixed``,
            ``label_free``, ``oracle``, the name of a list with true masks, or ``auto``: ``train``
            for figures on other lists, ``label_free`` for figures on ``train`` itself.
        threshold: the value for ``fixed``.
        boundary_tolerance: of the boundary F-score: below 1 a fraction of the image's diagonal,
            else pixels.
    """

    section: ClassVar[str] = "evaluate"

    threshold_from: str = "auto"
    threshold: Annotated[float, Range(0, 1)] = 0.2
    boundary_tolerance: Annotated[float, Range(0, 1000, above=True)] = CSURKA
