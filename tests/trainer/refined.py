"""Small runs that are refined: how to make one, and what to look at."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from trainer.fit import fit as run_plan
from trainer.options import Options
from trainer.plan import Plan, make_plan

PLAIN = "scene_00001"
"""The training image whose tags are taken away."""
QUICK = {
    "affinity": ("epochs=1", "batch=4", "crop=72", "precision=fp32", "workers=0", "jitter=off"),
    "irn": (
        "epochs=1",
        "batch=4",
        "crop=64",
        "precision=fp32",
        "workers=0",
        "radius=3",
        "canvas=64",
        "displacement=on",
        "instances=on",
    ),
}
SETTINGS = (
    "classify.workers=0",
    "classify.precision=fp32",
    "cams.workers=0",
    "cams.scales=1",
    *(f"{way}.{knob}" for way, knobs in QUICK.items() for knob in knobs),
)


def pipeline(
    data: Path,
    run: Path,
    *settings: str,
    refine: str | None = None,
    until: str = "refine",
    **more: Any,
) -> Plan:
    options: dict[str, Any] = {
        "backbone": "mobilenet_v2",
        "weights": "none",
        "size": 64,
        "epochs": 1,
        **more,
    }
    return make_plan(
        Options(
            data,
            run,
            until=until,
            device="cpu",
            refine=refine,
            settings=(*SETTINGS, *settings),
            **options,
        )
    )


def fit(data: Path, run: Path, *settings: str, **more: Any) -> dict[str, str]:
    """What was said of each stage."""
    said: list[str] = []
    run_plan(pipeline(data, run, *settings, **more), said.append)
    return dict(line.split(": ", 1) for line in said if not line.startswith("warning: "))


def again(said: dict[str, str]) -> set[str]:
    return {name for name, what in said.items() if not what.startswith("done")}


def made(data: Path, mapped: Path, way: str) -> Path:
    """A copy of the run with maps, refined."""
    run = data.parent / way
    shutil.copytree(mapped, run)
    fit(data, run, refine=way)
    return run


def names(folder: Path, suffix: str) -> set[str]:
    return {path.stem for path in folder.glob(f"*{suffix}")}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def unfinished(run: Path, *stages: str) -> None:
    """As a kill leaves them."""
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    for stage in stages:
        manifest["stages"][stage]["status"] = "running"
    path.write_text(json.dumps(manifest))
