"""The options of a segmentation, checked against the model's card. Server and labeller share
it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from serving.card import Card
from serving.errors import FieldError, nearest


@dataclass(frozen=True)
class Options:
    """What to make of the engine's answer. Classes are indices into those of the model, rising.

    Attributes:
        classes: to keep; the others become background. All of them if empty.
        tags: known to be in the image, so that no other one can win a pixel. Unknown if empty.
        score_threshold: image-level score from which a class counts as present.
        background_threshold: activation up to which a pixel is background; None for a segmenter,
            whose graph decides, and where no mask is wanted.
        confidence_threshold: confidence of 0 to 1 below which a pixel is undecided.
    """

    score_threshold: float
    classes: tuple[int, ...] = ()
    tags: tuple[int, ...] = ()
    background_threshold: float | None = None
    confidence_threshold: float = 0.0


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
    """Options by names and numbers as a caller gives them; None takes the model's own.

    Args:
        card: of the model.
        classes, tags, score_threshold, background_threshold, confidence_threshold: see
        :class:`Options`.
        mask: whether a mask is wanted, and not activation maps alone.

    Raises:
        FieldError: a name that is no class of the model, a number out of range, a background
            threshold for a segmenter, or none for a CAM model whose card has none.
    """
    ground = background_threshold
    if card.kind != "cam" and ground is not None:
        raise FieldError(
            f"model {card.name!r} is a segmenter, whose graph knows the background",
            "a background threshold for CAM models only",
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
    return Options(
        score_threshold=_share(
            card.score_threshold if score_threshold is None else score_threshold, "score_threshold"
        ),
        classes=_indices(classes, card, "classes"),
        tags=_indices(tags, card, "tags"),
        background_threshold=None if ground is None else _share(ground, "background_threshold"),
        confidence_threshold=_share(confidence_threshold or 0.0, "confidence_threshold"),
    )


def _indices(names: Iterable[str], card: Card, field: str) -> tuple[int, ...]:
    places = {name: index for index, name in enumerate(card.classes)}
    chosen = set()
    for name in names:
        if name not in places:
            raise FieldError(
                f"model {card.name!r} has no class {name!r}",
                nearest(name, card.classes),
                field=field,
            )
        chosen.add(places[name])
    return tuple(sorted(chosen))


def _share(value: float, field: str) -> float:
    if not math.isfinite(value) or not 0.0 <= value <= 1.0:
        raise FieldError(f"{field} is {value}", "0 to 1", field=field)
    return float(value)
