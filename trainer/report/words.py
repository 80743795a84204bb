"""Figures of a run in words: numbers with their units, protocols, and what a figure rests on."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import Any

from trainer.report.facts import Facts
from trainer.weights.supervision import initial_weights, is_extra

_CHOSEN = {
    "fixed": "set beforehand",
    "oracle": "oracle: best on this very list",
    "label_free": "chosen without masks",
}


def finite(value: object) -> float | None:
    """``value`` as a float, or None where there is no finite number."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def percent(value: object) -> str:
    """0.468 as ``46.8``; a dash where there is no number."""
    number = finite(value)
    return "–" if number is None else f"{100 * number:.1f}"


def interval(figures: Mapping[str, Any]) -> str:
    """``46.0 to 50.0``, what chance in the choice of images leaves of a mean IoU in percent, or an
    empty text.
    """
    recorded = figures.get("miou_interval")
    spread = recorded if isinstance(recorded, Mapping) else {}
    ends = finite(spread.get("low")), finite(spread.get("high"))
    return "" if None in ends else f"{percent(ends[0])} to {percent(ends[1])}"


def duration(seconds: object) -> str:
    """``8.2 s``, ``3 min 05 s`` or ``1 h 12 min``; a dash where there is no number."""
    number = finite(seconds)
    if number is None:
        return "–"
    if number < 60:
        return f"{number:.1f} s"
    minutes, rest = divmod(round(number), 60)
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


def moment(iso: object) -> str:
    """``2026-11-21T03:58:40+00:00`` as ``21 November 2026, 03:58 UTC``; anything else as it is."""
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
    """Who chose the background threshold, in words: a list is named when its masks did."""
    source = figures.get("threshold_from")
    return (
        _CHOSEN.get(str(source), f"chosen on {source} masks") if source else "source not recorded"
    )


def threshold(figures: Mapping[str, Any]) -> str:
    """The background threshold and who chose it, or an empty text."""
    value = finite(figures.get("threshold"))
    return "" if value is None else f"threshold {value:.2f}, {chosen(figures)}"


def chance(figures: Mapping[str, Any]) -> str:
    """The interval of a mean IoU and its level, or an empty text."""
    ends = interval(figures)
    level = percent((figures.get("miou_interval") or {}).get("level")).removesuffix(".0")
    return f"{ends}, {level} % interval over images" if ends else ""


def protocol(figures: Mapping[str, Any]) -> dict[str, Any]:
    """``text`` of the line that stands under a figure, and whether its threshold is an
    ``oracle``.
    """
    texts = [text for text in (threshold(figures), str(figures.get("protocol") or "")) if text]
    return {
        "text": "; ".join(texts) or "protocol not recorded",
        "oracle": figures.get("threshold_from") == "oracle",
    }


def badges(facts: Facts, stage: str, figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a figure rests on besides image tags, as ``(CSS class, text)`` each.

    A segmenter has no threshold of its own: that of the masks that it learned from counts.
    """
    source = figures.get("threshold_from") or (
        facts.refine_metrics.get("threshold_from") if stage == "segment" else None
    )
    is_warned = is_extra(initial_weights(facts.manifest, stage))
    marks = [("warn", "initial weights saw more than tags")] if is_warned else []
    if stage == "segment_full":
        return [*marks, ("", "trained on true masks")]
    if source == "oracle":
        return [*marks, ("warn", "oracle threshold")]
    if source in ("label_free", "fixed"):
        return [*marks, ("good", "no mask chose the threshold")]
    return [*marks, ("", f"threshold from {source} masks")] if source else marks


def pairs(entries: Mapping[str, Any]) -> str:
    """``python 3.12, torch 2.11``; a dash where there is nothing."""
    return ", ".join(f"{name} {value}" for name, value in entries.items()) or "–"
