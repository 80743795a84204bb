"""The options of a segmentation, checked against the model's card."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from serving.card import Card
from serving.errors import FieldError, nearest


@dataclass(frozen=True)
class Options:
    """What to make of the engine's answer. Classes are ascending indices of the model's classes.

    Attributes:
        classes: to keep; the others become background. Empty keeps all.
        tags: known to be in the image; no other class can win a pixel. Empty is unknown.
        score_thresholds: of each class, the image-level score from which it counts as present.
        background_threshold: activation up to which a pixel is background; None for segmenters, and
            where no mask is made.
        confidence_threshold: confidence of 0 to 1 below which a pixel is undecided.
    """

    score_thresholds: tuple[float, ...]
    classes: tuple[int, ...] = ()
    tags: tuple[int, ...] = ()
    background_threshold: float | None = None
    confidence_threshold: float = 0.0

    @property
    def score_threshold(self) -> float:
        """The smallest of the score thresholds."""
        return min(self.score_thresholds, default=0.0)


def options_for(
    card: Card,
    *,
    classes: Iterable[str] = (),
    tags: Iterable[str] = (),
    score_threshold: float | None = None,
    background_threshold: float | None = None,
    confidence_threshold: float | None = None,
    mask: bool = True,
) -> Options:
    """Options from a caller's names and numbers; None takes the model's value.

    Args:
        mask: whether a mask is made, not activation maps alone.

    Raises:
        FieldError: an unknown class, a number out of range, a background threshold for a segmenter,
            or none for a CAM model whose card has none either.
    """
    scores = card.score_thresholds
    if score_threshold is not None:
        scores = (_share(score_threshold, "score_threshold"),) * len(card.classes)
    return Options(
        score_thresholds=scores,
        classes=_indices(classes, card, "classes"),
        tags=_indices(tags, card, "tags"),
        background_threshold=_background(card, background_threshold, mask),
        confidence_threshold=_share(confidence_threshold or 0.0, "confidence_threshold"),
    )


def _background(card: Card, ground: float | None, mask: bool) -> float | None:
    if card.kind != "cam" and ground is not None:
        raise FieldError(
            f"model {card.name!r} is a segmenter and has no background threshold",
            "background_threshold for CAM models only",
            field="background_threshold",
        )
    if card.kind == "cam" and mask:
        ground = card.background_threshold if ground is None else ground
        if ground is None:
            raise FieldError(
                f"model {card.name!r} has no background threshold of its own",
                "background_threshold of 0 to 1 in the request",
                field="background_threshold",
            )
    return None if ground is None else _share(ground, "background_threshold")


def _indices(names: Iterable[str], card: Card, field: str) -> tuple[int, ...]:
    places = {name: index for index, name in enumerate(card.classes)}
    chosen = set()
    for name in names:
        if name not in places:
            problem = f"model {card.name!r} has no class {name!r}"
            raise FieldError(problem, nearest(name, card.classes), field=field)
        chosen.add(places[name])
    return tuple(sorted(chosen))


def _share(value: float, field: str) -> float:
    if not math.isfinite(value) or not 0.0 <= value <= 1.0:
        raise FieldError(f"{field} is {value}", "0 to 1", field=field)
    return float(value)
