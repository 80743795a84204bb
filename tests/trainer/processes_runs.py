"""Small runs that ``test_processes`` does with one process and ``processes_job`` with two."""

from __future__ import annotations

from pathlib import Path

from refined import SETTINGS as QUICK
from refined import pipeline

from trainer.plan import Plan

UPDATES = 50
BACKBONE = "timm/test_resnet"
METHODS = ("sc_cam", "subcategory_teaching")
SETTINGS = (
    *(f"{section}.updates={UPDATES}" for section in ("classify", "affinity", "irn", "segment")),
    *(f"{section}.batch=4" for section in ("classify", "affinity", "irn", "segment")),
    # Low rates: training amplifies rounding errors, the faster the higher the rate.
    *("classify.lr=2e-4", "affinity.lr=2e-5", "irn.lr=0.001", "segment.lr=5e-5"),
    *("segment.precision=fp32", "segment.workers=0", "segment.scales=1"),
    *("affinity.crop=48", "affinity.radius=3", "irn.crop=48", "irn.canvas=48", "irn.instances=off"),
)


def plan_of(run: Path, way: str, *settings: str, until: str = "segment") -> Plan:
    """The plan of a run on the data beside it, refined by ``affinity`` or ``irn``."""
    until = until if way == "affinity" else "refine"
    return pipeline(
        run.parent / "data",
        run,
        *SETTINGS,
        *settings,
        refine=way,
        until=until,
        backbone=BACKBONE,
        size=48,
    )


def method_run(run: Path, method: str) -> Plan:
    """The plan of a method with clusters, as short as possible."""
    own = {
        "sc_cam": ("method.k=2", "method.rounds=1"),
        "subcategory_teaching": ("method.teacher=backbone",),
    }
    return pipeline(
        run.parent / "data",
        run,
        *own[method],
        "classify.updates=2",
        "classify.batch=4",
        until="classify",
        backbone=BACKBONE,
        size=32,
        method=method,
    )


def words(data: Path, run: Path, *more: str) -> list[str]:
    """What is typed to train the classifier of ``plan_of`` alone, as the only one of its seeds."""
    options = {"backbone": BACKBONE, "weights": "none", "size": "48", "epochs": "1"}
    pairs = [f"--{name}={value}" for name, value in options.items()]
    knobs = [f"--set={knob}" for knob in (*QUICK, *SETTINGS, *more)]
    place = ["fit", str(data), "--run", str(run), "--until", "classify", "--seeds", "0"]
    return [*place, "--device", "cpu", *pairs, *knobs]
