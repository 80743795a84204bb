"""The sections of a report that are curves: threshold sweep and training."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from html import escape as esc
from typing import Any

from trainer.errors import DataError
from trainer.evaluation.image_counts import ImageCounts, counts_path
from trainer.report.charts import Line, Mark, histogram, key, line_chart, short
from trainer.report.facts import STAGES, Facts, chosen, finite, percent
from trainer.report.page import COLOURS, details, note, table
from trainer.report.sections import proto

_SPEED = {"images_per_second": "Images per second", "data_wait": "Share of time waiting for data"}
_TITLES = {
    "loss": "Loss",
    "val_map": "Validation mAP",
    "val_miou": "Validation mIoU",
    "lr": "Learning rate",
    **_SPEED,
}


def sweep(facts: Facts) -> str:
    """mIoU of the CAMs over the background threshold, with the chosen one marked."""
    cams = facts.evaluation.get("cam", {})
    found = [
        (name, cams[name], curve) for name in facts.lists if (curve := swept(cams.get(name, {})))
    ]
    if not found:
        return note(
            "Not there yet: the CAMs were not swept over thresholds. wsss-trainer eval does that."
        )
    lines, rows = [], []
    rules: dict[float, str] = {}
    dots: dict[float, list[tuple[float, float]]] = {}
    for i, (name, figures, curve) in enumerate(found):
        lines.append(
            Line(
                name,
                ("var(--cam)", "var(--ink)", "var(--full)")[min(i, 2)],
                [(x, 100 * y) for x, y in curve],
            )
        )
        at, miou, best = (
            finite(figures.get("threshold")),
            finite(figures.get("miou")),
            max(curve, key=lambda p: p[1]),
        )
        if at is not None and miou is not None:
            rules.setdefault(at, f"{at:.2f}, {chosen(figures)}")
            dots.setdefault(at, []).append((at, 100 * miou))
        lost = "–" if miou is None else f"{100 * (best[1] - miou):.1f}"
        at_text = "–" if at is None else f"{at:.2f}"
        rows.append(
            [
                esc(name),
                at_text,
                _chooser(figures),
                percent(miou),
                percent(best[1]),
                f"{best[0]:.2f}",
                lost,
            ]
        )
    marks = [Mark(at, text, dots[at], row) for row, (at, text) in enumerate(sorted(rules.items()))]
    title = "mIoU of the CAMs over the background threshold"
    chart = line_chart(lines, title, "background threshold", "mIoU, %", marks, (520, 290))
    head = ("List", "#Threshold", "Who chose it", "#mIoU", "#Best", "#at", "#Lost")
    cost = table(
        head, rows, "The choice against the best threshold of each list; lost in points of mIoU."
    )
    lead = (
        "A pixel is background where no map of its image exceeds the threshold. Circles are the"
        " reported figures."
    )
    lines_text = "".join(proto(figures, name) for name, figures, _ in found)
    return (
        f"<p>{lead}</p><div"
        f' class="side"><figure>{chart}{key(lines)}</figure><div>{cost}{lines_text}</div></div>'
    )


def spread(facts: Facts) -> str:
    """How the mean IoU of single images is spread, for every stage and list whose counts were kept;
    empty without any.
    """
    figures = ""
    for stage, title in STAGES.items():
        for name in facts.lists:
            found = facts.figures(stage, name)
            mious = _image_mious(facts, stage, name) if found else []
            if mious and found:
                words = f"{title} on {name}"
                chart = histogram(mious, COLOURS[stage], f"Mean IoU of the images, {words}")
                middle = f"<small>median {percent(statistics.median(mious))}</small>"
                figures += f"<figure><figcaption>{esc(words)}{middle}</figcaption>{chart}</figure>"
    lead = "Images by their own mean IoU, in percent; the dotted line is the median."
    return (
        f"<h3>Spread over images</h3><p><small>{lead}</small></p><div"
        f' class="charts">{figures}</div>'
        if figures
        else ""
    )


def _image_mious(facts: Facts, stage: str, name: str) -> list[float]:
    path = counts_path(facts.run, stage, name)
    try:
        return ImageCounts.read(path).miou().tolist() if path.exists() else []
    except DataError:
        return []


def training(facts: Facts) -> str:
    """Loss, validation, learning rate and speed of every trained stage."""
    if not facts.curves:
        return note(
            "Not there yet: metrics.csv holds no values. The first training stage writes it."
        )
    parts = [
        "<p>Values as logged, over optimiser steps; long curves are averaged to 240 points.</p>"
    ]
    order = {name: place for place, name in enumerate(facts.stages)}
    for stage, curves in sorted(
        facts.curves.items(), key=lambda item: order.get(item[0], len(order))
    ):
        figures = {
            title: _figure(stage, title, names, curves) for title, names in _groups(curves).items()
        }
        speed = "".join(figures.pop(title, "") for title in _SPEED.values())
        parts.append(f'<h3>{esc(stage)}</h3><div class="charts">{"".join(figures.values())}</div>')
        if speed:
            parts.append(details(f"Speed of {stage}", f'<div class="charts">{speed}</div>'))
    return "".join(parts)


def swept(figures: Mapping[str, Any]) -> list[tuple[float, float]]:
    """``(threshold, mIoU)`` of every threshold that the maps of a list were measured at."""
    curve = figures.get("sweep") or {}
    pairs = [
        (finite(t), finite(v)) for t, v in zip(curve.get("thresholds", ()), curve.get("miou", ()))
    ]
    return [(t, v) for t, v in pairs if t is not None and v is not None]


def _chooser(figures: Mapping[str, Any]) -> str:
    text = esc(chosen(figures))
    return (
        f'<span class="warn">{text}</span>' if figures.get("threshold_from") == "oracle" else text
    )


def _groups(curves: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, list[str]]:
    """Titles and metrics of the charts of a stage: losses together, rates together, every other
    metric alone.
    """
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
    stage: str,
    title: str,
    names: Sequence[str],
    curves: Mapping[str, Sequence[tuple[float, float]]],
) -> str:
    shown = [n for n in names if n == names[0] or list(curves[n]) != list(curves[names[0]])]
    tones = (
        COLOURS.get(stage, "var(--cam)"),
        "var(--ink)",
        "var(--full)",
        "var(--refined)",
        "var(--segment)",
    )
    lines = [Line(n, tones[i % len(tones)], curves[n], main=i == 0) for i, n in enumerate(shown)]
    last = next(
        (value for _, value in reversed(curves[names[0]]) if finite(value) is not None), None
    )
    tail = "" if last is None else f"<small>last {short(last)}</small>"
    chart = line_chart(lines, f"{title} of {stage} over steps", "step")
    legend = key(lines) if len(lines) > 1 else ""
    return f"<figure><figcaption>{esc(title)}{tail}</figcaption>{chart}{legend}</figure>"
