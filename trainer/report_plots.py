"""The sections of a report that are drawings: threshold sweep, confusion, training curves."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape as esc
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.charts import Line, Mark, key, line_chart, short
from trainer.overlays import heat
from trainer.report_facts import STAGES, Facts, chosen, finite, percent
from trainer.report_page import COLOURS, details, note, table
from trainer.report_sections import label_cell, label_names, proto

#: Up to this many labels a confusion matrix is a table; above it is a picture.
MATRIX_LABELS = 24
_SPEED = {"images_per_second": "Images per second", "data_wait": "Share of time waiting for data"}
_TITLES = {"loss": "Loss", "val_map": "Validation mAP", "val_miou": "Validation mIoU", "lr": "Learning rate", **_SPEED}


def sweep(facts: Facts) -> str:
    """mIoU of the CAMs over the background threshold, with the chosen one marked."""
    cams = facts.evaluation.get("cam", {})
    found = [(name, cams[name], curve) for name in facts.lists if (curve := _swept(cams.get(name, {})))]
    if not found:
        return note("Not there yet: the CAMs were not swept over thresholds. wsss-trainer eval does that.")
    lines, rows = [], []
    rules: dict[float, str] = {}
    dots: dict[float, list[tuple[float, float]]] = {}
    for i, (name, figures, curve) in enumerate(found):
        lines.append(
            Line(name, ("var(--cam)", "var(--ink)", "var(--full)")[min(i, 2)], [(x, 100 * y) for x, y in curve])
        )
        at, miou, best = finite(figures.get("threshold")), finite(figures.get("miou")), max(curve, key=lambda p: p[1])
        if at is not None and miou is not None:
            rules.setdefault(at, f"{at:.2f}, {chosen(figures)}")
            dots.setdefault(at, []).append((at, 100 * miou))
        lost = "–" if miou is None else f"{100 * (best[1] - miou):.1f}"
        at_text = "–" if at is None else f"{at:.2f}"
        rows.append([esc(name), at_text, _chooser(figures), percent(miou), percent(best[1]), f"{best[0]:.2f}", lost])
    marks = [Mark(at, text, dots[at], row) for row, (at, text) in enumerate(sorted(rules.items()))]
    title = "mIoU of the CAMs over the background threshold"
    chart = line_chart(lines, title, "background threshold", "mIoU, %", marks, (520, 290))
    head = ("List", "#Threshold", "Who chose it", "#mIoU", "#Best", "#at", "#Lost")
    cost = table(head, rows, "The choice against the best threshold of each list; lost in points of mIoU.")
    lead = "A pixel is background where no map of its image exceeds the threshold. Circles are the reported figures."
    lines_text = "".join(proto(figures, name) for name, figures, _ in found)
    return f'<p>{lead}</p><div class="side"><figure>{chart}{key(lines)}</figure><div>{cost}{lines_text}</div></div>'


def confusion(facts: Facts) -> str:
    """Row-normalised confusion of every evaluated stage; the last stage of the weak path is open."""
    shown = [s for s in ("segment", "refined", "cam", "segment_full") if _matrix(facts, s) is not None]
    if not shown:
        return note("Not there yet: no confusion matrix was recorded. wsss-trainer eval writes it.")
    parts = [f"<h3>{STAGES[shown[0]]}</h3>", _confusion(facts, shown[0])]
    parts += [details(STAGES[stage], _confusion(facts, stage)) for stage in shown[1:]]
    return "<p>Where the pixels of each true class went, in percent of that class. Rows are the truth.</p>" + "".join(
        parts
    )


def training(facts: Facts) -> str:
    """Loss, validation, learning rate and speed of every trained stage."""
    if not facts.curves:
        return note("Not there yet: metrics.csv holds no values. The first training stage writes it.")
    parts = ["<p>Values as logged, over optimiser steps; long curves are averaged to 240 points.</p>"]
    for stage, curves in facts.curves.items():
        figures = {title: _figure(stage, title, names, curves) for title, names in _groups(curves).items()}
        speed = "".join(figures.pop(title, "") for title in _SPEED.values())
        parts.append(f'<h3>{esc(stage)}</h3><div class="charts">{"".join(figures.values())}</div>')
        if speed:
            parts.append(details(f"Speed of {stage}", f'<div class="charts">{speed}</div>'))
    return "".join(parts)


def _swept(figures: Mapping[str, Any]) -> list[tuple[float, float]]:
    curve = figures.get("sweep") or {}
    pairs = [(finite(t), finite(v)) for t, v in zip(curve.get("thresholds", ()), curve.get("miou", ()))]
    return [(t, v) for t, v in pairs if t is not None and v is not None]


def _chooser(figures: Mapping[str, Any]) -> str:
    text = esc(chosen(figures))
    return f'<span class="warn">{text}</span>' if figures.get("threshold_from") == "oracle" else text


def _matrix(facts: Facts, stage: str) -> npt.NDArray[np.float64] | None:
    """Shares ``[K+1,K+1]`` of the first list that the stage was measured on; rows without pixels are 0."""
    found = facts.figures(stage)
    counts = np.asarray(found[1].get("confusion") or [], np.float64) if found else np.zeros(0)
    labels = len(facts.classes) + 1
    return counts / np.maximum(counts.sum(1, keepdims=True), 1) if counts.shape == (labels, labels) else None


def _confusion(facts: Facts, stage: str) -> str:
    shares, found = _matrix(facts, stage), facts.figures(stage)
    if shares is None or found is None:
        return note("No confusion matrix was recorded.")
    words = f"{STAGES[stage]} on {found[0]}"
    drawn = _cells(facts, shares, words) if len(shares) <= MATRIX_LABELS else _picture(shares, words)
    return f'<div class="side wide">{drawn}{_mistakes(facts, shares, words)}</div>{proto(found[1])}'


def _cells(facts: Facts, shares: npt.NDArray[np.float64], words: str) -> str:
    names = label_names(facts)
    head = "".join(f'<th scope="col">{esc(name)}</th>' for name in names)
    body = ""
    for i, row in enumerate(shares):
        cells = "".join(
            f'<td style="--v:{v:.2f}"{" class=hi" if v > 0.5 else " class=lo" if v < 0.005 else ""}>{100 * v:.0f}</td>'
            for v in row
        )
        body += f'<tr><th scope="row">{label_cell(facts, i)}</th>{cells}</tr>'
    caption = f"<caption>{esc(words)}: predicted class across, true class down</caption>"
    return (
        f'<div class="scroll"><table class="matrix">{caption}'
        f'<thead><tr><td class="corner"></td>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _picture(shares: npt.NDArray[np.float64], words: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(heat(np.sqrt(shares))).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    alt = f"{words}: confusion matrix, {len(shares)} labels, true class down, predicted class across, square-root scale"
    return (
        f'<figure><img class="pixels" src="data:image/png;base64,{data}" alt="{esc(alt)}" width="560" height="560">'
        f"<figcaption><small>{esc(alt)}</small></figcaption></figure>"
    )


def _mistakes(facts: Facts, shares: npt.NDArray[np.float64], words: str, count: int = 8) -> str:
    wrong = shares * (1 - np.eye(len(shares)))
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = [divmod(int(flat), len(shares)) for flat in order]
    rows = [[label_cell(facts, i), label_cell(facts, j), percent(wrong[i, j])] for i, j in pairs if wrong[i, j] > 0]
    return table(("True class", "Predicted", "#Share, %"), rows, f"Largest confusions, {words}", "mistakes")


def _groups(curves: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, list[str]]:
    """Titles and metrics of the charts of a stage: losses together, rates together, every other metric alone."""
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


def _figure(stage: str, title: str, names: Sequence[str], curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    shown = [n for n in names if n == names[0] or list(curves[n]) != list(curves[names[0]])]
    tones = (COLOURS.get(stage, "var(--cam)"), "var(--ink)", "var(--full)", "var(--refined)", "var(--segment)")
    lines = [Line(n, tones[i % len(tones)], curves[n], main=i == 0) for i, n in enumerate(shown)]
    last = next((value for _, value in reversed(curves[names[0]]) if finite(value) is not None), None)
    tail = "" if last is None else f"<small>last {short(last)}</small>"
    chart = line_chart(lines, f"{title} of {stage} over steps", "step")
    legend = key(lines) if len(lines) > 1 else ""
    return f"<figure><figcaption>{esc(title)}{tail}</figcaption>{chart}{legend}</figure>"
