"""The top of a report and its first section: the main figures and their conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trainer.report.charts import bars
from trainer.report.facts import STAGES, Facts
from trainer.report.html import COLOURS
from trainer.report.words import (
    badges,
    chance,
    duration,
    finite,
    interval,
    moment,
    percent,
    protocol,
    threshold,
)
from trainer.weights.supervision import initial_weights

# Figures of evaluation.json besides those of single classes, and their headings.
_FIGURES = {
    "miou": "mIoU",
    "mean_precision": "Precision",
    "mean_recall": "Recall",
    "mean_f": "F, mean of classes",
    "f_of_means": "F of the means",
    "boundary_f": "Boundary F",
    "objects_hit": "Objects hit",
    "pixel_ap": "Pixel AP",
    "pro": "PRO",
    "over_activation": "Over-activation",
    "under_activation": "Under-activation",
    "accuracy": "Accuracy",
}
# Other columns of that table.
_TEXTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "95 % interval of mIoU": interval,
    "Threshold": lambda figures: threshold(figures).removeprefix("threshold "),
    "Convention": lambda figures: str(figures.get("convention") or ""),
}


def header(facts: Facts) -> dict[str, Any]:
    """Name of the run, one line about it, its most important figure, and its progress."""
    manifest, data = facts.manifest, facts.manifest.get("data", {})
    classes = f"{len(facts.classes)} classes" if facts.classes else ""
    counts = [
        f"{name} {count:,}"
        for name, count in data.get("lists", {}).items()
        if isinstance(count, int)
    ]
    lead = [manifest.get("method"), manifest.get("backbone"), classes, *counts]
    tags = f"Tags: {data['tags_from']}." if data.get("tags_from") else ""
    count = len((manifest.get("masks") or {}).get("ids", ()))
    masks = f" True masks of {count} images train too." if count else ""
    weights = f"Initial weights: {initial_weights(manifest)}."
    when = moment(manifest.get("updated", manifest.get("created", "")))
    return {
        "name": facts.run.name,
        "over": ", ".join(filter(None, ("Weakly-supervised segmentation run", when))),
        "lead": [str(word) for word in lead if word],
        "origin": f"{tags}{masks} {weights if manifest.get('supervision') else ''}",
        "headline": _headline(facts),
        "steps": [_step(facts, name) for name in facts.stages],
        "notes": [*facts.notes, *_warnings(facts)],
    }


def _warnings(facts: Facts) -> list[str]:
    """The signs of a bad result that the stages left."""
    stages = facts.manifest.get("stages", {})
    return [
        f"Warning, {name}: {text}."
        for name, entry in stages.items()
        for text in entry.get("warnings", ())
    ]


def results(facts: Facts) -> dict[str, Any]:
    """One card per stage with mIoU and protocol, the ratio weak / full, and a table of the rest."""
    return {
        "cards": [_card(facts, stage) for stage in STAGES],
        "ratio": _ratio_card(facts),
        "figures": _figures_table(facts),
        "conventions": _conventions(facts),
    }


def _step(facts: Facts, name: str) -> dict[str, str]:
    stage = facts.manifest.get("stages", {}).get(name, {})
    status = str(stage.get("status", "todo"))
    text = {"done": duration(stage.get("seconds")), "todo": "not yet"}.get(status, status)
    return {"name": name, "status": status, "text": text}


def _headline(facts: Facts) -> dict[str, Any] | None:
    """The figure of the weak path's last stage that was measured."""
    # Not full supervision, which is a bound and no result of the method.
    for stage in ("segment", "refined", "cam"):
        if (entry := facts.figures(stage)) is None:
            continue
        name, figures = entry
        ratio = _ratio(facts) if stage == "segment" else None
        return {
            "stage": stage,
            "what": STAGES[stage].lower().replace("cam", "CAMs"),
            "list": name,
            "miou": figures.get("miou"),
            "share": 100 * ratio[1] / ratio[2] if ratio and ratio[0] == name else None,
            "chance": chance(figures),
            "marks": badges(facts, stage, figures),
        }
    return None


def _card(facts: Facts, stage: str) -> dict[str, Any]:
    if (entry := facts.figures(stage)) is None:
        return {"stage": stage, "figure": None}
    name, figures = entry
    miou, images = finite(figures.get("miou")), figures.get("images")
    others = [n for n in facts.lists if n != name and n in facts.evaluation[stage]]
    lines = [
        chance(figures),
        *(f"{percent(facts.evaluation[stage][n].get('miou'))} on {n}" for n in others),
        _gain(facts, stage),
    ]
    label = f"{STAGES[stage]}: {percent(miou)} percent"
    return {
        "stage": stage,
        "figure": percent(miou),
        "bar": bars([(COLOURS[stage], miou)], label, 4),
        "marks": badges(facts, stage, figures),
        "list": name,
        "images": f", {images:,} images" if isinstance(images, int) else "",
        "lines": [line for line in lines if line],
        "protocol": protocol(figures),
    }


def _gain(facts: Facts, stage: str) -> str:
    """The gain over the stage before, on the first list with figures of both."""
    before = {"refined": "cam", "segment": "refined"}.get(stage)
    pair = _on_one_list(facts, stage, before) if before else None
    if before is None or pair is None:
        return ""
    name, after, earlier = pair
    return f"{100 * (after - earlier):+.1f} points over {STAGES[before]} on {name}"


def _on_one_list(facts: Facts, stage: str, other: str) -> tuple[str, float, float] | None:
    """The first list with figures of two stages, and the mIoU of both."""
    for name in facts.lists:
        entries = (facts.figures(stage, name), facts.figures(other, name))
        mious = [finite(entry[1].get("miou")) for entry in entries if entry]
        if len(mious) == 2 and mious[0] is not None and mious[1] is not None:
            return name, mious[0], mious[1]
    return None


def _ratio(facts: Facts) -> tuple[str, float, float] | None:
    """List, weak and full mIoU; None where the full one is 0."""
    pair = _on_one_list(facts, "segment", "segment_full")
    return pair if pair and pair[2] else None


def _ratio_card(facts: Facts) -> dict[str, Any] | None:
    if (ratio := _ratio(facts)) is None:
        return None
    name, weak, full = ratio
    return {
        "list": name,
        "value": f"{weak / full:.2f}",
        "bar": bars([("var(--segment)", weak / full)], f"ratio {weak / full:.2f}", 4),
        "weak": weak,
        "full": full,
        "weights": initial_weights(facts.manifest, "segment"),
    }


def _figures_table(facts: Facts) -> dict[str, Any] | None:
    every = [figures for *_, figures in facts.measured]
    keys = [key for key in _FIGURES if any(finite(f.get(key)) is not None for f in every)]
    if not keys:
        return None
    texts = {title: text for title, text in _TEXTS.items() if any(map(text, every))}
    rows = [
        (stage, name, [f.get(key) for key in keys], [text(f) or "–" for text in texts.values()])
        for stage, name, f in facts.measured
    ]
    return {"head": [*(f"#{_FIGURES[key]}" for key in keys), *texts], "rows": rows}


def _conventions(facts: Facts) -> dict[str, Any] | None:
    """Mean IoU in all conventions; None where they agree."""
    entries = [
        (f"{STAGES[stage]} on {name}", figures.get("miou_by_convention") or {})
        for stage, name, figures in facts.measured
    ]
    # As printed: conventions that agree to one decimal need no table.
    if all(len(set(map(percent, values.values()))) < 2 for _, values in entries):
        return None
    names = list(dict.fromkeys(name for _, values in entries for name in values))
    rows = [(title, [values.get(name) for name in names]) for title, values in entries]
    return {"head": [f"#{name}" for name in names], "rows": rows}
