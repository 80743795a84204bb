"""The image sheets of a report: legend, threshold slider, rows of pictures and worst lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape as esc
from itertools import groupby

import numpy as np

from trainer.data.dataset import IGNORE, Dataset, Record
from trainer.data.palette import voc_palette
from trainer.errors import UserError
from trainer.evaluation.over_lists import SWEEP
from trainer.pool import over_images
from trainer.report.choice import Sheet, choose_sheets, worst_lists
from trainer.report.facts import STAGES, Facts, chosen, finite, percent
from trainer.report.overlays import ERRORS, HEAT
from trainer.report.page import data, details, note, swatch
from trainer.report.plots import spread, swept
from trainer.report.row import Sources, anchor, row
from trainer.report.sections import badges, proto

#: Fewer rows than this are made here: worker processes take longer to start.
FEW = 12


@dataclass(frozen=True)
class Slider:
    """Steps of the threshold of a list's maps.

    Attributes:
        thresholds: ascending.
        miou: of the list at each, in percent; empty where the maps were not swept.
        start: the step of the reported figure, or the nearest to 0.2 where there is none.
        source: who chose that threshold, in words; empty where nobody did.
    """

    thresholds: tuple[float, ...]
    miou: tuple[float, ...]
    start: int
    source: str


def images(facts: Facts, max_images: int, progress: bool = False) -> str:
    """Legend, worst lists and sheets."""
    if facts.dataset is None:
        return note("Not there: the data set of this run cannot be opened here.") + _worst(
            facts, ()
        )
    sheets = choose_sheets(facts, facts.dataset, max_images)
    if not sheets:
        return note("Not there yet: no maps, masks or predictions have been written.") + _worst(
            facts, ()
        )
    sliders = {sheet.list: slider(facts, sheet.list) for sheet in sheets}
    rows = _rows(facts, facts.dataset, sheets, sliders, progress)
    lead = (
        "Each map is of a class that the image is tagged with; inside its white line it exceeds the"
        " threshold. Figures are mean IoU over the classes that the truth or the mask holds,"
        " background included, in percent. Click an image to enlarge its row."
    )
    parts = [f"<p>{lead}</p>", legend(facts.classes), spread(facts), _worst(facts, rows)]
    widest = max(html.count("<figure") for html in rows.values())
    for name, group in groupby(sheets, lambda sheet: sheet.list):
        made = "".join(f"<h4>{esc(s.title)}</h4>{''.join(rows[i] for i in s.ids)}" for s in group)
        head = f'<h3>{esc(name)}</h3><div class="sheet" style="--n:{min(max(widest, 1), 9)}">'
        parts.append(f"{head}{_bar(facts, name, sliders[name])}{made}</div>")
    palette = np.concatenate([voc_palette(len(facts.classes) + 1), voc_palette()[IGNORE:]]).tolist()
    colours = (
        f'data-palette="{data(palette)}" data-heat="{data(HEAT.astype(int).tolist())}" '
        f'data-errors="{data(list(ERRORS.values()))}"'
    )
    return f'<div class="sheets" {colours}>{"".join(parts)}</div>'


def legend(classes: Sequence[str]) -> str:
    """Swatch and name of every class, and what hatching means."""
    palette = voc_palette(len(classes) + 1)
    items = "".join(
        f"<li>{swatch(palette[k + 1])}{esc(name)}</li>" for k, name in enumerate(classes)
    )
    return f'<ul class="key classes">{items}<li><i class="swatch hatch"></i>ignored</li></ul>'


def slider(facts: Facts, name: str) -> Slider:
    """The slider of a list: over its sweep where it was measured, from the threshold of its
    figure.
    """
    figures = facts.evaluation.get("cam", {}).get(name, {})
    curve = swept(figures)
    thresholds = tuple(t for t, _ in curve) or tuple(round(float(t), 2) for t in SWEEP)
    refined = facts.manifest.get("stages", {}).get("refine", {}).get("metrics") or {}
    known = [f for f in (figures, refined) if finite(f.get("threshold")) is not None]
    at = float(known[0]["threshold"]) if known else 0.2
    start = min(range(len(thresholds)), key=lambda i: abs(thresholds[i] - at))
    return Slider(
        thresholds,
        tuple(round(100 * v, 2) for _, v in curve),
        start,
        chosen(known[0]) if known else "",
    )


def _rows(
    facts: Facts,
    dataset: Dataset,
    sheets: Sequence[Sheet],
    sliders: dict[str, Slider],
    progress: bool,
) -> dict[str, str]:
    walk = _walk_threshold(facts)
    sources = {n: Sources(facts.run, dataset, n, s.thresholds, walk) for n, s in sliders.items()}
    jobs = [(s.list, dataset.records[i]) for s in sheets for i in s.ids]
    workers = None if len(jobs) >= FEW else 0
    made: dict[str, str] = {}
    for (_, record), html in over_images(
        partial(row, sources), jobs, workers, "report", progress, _name
    ):
        made[record.id] = note(f"{record.id}: {html}") if isinstance(html, UserError) else html
    return made


def _name(job: tuple[str, Record]) -> str:
    return job[1].id


def _walk_threshold(facts: Facts) -> float | None:
    """Background score of the masks, where they were made of walked maps and a constant."""
    config = facts.manifest.get("config", {}).get("refine", {})
    soft = config.get("background", "auto") in ("soft", "rest")
    rest = config.get("background") == "auto" and config.get("refine") == "affinity"
    metrics = facts.manifest.get("stages", {}).get("refine", {}).get("metrics") or {}
    return None if soft or rest else finite(metrics.get("threshold"))


def _bar(facts: Facts, name: str, steps: Slider) -> str:
    """Slider over the threshold with the curve of the sweep above it, what the masks show, and
    which rows are shown.
    """
    last = len(steps.thresholds) - 1
    at = steps.thresholds[steps.start]
    mark = (
        f'<i class="mark" style="--x:{steps.start / max(last, 1):.4f}"></i>' if steps.source else ""
    )
    options = "".join(f'<option value="{k}">{esc(c)}</option>' for k, c in enumerate(facts.classes))
    wrong = "".join(f"<li>{swatch(colour)}{text}</li>" for text, colour in ERRORS.items())
    values = (
        f'data-thresholds="{data(steps.thresholds)}" data-miou="{data(steps.miou)}"'
        f' data-start="{steps.start}" data-source="{esc(steps.source)}" data-list="{esc(name)}"'
    )
    return (
        f'<div class="bar" {values}><label class="steps"><span>Threshold of the maps</span><span'
        f' class="track">{_curve(steps.miou)}{mark}<input type="range" min="0" max="{last}"'
        f' step="1" value="{steps.start}" aria-label="Threshold of the maps of'
        f' {esc(name)}"></span></label><output>{at:.2f}</output><button type="button" class="back"'
        ' hidden>Back to the reported one</button><label class="view"><input type="checkbox"> Show'
        ' errors</label><label class="filter">Show <select><option value="">all'
        f' classes</option>{options}</select></label><ul class="key wrong">{wrong}</ul></div>'
    )


def _curve(miou: Sequence[float]) -> str:
    if len(miou) < 2:
        return ""
    top = max(*miou, 1e-9)
    points = " ".join(
        f"{100 * i / (len(miou) - 1):.1f},{23 - 21 * v / top:.1f}" for i, v in enumerate(miou)
    )
    return (
        '<svg viewBox="0 0 100 24" preserveAspectRatio="none" aria-hidden="true"><polyline'
        f' points="{points}"/></svg>'
    )


def _worst(facts: Facts, shown: Iterable[str]) -> str:
    """The worst images of every stage and list; those that have a row are linked to it."""
    rows = set(shown)
    parts: list[str] = []
    for worst in worst_lists(facts):
        items = ""
        for entry in worst.entries:
            name = str(entry.get("id"))
            text = esc(name)
            if name in rows:
                text = f'<a href="#{esc(anchor(name))}">{text}</a>'
            items += f"<li>{text}<span>{percent(entry.get('miou'))}</span></li>"
        figures = facts.evaluation[worst.stage][worst.list]
        marks = badges(facts, worst.stage, figures)
        body = f'<ol class="worst">{items}</ol><p>{marks}</p>{proto(figures)}'
        title = (
            f"{STAGES[worst.stage]} on {worst.list}: the {len(worst.entries)} images with the"
            " lowest mean IoU"
        )
        parts.append(details(title, body, is_open=not parts))
    return f"<h3>Worst images</h3>{''.join(parts)}" if parts else ""
