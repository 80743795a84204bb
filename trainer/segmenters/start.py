"""What a segmenter's training starts from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from trainer.errors import ConfigError, WeightsError
from trainer.segmenters import make_segmenter, segmenter_class
from trainer.segmenters.config import SegmentConfig
from trainer.weights.cache import NAMES, find_weights
from trainer.weights.loading import LoadReport
from trainer.weights.supervision import NONE

Source = Literal["random", "classifier", "weights", "file"]
"""What a segmenter starts from: random weights, the run's classifier, the weights that the
classifier starts from, or a file of its own.
"""


@dataclass(frozen=True)
class Start:
    """What a segmenter starts from.

    Attributes:
        source: ``classifier`` (the run's own), ``random``, or ``file``.
        path: of a file.
        report: what was loaded from the file.
        knobs: those that the weights decided.
    """

    source: str
    path: Path | None = None
    report: LoadReport | None = None
    knobs: tuple[tuple[str, Any], ...] = ()

    def supervision(self, classifier: str) -> str:
        """The labels that trained these weights. ``classifier`` names those of the classifier's
        initial weights.
        """
        if self.report is not None:
            return self.report.supervision
        return classifier if self.source == "classifier" else NONE


def find_start(
    config: SegmentConfig, backbone: str, weights: Path | None, choice: str | None, num_classes: int
) -> Start:
    """Choose what the segmenter starts from, and load it once to see that it fits.

    Args:
        config: knobs.
        backbone: of the run.
        weights: the file that the classifier starts from.
        choice: ``--segmenter-weights``: a file, a name in the weight cache, or ``none``.
        num_classes: K.

    Raises:
        ConfigError: impossible knobs, or a classifier of another network.
        WeightsError: no such file, or one that does not fit.
    """
    kind = segmenter_class(config.network)
    with torch.device("meta"):
        # Impossible knobs end the run here, before anything trains.
        make_segmenter(config, backbone, num_classes).build()
    source = choose_source(config, backbone, weights is not None, choice)
    if source == "random":
        return Start("random")
    if source == "classifier":
        return Start("classifier", knobs=tuple(kind.decided_by(None, config).items()))
    own = kind.own_backbone or backbone
    path = weights if source == "weights" else _find(own, choice, config.network)
    if path is None:
        raise ConfigError(
            "segment.init=weights, but there are no weights",
            "weights",
            "--segmenter-weights FILE, or --weights FILE",
        )
    knobs = kind.decided_by(path, config)
    segmenter = make_segmenter(replace(config, **knobs), backbone, num_classes)
    return Start("file", path, segmenter.load(segmenter.build(), path), tuple(knobs.items()))


def choose_source(
    config: SegmentConfig, backbone: str, has_weights: bool, choice: str | None
) -> Source:
    """What the segmenter starts from, chosen by names only.

    Args:
        config: knobs.
        backbone: of the run.
        has_weights: whether the classifier starts from weights.
        choice: ``--segmenter-weights``.

    Raises:
        ConfigError: a classifier of another network.
    """
    own = segmenter_class(config.network).own_backbone or backbone
    # Only random weights can have another width.
    if choice == "none" or config.init == "random" or config.width < 1:
        return "random"
    if config.init == "classifier" and own != backbone:
        raise ConfigError(
            f"segment.init=classifier: the classifier is a {backbone}, and {config.network} is a"
            f" {own}",
            f"--backbone {own}, or weights for a {own}",
            "--segmenter-weights FILE",
        )
    same = choice is None and own == backbone
    if config.init == "classifier" or (config.init == "auto" and same and not has_weights):
        return "classifier"
    return "weights" if same else "file"


def _find(backbone: str, choice: str | None, network: str) -> Path:
    if choice in NAMES:
        return find_weights(choice)
    try:
        return find_weights(backbone, choice)
    except WeightsError as error:
        hint = f"{error.hint}\nor --segmenter-weights FILE; none for random weights"
        raise WeightsError(f"{network}: {error.found}", error.expected, hint) from error
