"""The parts of a report that are curves: threshold sweep, training, spread over images."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.errors import DataError
from trainer.evaluation.image_counts import ImageCounts, counts_path
from trainer.report.charts import Line, Mark, Point, histogram, line_chart, short
from trainer.report.facts import STAGES, Facts
from trainer.report.html import COLOURS
from trainer.report.words import chosen, finite, percent, protocol

_SPEED = {"images_per_second": "Images per second", "data_wait": "Share of time waiting for data"}
_TITLES = {
    "loss": "Loss",
    "val_map": "Validation mAP",
    "val_miou": "Validation mIoU",
    "lr": "Learning rate",
    **_SPEED,
}
_TONES = ("var(--ink)", "var(--full)", "var(--refined)", "var(--segment)")


def sweep(facts: Facts) -> dict[str, Any]:
    """mIoU of the CAMs over the background threshold, with a mark at the reported threshold."""
    cams = facts.evaluation.get("cam", {})
    curves = {name: swept(cams[name]) for name in facts.lists if swept(cams.get(name, {}))}
    tones = ("var(--cam)", *_TONES[:2])
    lines = [
        Line(name, tones[min(i, 2)], [(x, 100 * y) for x, y in curve])
        for i, (name, curve) in enumerate(curves.items())
    ]
    title = "mIoU of the CAMs over the background threshold"
    marks = _reported({name: cams[name] for name in curves})
    axes = ("background threshold", "mIoU, %")
    return {
        "chart": line_chart(lines, title, *axes, marks, (520, 290)) if lines else None,
        "colours": [(line.name, line.colour) for line in lines],
        "rows": [_cost(name, cams[name], curve) for name, curve in curves.items()],
        "protocols": [(name, protocol(cams[name])) for name in curves],
    }


def swept(figures: Mapping[str, Any]) -> list[Point]:
    """``(threshold, mIoU)`` of the sweep of a list's maps."""
    curve = figures.get("sweep") or {}
    points = [
        (finite(t), finite(v)) for t, v in zip(curve.get("thresholds", ()), curve.get("miou", ()))
    ]
    return [(t, v) for t, v in points if t is not None and v is not None]


def spread(facts: Facts) -> list[dict[str, Any]]:
    """The distribution of the mean IoU of single images, for every stage and list with counts."""
    figures = []
    for stage, name, _ in facts.measured:
        if mious := _image_mious(facts, stage, name):
            title = f"{STAGES[stage]} on {name}"
            chart = histogram(mious, COLOURS[stage], f"Mean IoU of the images, {title}")
            median = statistics.median(mious)
            figures.append({"title": title, "tail": f"median {percent(median)}", "chart": chart})
    return figures


def training(facts: Facts) -> list[dict[str, Any]]:
    """Loss, validation, learning rate and speed of every stage that trains."""
    order = {name: place for place, name in enumerate(facts.stages)}
    stages = []
    for stage in sorted(facts.curves, key=lambda name: order.get(name, len(order))):
        curves = facts.curves[stage]
        figures = {
            title: _figure(stage, title, names, curves) for title, names in _groups(curves).items()
        }
        speed = [figures.pop(title) for title in _SPEED.values() if title in figures]
        stages.append({"name": stage, "figures": list(figures.values()), "speed": speed})
    return stages


def _reported(figures: Mapping[str, Mapping[str, Any]]) -> list[Mark]:
    texts: dict[float, str] = {}
    dots: dict[float, list[Point]] = {}
    for entry in figures.values():
        at, miou = finite(entry.get("threshold")), finite(entry.get("miou"))
        if at is not None and miou is not None:
            # Lists with the same threshold share one mark, since their texts would overlap.
            texts.setdefault(at, f"{at:.2f}, {chosen(entry)}")
            dots.setdefault(at, []).append((at, 100 * miou))
    return [Mark(at, texts[at], dots[at], row) for row, at in enumerate(sorted(texts))]


def _cost(name: str, figures: Mapping[str, Any], curve: Sequence[Point]) -> dict[str, Any]:
    at, miou = finite(figures.get("threshold")), finite(figures.get("miou"))
    best_at, best = max(curve, key=lambda point: point[1])
    return {
        "list": name,
        "threshold": "–" if at is None else f"{at:.2f}",
        "chosen": chosen(figures),
        "oracle": figures.get("threshold_from") == "oracle",
        "numbers": [
            percent(miou),
            percent(best),
            f"{best_at:.2f}",
            "–" if miou is None else f"{100 * (best - miou):.1f}",
        ],
    }


def _image_mious(facts: Facts, stage: str, name: str) -> list[float]:
    path = counts_path(facts.run, stage, name)
    try:
        return ImageCounts.read(path).miou().tolist() if path.exists() else []
    except DataError:
        return []


def _groups(curves: Mapping[str, Sequence[Point]]) -> dict[str, list[str]]:
    """Titles and metrics of the charts of a stage: all losses in one, all rates in one."""
    groups: dict[str, list[str]] = {}
    rest = sorted(set(curves) - set(_TITLES))
    for metric, title in _TITLES.items():
        names = [metric] if metric in curves else []
        if metric in ("loss", "lr"):
            names += [name for name in rest if name.startswith(f"{metric}_")]
        if names:
            groups[title] = names
            rest = [name for name in rest if name not in names]
    return groups | {name: [name] for name in rest}


def _figure(
    stage: str, title: str, names: Sequence[str], curves: Mapping[str, Sequence[Point]]
) -> dict[str, Any]:
    main = curves[names[0]]
    # A part of the loss that equals the loss would hide it.
    visible = [name for name in names if name == names[0] or list(curves[name]) != list(main)]
    tones = (COLOURS.get(stage, "var(--cam)"), *_TONES)
    lines = [
        Line(name, tones[i % len(tones)], curves[name], main=i == 0)
        for i, name in enumerate(visible)
    ]
    last = next((value for _, value in reversed(main) if finite(value) is not None), None)
    return {
        "title": title,
        "tail": "" if last is None else f"last {short(last)}",
        "chart": line_chart(lines, f"{title} of {stage} over steps", "step"),
        "colours": [(line.name, line.colour) for line in lines if len(lines) > 1],
    }
