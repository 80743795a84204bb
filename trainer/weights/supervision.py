"""Which labels made the weights that a run started from, in the words of every place where its
numbers stand.

Figures of weak supervision compare only where nothing has seen more than image tags. Weights that
were trained on masks are extra supervision, and so are weights that
were trained on top of those.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

UNKNOWN = "unknown"
NONE = "none (from scratch)"
SEGMENTERS = ("segment", "segment_full")
# Anything that says where in an image a class is.
_STRONGER = re.compile(r"\b(mask|pixel|box|scribble|point|polygon|contour)(s|es)?\b", re.IGNORECASE)


def is_extra(supervision: str) -> bool:
    """Whether the labels say more than which classes are in an image."""
    return bool(_STRONGER.search(supervision))


def chained(labels: str, initial: str) -> str:
    """What made weights that were trained with ``labels`` from ``initial`` ones. Stronger labels
    are never forgotten.
    """
    return f"{labels}, from {initial}" if is_extra(initial) and not is_extra(labels) else labels


def said(supervision: str) -> str:
    """The labels, with a warning where they are more than tags, or where nobody knows."""
    if is_extra(supervision):
        return f"{supervision} (EXTRA SUPERVISION: more than image tags)"
    return (
        f"{supervision} (perhaps more than image tags)" if supervision == UNKNOWN else supervision
    )


def named(supervision: str) -> str:
    """``said`` after the words "initial weights"."""
    return (
        "of unknown supervision (perhaps more than image tags)"
        if supervision == UNKNOWN
        else said(supervision)
    )


def initial_weights(manifest: Mapping[str, Any], stage: str = "") -> str:
    """What made the initial weights of a run, for a protocol line, a card or a page.

    Args:
        manifest: of the run: ``supervision`` of the first network's initial weights, and
            ``segmenter_supervision`` of the segmenter's where it has its own.
        stage: whose numbers are shown. A segmenter may have started from other weights than the
            maps; true masks (``segment_full``) do not depend on the maps.
    """
    first = str(manifest.get("supervision") or UNKNOWN)
    own = str(manifest.get("segmenter_supervision") or first)
    if own == first or (stage and stage not in SEGMENTERS):
        return named(first)
    if stage == "segment_full":
        return named(own)
    return f"{named(first)}; of the segmenter: {named(own)}"
