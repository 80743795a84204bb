"""The section of a report about the budget: figures against the number of true masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer.report.charts import Line, line_chart
from trainer.report.facts import Facts
from trainer.report.words import percent

TONES = ("var(--segment)", "var(--cam)", "var(--refined)", "var(--full)")
START = "tags alone"
Points = list[Mapping[str, Any]]


def budget(facts: Facts) -> dict[str, Any] | None:
    """Chart and table; None for a run without a curve."""
    content = facts.budget
    if not content:
        return None
    columns, lines = curves(content), list[Line]()
    for colour, (name, points) in zip(TONES, columns.items()):
        lines.append(Line(name, colour, [(p["masks"], 100 * p["miou"]["value"]) for p in points]))
        # The ends of the interval are thin lines of the same colour.
        for end in ("low", "high"):
            ends = [(p["masks"], 100 * p["miou"][end]) for p in points]
            lines.append(Line(f"{name}, {end} end", colour, ends, main=False))
    label = f"Mean IoU of the segmenter on {content['list']} over the number of true masks"
    counts = sorted({point["masks"] for points in columns.values() for point in points})
    return {
        "list": content["list"],
        "chart": line_chart(lines, label, "true masks", "mIoU, %", size=(520, 290)),
        "colours": [(line.name, line.colour) for line in lines if line.main],
        "heads": ["#Masks", *(f"#Minutes at {s:g} s" for s in content["seconds"])],
        "columns": [f"#{name}" for name in columns],
        "rows": [
            {
                "numbers": [count, *(f"{count * s / 60:.0f}" for s in content["seconds"])],
                "figures": [
                    point_words(next((p for p in own if p["masks"] == count), None))
                    for own in columns.values()
                ],
            }
            for count in counts
        ],
        "remarks": [*remarks(content, facts.manifest)],
    }


def curves(content: Mapping[str, Any]) -> dict[str, Points]:
    """The points of each curve by its name, which all begin with the tags alone; masks without the
    tags have no such point.
    """
    start = [point for point in content["points"] if point["system"] == START]
    named: dict[str, Points] = {}
    for point in content["points"]:
        if point["system"] != START:
            name = f"{point['system']}, {point['chosen']}"
            first = start if "tags" in point["system"] else []
            named.setdefault(name, [*first]).append(point)
    return named or {START: start}


def point_words(point: Mapping[str, Any] | None) -> str:
    """``66.1 (63.0 to 69.0)`` in percent; a dash without a point."""
    if point is None:
        return "–"
    value, low, high = (percent(point["miou"][key]) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def remarks(content: Mapping[str, Any], manifest: Mapping[str, Any]) -> Iterator[str]:
    """Differences and ratios of the points, and what all of them rest on, a sentence each.

    Args:
        content: of ``budget.json``.
        manifest: of its run as it is now.
    """
    if content["key"] != manifest.get("stages", {}).get("segment", {}).get("key"):
        yield "The run has changed since this curve was made: wsss-trainer budget makes it again."
    for point in content["points"]:
        way = "at random" if point["chosen"] == "random" else f"by {point['chosen']}"
        masks = f", {point['masks']} masks chosen {way}" if point["masks"] else ""
        parts = [
            f"{100 * gain['value']:+.1f} ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"
            f" against {other}"
            for other, gain in point["against"].items()
        ]
        if point["weak_full"]:
            ends = [point["weak_full"][key] for key in ("value", "low", "high")]
            parts.append("weak / full {:.3f} ({:.3f} to {:.3f})".format(*ends))
        if parts:
            yield f"{point['system']}{masks}: {'; '.join(parts)}"
    seeds = ", ".join(map(str, content["seeds"]))
    yield (
        f"mean IoU of the segmenter on {content['images']} images of {content['list']}, with 95 %"
        f" intervals over images; seeds {seeds}, {content['draws']} random draws each; masks of"
        f" {content['masks_of']}, where {content['available']} images can have one"
    )
