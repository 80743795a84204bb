"""Figures of a run in words: numbers with units, protocols and badges."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.data.dataset import Record
from trainer.report.facts import Facts
from trainer.weights.supervision import initial_weights, is_extra

MOST_NAMES = 6
"""Unknown classes of an image that are named."""
_CHOSEN = {
    "fixed": "set beforehand",
    "oracle": "oracle: best on this very list",
    "label_free": "chosen without masks",
    "masks": "tuned on the true masks that train",
}


def finite(value: object) -> float | None:
    """``value`` as a float; None for anything but a finite number."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def percent(value: object) -> str:
    """0.468 as ``46.8``; a dash where there is no number."""
    number = finite(value)
    return "–" if number is None else f"{100 * number:.1f}"


def interval(figures: Mapping[str, Any]) -> str:
    """The bootstrap interval of a mean IoU as ``46.0 to 50.0``, in percent, or an empty text."""
    entry = figures.get("miou_interval")
    bounds = entry if isinstance(entry, Mapping) else {}
    ends = finite(bounds.get("low")), finite(bounds.get("high"))
    return "" if None in ends else f"{percent(ends[0])} to {percent(ends[1])}"


def duration(seconds: object) -> str:
    """``8.2 s``, ``3 min 05 s`` or ``1 h 12 min``; a dash where there is no number."""
    number = finite(seconds)
    if number is None:
        return "–"
    if number < 60:
        return f"{number:.1f} s"
    minutes, rest = divmod(round(number), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def moment(iso: object) -> str:
    """``2026-11-21T03:58:40+00:00`` as ``21 November 2026, 03:58 UTC``; other texts unchanged."""
    try:
        when = datetime.datetime.fromisoformat(str(iso))
    except ValueError:
        return str(iso)
    return f"{when.day} {when:%B %Y, %H:%M} {when.tzname() or ''}".rstrip()


def memory(megabytes: object) -> str:
    """``850 MB`` or ``1.4 GB``; a dash where there is no number."""
    number = finite(megabytes)
    if number is None:
        return "–"
    return f"{number:.0f} MB" if number < 1000 else f"{number / 1024:.1f} GB"


def chosen(figures: Mapping[str, Any]) -> str:
    """The origin of the background threshold, in words."""
    source = figures.get("threshold_from")
    if not source:
        return "origin not recorded"
    return _CHOSEN.get(str(source), f"chosen on {source} masks")


def threshold(figures: Mapping[str, Any]) -> str:
    """The background threshold and its origin, or an empty text."""
    value = finite(figures.get("threshold"))
    return "" if value is None else f"threshold {value:.2f}, {chosen(figures)}"


def chance(figures: Mapping[str, Any]) -> str:
    """The interval of a mean IoU and its level, or an empty text."""
    ends = interval(figures)
    level = percent((figures.get("miou_interval") or {}).get("level")).removesuffix(".0")
    return f"{ends}, {level} % interval over images" if ends else ""


def protocol(figures: Mapping[str, Any]) -> dict[str, Any]:
    """``text`` of the line under a figure, and whether its threshold is an ``oracle``."""
    text = str(figures.get("protocol") or "")
    # A protocol line that names the threshold does not need it twice.
    if "background threshold" not in text:
        text = "; ".join(filter(None, (threshold(figures), text)))
    return {
        "text": text or "protocol not recorded",
        "oracle": figures.get("threshold_from") == "oracle",
    }


def badges(facts: Facts, stage: str, figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The supervision of a figure besides image tags, as ``(CSS class, text)`` each."""
    source = figures.get("threshold_from")
    # A segmenter has no threshold of its own: that of its training masks counts.
    if not source and stage == "segment":
        source = facts.refine_metrics.get("threshold_from")
    has_extra = is_extra(initial_weights(facts.manifest, stage))
    marks = [("warn", "initial weights saw more than tags")] if has_extra else []
    if stage == "segment_full":
        return [*marks, ("", "trained on true masks")]
    if source == "oracle":
        return [*marks, ("warn", "oracle threshold")]
    if source in ("label_free", "fixed"):
        return [*marks, ("good", "no mask chose the threshold")]
    count = len((facts.manifest.get("masks") or {}).get("ids", ()))
    if count and stage in ("refined", "segment"):
        return [*marks, ("", f"{count} true masks trained")]
    return [*marks, ("", f"threshold from {source} masks")] if source else marks


def unknown_words(record: Record, names: Sequence[str]) -> tuple[str, ...]:
    """``cat?`` for each class that the image may show, or their number where they are many."""
    if len(record.unknown) > MOST_NAMES:
        return (f"{len(record.unknown)} unknown",)
    return tuple(f"{names[k]}?" for k in record.unknown)


def tag_words(record: Record, names: Sequence[str]) -> str:
    """``dog, cat?``: the tags of an image, then its unknown ones."""
    return ", ".join([*(names[k] for k in record.tags), *unknown_words(record, names)])


def pairs(entries: Mapping[str, Any]) -> str:
    """``python 3.12, torch 2.11``; a dash where there is nothing."""
    return ", ".join(f"{name} {value}" for name, value in entries.items()) or "–"
