"""The page of ``wsss-trainer compare``: figures, classes and the images that changed most, in one
file.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from functools import partial
from html import escape as esc
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.data.dataset import Dataset, Record
from trainer.data.palette import voc_palette
from trainer.data.pixels import read_image
from trainer.errors import UserError
from trainer.evaluation.bootstrap import Interval
from trainer.evaluation.compare import Line, Match, Side
from trainer.evaluation.over_lists import mask_reader
from trainer.evaluation.predictions import open_predictions
from trainer.files import write_atomic
from trainer.pool import each_image
from trainer.report.facts import STAGES, finite, percent
from trainer.report.overlays import overlay_mask
from trainer.report.page import note, page, swatch, table

Pixels = npt.NDArray[np.uint8]
Read = Callable[[Record], Pixels]
SIDE = 200
"""Longer side of a picture on the page, in pixels; the file holds it half as large again for sharp
screens.
"""


def write_page(
    sides: Sequence[Side], lines: Sequence[Line], path: Path, *, progress: bool = False
) -> Path:
    """Write the comparison as one self-contained HTML file, and return its path.

    Args:
        sides: as given to ``compare``.
        lines: what ``compare`` returned.
        path: the file.
        progress: show a bar while pictures are made.

    Raises:
        RunError: it cannot be written.
    """
    title = " | ".join(side.name for side in sides)
    sections = [
        ("figures", "Figures", _figures(lines)),
        ("fairness", "Fairness", _fairness(lines)),
        ("classes", "Classes", "".join(_classes(line) for line in lines)),
        ("images", "Images", "".join(_images(sides, line, progress) for line in lines)),
    ]
    about = (
        "Everything is compared with the first; differences are in points of mean IoU, on the"
        " images that both have."
    )
    header = f'<p class="over">Comparison</p><h1>{esc(title)}</h1><p class="lead">{about}</p>'
    write_atomic(path, page(f"{title}: wsss comparison", header, sections, _footer(lines)).encode())
    return path


def _footer(lines: Sequence[Line]) -> str:
    drawn = next(m.paired.difference for line in lines for m in line.matches if m.paired)
    convention = lines[0].matches[0].entry["convention"]
    return (
        f"<p>Intervals: {100 * drawn.level:g} %, paired bootstrap over images, {drawn.samples:,}"
        f" samples, seed {drawn.seed}. They hold the chance of the images, not that of the"
        f" training's seed. Convention {esc(convention)}. Written by wsss-trainer. Makes no network"
        " request.</p>"
    )


def _figures(lines: Sequence[Line]) -> str:
    scale = _scale([m.paired.difference for line in lines for m in line.matches if m.paired])
    rows = []
    for line in lines:
        for match in line.matches:
            stage = f"{esc(STAGES.get(line.stage, line.stage))} on {esc(line.list)}"
            rows.append(
                [stage, esc(match.name), percent(match.entry["miou"]), *_against(match, scale)]
            )
    head = ("Stage", "Run", "#mIoU", "#Difference", "#95 %", "", "#Ratio", "#p")
    text = (
        "The bar is the interval of the difference, the dot the difference, the line in the middle"
        " no difference."
    )
    return f"<p>{text}</p>" + table(
        head, rows, f"Mean IoU in percent, differences in points; {_reach(scale)}", "sortable"
    )


def _against(match: Match, scale: float) -> list[str]:
    if match.paired is None:
        return ["", "", "", "", ""]
    gain, ratio = match.paired.difference, match.paired.ratio
    return [
        f"<b>{_signed(gain.value)}</b>",
        f"{_signed(gain.low)} to {_signed(gain.high)}",
        forest(gain, scale),
        f"{ratio.value:.3f}" if np.isfinite(ratio.value) else "–",
        (
            "&lt; 0.001"
            if match.paired.p < 0.001
            else f"{match.paired.p:.3f}"
            if np.isfinite(match.paired.p)
            else "–"
        ),
    ]


def forest(interval: Interval, scale: float, width: int = 180) -> str:
    """An interval around 0 as inline SVG, from ``-scale`` to ``scale``; empty where it is
    undefined.
    """
    if finite(interval.low) is None or finite(interval.value) is None:
        return ""
    low, middle, high = (
        round(width / 2 * (1 + v / scale), 1) for v in (interval.low, interval.value, interval.high)
    )
    colour = (
        "var(--segment)"
        if interval.low > 0
        else "var(--warn)"
        if interval.high < 0
        else "var(--soft)"
    )
    words = f"{_signed(interval.value)}, from {_signed(interval.low)} to {_signed(interval.high)}"
    return (
        f'<svg width="{width}" height="16" role="img" aria-label="{words}"><line x1="{width / 2}"'
        f' x2="{width / 2}" y1="0" y2="16" stroke="var(--line)"/><line x1="{low}" x2="{high}"'
        f' y1="8" y2="8" stroke="{colour}" stroke-width="4" stroke-linecap="round"'
        f' opacity=".55"/><circle cx="{middle}" cy="8" r="4" fill="{colour}"/></svg>'
    )


def _scale(intervals: Sequence[Interval]) -> float:
    """A round number of points that holds them all."""
    ends = [abs(v) for i in intervals for v in (i.low, i.value, i.high) if np.isfinite(v)]
    return next(
        (s / 100 for s in (2, 5, 10, 15, 20, 30, 50) if s / 100 >= max(ends, default=0)), 1.0
    )


def _reach(scale: float) -> str:
    return f"the bars reach from -{100 * scale:g} to +{100 * scale:g}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}" if np.isfinite(value) else "–"


def _fairness(lines: Sequence[Line]) -> str:
    parts = []
    for line in lines:
        for match in line.matches:
            where = (
                f"<b>{esc(STAGES.get(line.stage, line.stage))} on {esc(line.list)},"
                f" {esc(match.name)}</b>"
            )
            flags = "".join(f'<br><span class="warn">{esc(flag)}</span>' for flag in match.flags)
            parts.append(f'<p class="proto">{where} {esc(match.entry["protocol"])}{flags}</p>')
    differing = any(match.flags for line in lines for match in line.matches)
    same = (
        "List, scales, CRF, threshold source, training list and the supervision of the initial"
        " weights are the same."
    )
    lead = (
        "What was not the same stands in red: it can make a difference that the methods did not."
        if differing
        else same
    )
    return f"<p>{lead}</p>{''.join(parts)}"


def _classes(line: Line) -> str:
    first = line.matches[0]
    parts = []
    for match in line.matches[1:]:
        assert match.paired is not None
        scale = _scale(list(match.paired.classes.values()))
        rows = []
        for k, (name, gain) in enumerate(match.paired.classes.items()):
            ends = f"{_signed(gain.low)} to {_signed(gain.high)}" if np.isfinite(gain.low) else "–"
            values = [percent(m.entry["iou"][name]) for m in (first, match)]
            rows.append(
                [
                    swatch(voc_palette(k + 1)[k]) + esc(name),
                    *values,
                    _signed(gain.value),
                    ends,
                    forest(gain, scale),
                ]
            )
        head = ("Class", f"#{first.name}", f"#{match.name}", "#Difference", "#95 %", "")
        caption = f"IoU in percent, differences in points; {_reach(scale)}"
        title = (
            f"{STAGES.get(line.stage, line.stage)} on {line.list}: {match.name} against"
            f" {first.name}"
        )
        parts.append(f"<h3>{esc(title)}</h3>" + table(head, rows, caption, "sortable"))
    return "".join(parts)


def _images(sides: Sequence[Side], line: Line, progress: bool) -> str:
    by_name = {side.name: side for side in sides}
    parts = []
    for match in line.matches[1:]:
        title = (
            f"{STAGES.get(line.stage, line.stage)} on {line.list}: {match.name} against"
            f" {line.matches[0].name}"
        )
        if not match.changes:
            parts.append(f"<h3>{esc(title)}</h3>" + note("No image changed."))
            continue
        try:
            rows = _pictures(
                [by_name[line.matches[0].name], by_name[match.name]], line, match, progress
            )
        except UserError as error:
            text = f"No pictures: {str(error).splitlines()[0]}"
            parts.append(f"<h3>{esc(title)}</h3>" + note(text))
            continue
        head = ("Image", "Photograph", "True mask", line.matches[0].name, match.name)
        shown = table(
            head,
            rows,
            "Largest gains, then largest losses, of the mean IoU of single images",
            "pictures",
        )
        parts.append(f"<h3>{esc(title)}</h3>" + shown)
    return _PICTURES + "".join(parts)


_PICTURES = (
    "<style>.pictures td,.pictures th{vertical-align:top;padding:8px 12px 8px 0}.pictures"
    " figure{margin:0}"
    ".pictures"
    f" img{{display:block;max-width:{SIDE}px;max-height:{SIDE}px;"
    "width:auto;height:auto;border-radius:2px}</style>"
)


def _pictures(pair: Sequence[Side], line: Line, match: Match, progress: bool) -> list[list[str]]:
    opened = [
        open_predictions(side.path, line.stage, line.list, side.evaluation[line.stage][line.list])
        for side in pair
    ]
    dataset = opened[0][0]
    reads = [mask_reader(masks) for _, masks in opened]
    changes = {row["id"]: row for row in match.changes}
    records = [dataset.records[name] for name in changes]
    work = partial(_row, dataset, reads, changes)
    title = f"pictures {line.stage} {line.list}"
    return each_image(
        work, records, "images cannot be shown", None, title, progress, lambda record: record.id
    )


def _row(
    dataset: Dataset, reads: Sequence[Read], changes: dict[str, dict[str, float]], record: Record
) -> list[str]:
    photo, row = read_image(record.image), changes[record.id]
    tags = ", ".join(dataset.classes[k] for k in record.tags)
    name = (
        f"{esc(record.id)}<br><small>{esc(tags)}<br>{_signed(row['after'] - row['before'])}"
        " points</small>"
    )
    masks = [dataset.read_mask(record), *(read(record) for read in reads)]
    captions = ["", percent(row["before"]), percent(row["after"])]
    words = ["true mask", "prediction of the first", "prediction of the other"]
    tiles = [
        _tile(overlay_mask(photo, m), f"{record.id}: {w}", c)
        for m, w, c in zip(masks, words, captions)
    ]
    return [name, _tile(photo, record.id, ""), *tiles]


def _tile(pixels: Pixels, alt: str, caption: str) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((3 * SIDE // 2, 3 * SIDE // 2), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # Full colour resolution: thin contours in saturated colours smear otherwise.
    image.save(buffer, "JPEG", quality=78, subsampling=0, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}" loading="lazy" decoding="async"'
    text = f"<figcaption>{esc(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{esc(alt)}" {size}>{text}</figure>'
    )
