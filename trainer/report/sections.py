"""The sections of a report that are tables and bars: results, stages, provenance; and what several
sections use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape as esc
from typing import Any

from trainer.data.palette import voc_palette
from trainer.report.charts import bars
from trainer.report.facts import (
    STAGES,
    Facts,
    duration,
    finite,
    interval,
    memory,
    moment,
    percent,
    threshold,
)
from trainer.report.page import COLOURS, details, note, swatch, table
from trainer.weights.supervision import initial_weights, is_extra

#: Figures of evaluation.json besides those of single classes, and their headings.
_FIGURES = {
    "miou": "mIoU",
    "mean_precision": "Precision",
    "mean_recall": "Recall",
    "mean_f": "F, mean of classes",
    "f_of_means": "F of the means",
    "boundary_f": "Boundary F",
    "over_activation": "Over-activation",
    "under_activation": "Under-activation",
    "accuracy": "Accuracy",
}
#: Other columns of that table.
_WORDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "95 % interval of mIoU": interval,
    "Threshold": lambda figures: threshold(figures).removeprefix("threshold "),
    "Convention": lambda figures: str(figures.get("convention") or ""),
}


def header(facts: Facts) -> str:
    """Name of the run, what it is in one line, its most important figure, and how far it came."""
    m, data = facts.manifest, facts.manifest.get("data", {})
    what = [
        m.get("method"),
        m.get("backbone"),
        f"{len(facts.classes)} classes" if facts.classes else None,
    ]
    counts = [
        f"{name} {count:,}"
        for name, count in data.get("lists", {}).items()
        if isinstance(count, int)
    ]
    words = [str(w) for w in [*what, *counts] if w]
    tags = f"Tags: {data['tags_from']}. " if data.get("tags_from") else ""
    init = f"Initial weights: {initial_weights(m)}." if m.get("supervision") else ""
    steps = "".join(_step(facts, name) for name in facts.stages)
    notes = "".join(note(text) for text in facts.notes)
    when = moment(m.get("updated", m.get("created", "")))
    title = ", ".join(filter(None, ("Weakly-supervised segmentation run", when)))
    return (
        f'<p class="over">{esc(title)}</p><div'
        f' class="top"><div><h1>{esc(facts.run.name)}</h1><p'
        f' class="lead">{esc(" · ".join(words))}<br>{esc(tags + init)}</p></div>'
        f"{_headline(facts)}</div><ol"
        f' class="path">{steps}</ol>{notes}'
    )


def results(facts: Facts) -> str:
    """One card a stage with its mIoU and protocol, the ratio weak / full, and every other figure in
    a table.
    """
    cards = "".join(_card(facts, stage) for stage in STAGES) + _ratio_card(facts)
    lead = (
        "Mean intersection over union (mIoU), background included, over all pixels of a list but"
        " the ignored ones."
    )
    return f'<p>{lead}</p><div class="cards">{cards}</div>{_figures_table(facts)}'


def stages(facts: Facts) -> str:
    """Status, time and peak memory of every stage."""
    recorded = facts.manifest.get("stages", {})
    if not recorded:
        return note("Not there yet: no stage has begun.")
    longest = max((finite(s.get("seconds")) or 0 for s in recorded.values()), default=0) or 1
    largest = max((finite(s.get("peak_memory_mb")) or 0 for s in recorded.values()), default=0) or 1
    rows = []
    for name in facts.stages:
        s = recorded.get(name, {})
        seconds, peak = finite(s.get("seconds")), finite(s.get("peak_memory_mb"))
        status = esc(str(s.get("status", "not yet")))
        rows.append(
            [
                esc(name),
                f'<span class="{status}">{status}</span>',
                duration(seconds),
                bars(
                    [("var(--segment)", seconds / longest if seconds else None)],
                    f"{name}: {duration(seconds)}",
                    8,
                ),
                memory(peak),
                bars(
                    [("var(--full)", peak / largest if peak else None)],
                    f"{name}: {memory(peak)}",
                    8,
                ),
                esc(_pairs(s.get("outputs", {}))),
                f"<code>{esc(str(s.get('key', ''))[:8])}</code>",
            ]
        )
    total = sum(finite(s.get("seconds")) or 0 for s in recorded.values())
    head = ("Stage", "Status", "#Time", "", "#Peak memory", "", "Outputs", "Key")
    host = _pairs(facts.manifest.get("host", {}))
    return table(head, rows, f"{duration(total)} in all. {host}", "time")


def provenance(facts: Facts) -> str:
    """What it takes to make this run again."""
    m, data = facts.manifest, facts.manifest.get("data", {})
    command = m.get("command", [])
    typed = " ".join(map(str, command)) if isinstance(command, list) else str(command)
    entries = {
        "Command": (f"<code>{esc(typed)}</code>"),
        "Commit": f"<code>{esc(str(m.get('commit') or 'not recorded'))}</code>",
        "Versions": esc(_pairs(m.get("versions", {}))),
        "Host": esc(_pairs(m.get("host", {}))),
        "Seed": esc(str(m.get("seed", "–"))),
        "Created": esc(
            f"{moment(m.get('created', '–'))}; last written {moment(m.get('updated', '–'))}"
        ),
        "Data": (
            f"<code>{esc(str(data.get('path', '–')))}</code> ({esc(str(data.get('format', '–')))})"
        ),
        "Data fingerprint": f"<code>{esc(str(data.get('fingerprint', '–')))}</code>",
        "Tags": esc(str(data.get("tags_from", "–"))),
        "Weights and supervision": esc(f"{m.get('backbone', '–')}, {initial_weights(m)}"),
    }
    facts_table = table(
        ("Entry", "Value"),
        [[k, v] for k, v in entries.items()],
        "Recorded in manifest.json",
        "facts",
    )
    knobs = [
        [esc(stage), f"<code>{esc(str(name))}</code>", f"<code>{esc(str(value))}</code>"]
        for stage, config in m.get("config", {}).items()
        if isinstance(config, Mapping)
        for name, value in config.items()
    ]
    config = (
        table(("Stage", "Knob", "Value"), knobs, "Every knob of every stage")
        if knobs
        else note("No configuration recorded.")
    )
    return facts_table + details("Configuration", config)


def _step(facts: Facts, name: str) -> str:
    stage = facts.manifest.get("stages", {}).get(name, {})
    status = str(stage.get("status", "todo"))
    said = {"done": duration(stage.get("seconds")), "todo": "not yet"}.get(status, status)
    return f'<li class="{esc(status)}"><b>{esc(name)}</b>{esc(said)}</li>'


def _headline(facts: Facts) -> str:
    """The last stage of the weak path that was measured."""
    for stage in ("segment", "refined", "cam"):
        if found := facts.figures(stage):
            name, figures = found
            ratio = _ratio(facts) if stage == "segment" else None
            full = (
                f", {100 * ratio[1] / ratio[2]:.0f} % of full supervision"
                if ratio and ratio[0] == name
                else ""
            )
            text = (
                f"mIoU of the {STAGES[stage].lower().replace('cam', 'CAMs')} on"
                f" <b>{esc(name)}</b>{full}"
            )
            text += f"<br>{_chance(figures)}" if interval(figures) else ""
            return (
                f'<div class="headline" style="--stage:{COLOURS[stage]}">'
                f'<p class="big">{percent(figures.get("miou"))}<span>%</span></p>'
                f"<p>{text}</p><p>{badges(facts, stage, figures)}</p></div>"
            )
    return ""


def _card(facts: Facts, stage: str) -> str:
    title = f'<h3><i style="background:{COLOURS[stage]}"></i>{STAGES[stage]}</h3>'
    found = facts.figures(stage)
    if found is None:
        return (
            f'<article class="card empty">{title}<p class="big">–</p><p class="proto">Not there'
            " yet.</p></article>"
        )
    name, figures = found
    miou = finite(figures.get("miou"))
    bar = bars([(COLOURS[stage], miou)], f"{STAGES[stage]}: {percent(miou)} percent", 4)
    others = [n for n in facts.lists if n != name and n in facts.evaluation[stage]]
    lines = [f"on <b>{esc(name)}</b>{_images(figures)}", _chance(figures)]
    lines += [f"{percent(facts.evaluation[stage][n].get('miou'))} on {esc(n)}" for n in others]
    lines += _gain(facts, stage)
    body = "".join(f"<p>{line}</p>" for line in lines if line)
    big = f'<p class="big">{percent(miou)}<span>%</span></p>'
    marks = f'<p class="badges">{badges(facts, stage, figures)}</p>'
    return f'<article class="card">{title}{big}{bar}{marks}{body}{proto(figures)}</article>'


def _ratio(facts: Facts) -> tuple[str, float, float] | None:
    """List, weak and full mIoU, of the first list that both segmenters were measured on."""
    for name in facts.lists:
        weak, full = facts.figures("segment", name), facts.figures("segment_full", name)
        if (
            weak
            and full
            and finite(weak[1].get("miou")) is not None
            and finite(full[1].get("miou"))
        ):
            return name, float(weak[1]["miou"]), float(full[1]["miou"])
    return None


def _ratio_card(facts: Facts) -> str:
    title = "<h3>Weak / full ratio</h3>"
    if ratio := _ratio(facts):
        name, weak, full = ratio
        bar = bars([("var(--segment)", weak / full)], f"ratio {weak / full:.2f}", 4)
        text = f"<p>on <b>{esc(name)}</b></p><p>{percent(weak)} against {percent(full)}</p>"
        start = esc(initial_weights(facts.manifest, "segment"))
        said = (
            f"Same net, images and budget; tags only against true masks; initial weights {start}."
        )
        same = f'<p class="proto">{said}</p>'
        return (
            f'<article class="card">{title}<p'
            f' class="big">{weak / full:.2f}</p>{bar}{text}{same}</article>'
        )
    why = "Not there yet: it needs the segmenter and fit --supervision full, measured on one list."
    return (
        f'<article class="card empty">{title}<p class="big">–</p><p'
        f' class="proto">{why}</p></article>'
    )


def _figures_table(facts: Facts) -> str:
    """A row for each stage and list, a column for each figure that any of them has."""
    rows = [
        (stage, name, facts.evaluation[stage][name])
        for stage in STAGES
        for name in facts.evaluation.get(stage, {})
    ]
    shown = [
        (key, title)
        for key, title in _FIGURES.items()
        if any(finite(f.get(key)) is not None for *_, f in rows)
    ]
    if not shown:
        return ""
    extra = [(title, read) for title, read in _WORDS.items() if any(read(f) for *_, f in rows)]
    head = ("Stage", "List", *(f"#{title}" for _, title in shown), *(title for title, _ in extra))
    cells = [
        [
            f'<i class="swatch" style="background:{COLOURS[stage]}"></i>{STAGES[stage]}',
            esc(name),
            *(percent(figures.get(key)) for key, _ in shown),
            *(esc(read(figures) or "–") for _, read in extra),
        ]
        for stage, name, figures in rows
    ]
    caption = (
        "Every figure in percent. Over- and under-activation: false positives and misses per union,"
        " lower is better."
    )
    return details(
        "All figures", table(head, cells, caption, "sortable figures") + _conventions(rows)
    )


def _conventions(rows: Sequence[tuple[str, str, Mapping[str, Any]]]) -> str:
    """Mean IoU in the conventions of other code, where any of them gives another value."""
    entries = [
        (f"{STAGES[stage]} on {name}", f.get("miou_by_convention") or {}) for stage, name, f in rows
    ]
    if not any(len(set(map(percent, values.values()))) > 1 for _, values in entries):
        return ""
    names = list(dict.fromkeys(name for _, values in entries for name in values))
    cells = [
        [esc(what), *(percent(values.get(name)) for name in names)] for what, values in entries
    ]
    head = ("Figure", *(f"#{name}" for name in names))
    return table(
        head, cells, "mIoU by convention; a dash where a convention has no value", "sortable"
    )


def _gain(facts: Facts, stage: str) -> list[str]:
    """How far the stage is above the one before it, on a list that both were measured on."""
    before = {"refined": "cam", "segment": "refined"}.get(stage)
    if before is None:
        return []
    for name in facts.lists:
        now, then = facts.figures(stage, name), facts.figures(before, name)
        if (
            now
            and then
            and None not in (values := (finite(now[1].get("miou")), finite(then[1].get("miou"))))
        ):
            gain = 100 * (float(values[0] or 0) - float(values[1] or 0))
            return [f"{gain:+.1f} points over {esc(STAGES[before])} on {esc(name)}"]
    return []


def _chance(figures: Mapping[str, Any]) -> str:
    """The interval of a mean IoU, in words."""
    level = finite((figures.get("miou_interval") or {}).get("level"))
    return (
        f"{interval(figures)}, {percent(level).removesuffix('.0')} % interval over images"
        if interval(figures)
        else ""
    )


def _images(figures: Mapping[str, Any]) -> str:
    return f", {figures['images']:,} images" if isinstance(figures.get("images"), int) else ""


def badges(facts: Facts, stage: str, figures: Mapping[str, Any]) -> str:
    """What a figure rests on besides image tags, as marks: nothing, masks that chose a threshold,
    or masks throughout.
    """
    refined = facts.manifest.get("stages", {}).get("refine", {}).get("metrics") or {}
    source = figures.get("threshold_from") or (
        refined.get("threshold_from") if stage == "segment" else None
    )
    initial = initial_weights(facts.manifest, stage)
    marks = [("warn", "initial weights saw more than tags")] if is_extra(initial) else []
    if stage == "segment_full":
        marks.append(("", "trained on true masks"))
    elif source == "oracle":
        marks.append(("warn", "oracle threshold"))
    elif source in ("label_free", "fixed"):
        marks.append(("good", "no mask chose the threshold"))
    elif source:
        marks.append(("", f"threshold from {source} masks"))
    return " ".join(f'<span class="tag {kind}">{esc(text)}</span>' for kind, text in marks)


def proto(figures: Mapping[str, Any], lead: str = "") -> str:
    """The protocol line that stands under a figure; ``lead`` is plain and comes first."""
    words = [w for w in (threshold(figures), str(figures.get("protocol") or "")) if w]
    warn = (
        '<span class="tag warn">oracle</span> ' if figures.get("threshold_from") == "oracle" else ""
    )
    name = f"<b>{esc(lead)}</b> " if lead else ""
    return f'<p class="proto">{name}{warn}{esc("; ".join(words) or "protocol not recorded")}</p>'


def label_names(facts: Facts) -> list[str]:
    """All K+1 labels, background first."""
    return ["background", *facts.classes]


def label_cell(facts: Facts, index: int) -> str:
    """Swatch and name of a label."""
    return swatch(voc_palette(index + 1)[index]) + esc(label_names(facts)[index])


def _pairs(entries: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in entries.items()) or "–"
