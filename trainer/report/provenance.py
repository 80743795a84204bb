"""Time and memory of a run, and everything needed to repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.report.charts import bars
from trainer.report.facts import Facts
from trainer.report.words import duration, finite, memory, moment, pairs
from trainer.weights.supervision import initial_weights


def stages(facts: Facts) -> dict[str, Any]:
    """Status, time and peak memory of every stage."""
    entries = facts.manifest.get("stages", {})
    seconds = {name: finite(stage.get("seconds")) or 0 for name, stage in entries.items()}
    peaks = {name: finite(stage.get("peak_memory_mb")) or 0 for name, stage in entries.items()}
    rows = []
    for name in facts.stages if entries else ():
        stage = entries.get(name, {})
        time, peak = duration(stage.get("seconds")), memory(stage.get("peak_memory_mb"))
        rows.append(
            {
                "name": name,
                "status": str(stage.get("status", "not yet")),
                "time": time,
                "time_bar": _bar("var(--segment)", name, seconds, time),
                "peak": peak,
                "peak_bar": _bar("var(--full)", name, peaks, peak),
                "outputs": pairs(stage.get("outputs", {})),
                "key": str(stage.get("key", ""))[:8],
            }
        )
    total = duration(sum(seconds.values()))
    return {"rows": rows, "total": total, "host": pairs(facts.manifest.get("host", {}))}


def _bar(colour: str, name: str, values: Mapping[str, float], text: str) -> str:
    share = values.get(name, 0) / (max(values.values(), default=0) or 1)
    return bars([(colour, share or None)], f"{name}: {text}", 8)


def provenance(facts: Facts) -> dict[str, Any]:
    """Command, versions, data and knobs of a run."""
    manifest, data = facts.manifest, facts.manifest.get("data", {})
    command = manifest.get("command", [])
    birth, change = (moment(manifest.get(when, "–")) for when in ("created", "updated"))
    line = " ".join(map(str, command)) if isinstance(command, list) else str(command)
    entries = [
        ("Command", True, line),
        ("Commit", True, manifest.get("commit") or "not recorded"),
        ("Versions", False, pairs(manifest.get("versions", {}))),
        ("Host", False, pairs(manifest.get("host", {}))),
        ("Seed", False, manifest.get("seed", "–")),
        ("Created", False, f"{birth}; last change {change}"),
        ("Data", True, data.get("path", "–")),
        ("Data format", False, data.get("format", "–")),
        ("Data fingerprint", True, data.get("fingerprint", "–")),
        ("Tags", False, data.get("tags_from", "–")),
        ("Weights", False, f"{manifest.get('backbone', '–')}, {initial_weights(manifest)}"),
    ]
    knobs = [
        (stage, name, value)
        for stage, config in manifest.get("config", {}).items()
        if isinstance(config, Mapping)
        for name, value in config.items()
    ]
    return {"entries": entries, "knobs": knobs}
