"""Whether two figures were made under the same conditions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Conditions that must agree for a fair comparison of methods, in the words of the message.
PROTOCOL = {
    "labels": "number of classes",
    "truth": "true masks",
    "tags": "use of the images' tags",
    "views": "scales",
    "crf": "CRF",
    "threshold_from": "origin of the threshold",
    "initial_weights": "initial weights",
    "train_list": "training list",
    "tags_from": "origin of the tags",
    "masks": "number of true masks that train",
    "segments": "segments that refine the masks",
    "segmenter": "segmenter",
}


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between the conditions of two entries of ``evaluation.json``, in sentences."""
    # Entries of earlier versions do not say that they had no segments.
    old, new = ({"segments": "", **side.get("conditions", {})} for side in (before, after))
    both = {words: (old.get(key), new.get(key)) for key, words in PROTOCOL.items()}
    flags = [
        f"other {words}: {a} | {b}"
        for words, (a, b) in both.items()
        if a != b and None not in (a, b)
    ]
    # Segmenters have no threshold: there None on both sides is a value like others.
    without = PROTOCOL["threshold_from"]
    unknown = [
        words for words, (a, b) in both.items() if None in (a, b) and (words != without or a != b)
    ]
    return flags + (
        [f"not recorded, so perhaps different: {', '.join(unknown)}"] if unknown else []
    )
