"""The page of ``wsss-trainer compare``: figures, classes, and the images that changed most."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from trainer.data.dataset import Dataset, Record
from trainer.data.pixels import read_image
from trainer.errors import UserError
from trainer.evaluation.bootstrap import Interval
from trainer.evaluation.compare import Line, Match, Side
from trainer.evaluation.figures_table import drawn_units
from trainer.evaluation.over_lists import MaskReader, mask_reader
from trainer.evaluation.predictions import open_predictions
from trainer.files import write_atomic
from trainer.pool import each_image
from trainer.report.charts import forest
from trainer.report.facts import STAGES
from trainer.report.html import Section, render, render_page
from trainer.report.overlays import mask_layer
from trainer.report.pictures import fit, layer_address, photo_address, shrink
from trainer.report.row import Row, Tile
from trainer.report.words import percent, tag_words

# Longer side of a picture in the file; the page shows it two thirds as large, for sharp screens.
SIDE = 300


def write_page(sides: Sequence[Side], lines: Sequence[Line], path: Path) -> Path:
    """Write the comparison as one self-contained HTML file, and return its path.

    Args:
        sides: the argument of ``compare``.
        lines: the result of ``compare``.
        path: the file.

    Raises:
        RunError: the file cannot be written.
    """
    title = " | ".join(side.name for side in sides)
    pairs = [(line, match) for line in lines for match in line.matches[1:]]
    pictures = [_changes(sides, line, match) for line, match in pairs]
    parts = {
        "figures": _figures(lines),
        "fairness": _fairness(lines),
        "classes": {"tables": [_classes(line, match) for line, match in pairs]},
        "images": {"groups": pictures, "side": 2 * SIDE // 3},
    }
    sections = [
        Section(name, name.capitalize(), render(f"compare_{name}.html", **values))
        for name, values in parts.items()
    ]
    first = next(match.against_first.difference for _, match in pairs if match.against_first)
    footer = {
        "level": f"{100 * first.level:g}",
        "samples": f"{first.samples:,}",
        "seed": first.seed,
        "units": drawn_units(lines),
        "convention": lines[0].matches[0].entry["convention"],
    }
    page = render_page("compare.html", f"{title}: wsss comparison", sections, runs=title, **footer)
    write_atomic(path, page)
    return path


def _title(line: Line) -> str:
    return f"{STAGES.get(line.stage, line.stage)} on {line.list}"


def _figures(lines: Sequence[Line]) -> dict[str, Any]:
    # One scale for all rows, so that intervals can be compared by eye.
    scale = _scale(
        m.against_first.difference for line in lines for m in line.matches if m.against_first
    )
    rows = [
        {
            "stage": _title(line),
            "name": match.name,
            "miou": match.entry["miou"],
            "deviation": match.entry.get("deviation", {}).get("miou"),
            "against": _against(match, scale),
        }
        for line in lines
        for match in line.matches
    ]
    return {"rows": rows, "reach": f"{100 * scale:g}"}


def _against(match: Match, scale: float) -> dict[str, Any] | None:
    if match.against_first is None:
        return None
    ratio, p = match.against_first.ratio.value, match.against_first.p
    p_text = "< 0.001" if p < 0.001 else f"{p:.3f}"
    return _gain(match.against_first.difference, scale) | {
        "ratio": f"{ratio:.3f}" if math.isfinite(ratio) else "–",
        "p": p_text if math.isfinite(p) else "–",
    }


def _gain(gain: Interval, scale: float) -> dict[str, Any]:
    value, low, high = map(_signed, (gain.value, gain.low, gain.high))
    chart = forest(gain.low, gain.value, gain.high, scale, f"{value}, from {low} to {high}")
    ends = f"{low} to {high}" if math.isfinite(gain.low) else "–"
    return {"value": value, "ends": ends, "chart": chart or ""}


def _scale(intervals: Iterable[Interval]) -> float:
    """The smallest round number of points that contains all intervals."""
    ends = [abs(v) for i in intervals for v in (i.low, i.value, i.high) if math.isfinite(v)]
    return next(
        (s / 100 for s in (2, 5, 10, 15, 20, 30, 50) if s / 100 >= max(ends, default=0)), 1.0
    )


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}" if math.isfinite(value) else "–"


def _fairness(lines: Sequence[Line]) -> dict[str, Any]:
    entries = [
        (f"{_title(line)}, {match.name}", match.entry["protocol"], match.flags)
        for line in lines
        for match in line.matches
    ]
    return {"entries": entries, "is_different": any(flags for *_, flags in entries)}


def _classes(line: Line, match: Match) -> dict[str, Any]:
    assert match.against_first is not None
    first, gains = line.matches[0], match.against_first.classes
    scale = _scale(gains.values())
    rows = [
        (name, [m.entry["iou"][name] for m in (first, match)], _gain(gain, scale))
        for name, gain in gains.items()
    ]
    return {
        "title": f"{_title(line)}: {match.name} against {first.name}",
        "head": [f"#{first.name}", f"#{match.name}"],
        "rows": rows,
        "reach": f"{100 * scale:g}",
    }


def _changes(sides: Sequence[Side], line: Line, match: Match) -> dict[str, Any]:
    names = [line.matches[0].name, match.name]
    group = {"title": f"{_title(line)}: {names[1]} against {names[0]}", "names": names, "rows": []}
    if not match.changes:
        return group | {"note": "No image changed."}
    pair = [side for name in names for side in sides if side.name == name]
    try:
        return group | {"rows": _rows(pair, line, match), "note": ""}
    # The figures are worth a page where the data set is gone.
    except UserError as error:
        return group | {"note": f"No pictures: {str(error).splitlines()[0]}"}


def _rows(pair: Sequence[Side], line: Line, match: Match) -> list[tuple[Row, str, str]]:
    predictions = [
        open_predictions(path, line.stage, line.list, entry)
        for path, entry in (side.pictured(line.stage, line.list) for side in pair)
    ]
    dataset = predictions[0][0]
    readers = [mask_reader(masks) for _, masks in predictions]
    changes = {row["id"]: row for row in match.changes}
    records = [dataset.records[name] for name in changes]
    work = partial(_row, dataset, readers, changes)
    what, title = "images cannot be shown", f"pictures {line.stage} {line.list}"
    return each_image(work, records, what, None, title, True, attrgetter("id"))


def _row(
    dataset: Dataset,
    readers: Sequence[MaskReader],
    changes: dict[str, dict[str, float]],
    record: Record,
) -> tuple[Row, str, str]:
    """A row of pictures, the names of its tags, and the change of its mean IoU."""
    photo, change = read_image(record.image), changes[record.id]
    size = fit(photo.shape, SIDE)
    titles = ("True mask", "Prediction of the first", "Prediction of the other")
    masks = [dataset.read_mask(record), *(reader(record) for reader in readers)]
    figures = ["", percent(change["before"]), percent(change["after"])]
    tiles = [
        Tile("mask", title, layer_address(mask_layer(shrink(mask, size))), figure)
        for title, mask, figure in zip(titles, masks, figures, strict=True)
    ]
    row = Row(record.id, "", tuple(record.tags), size, photo_address(photo, size), tiles)
    return row, tag_words(record, dataset.classes), _signed(change["after"] - change["before"])
