"""What two processes do for ``test_processes``, each started by torchrun.

torchrun ... processes_job.py FOLDER: in FOLDER, ``affinity`` and ``irn`` are copies of finished
runs. Make their maps, masks and predictions again, then train their networks again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

from processes_runs import METHODS, method_run, plan_of

from trainer.fit import check_processes, fit, work
from trainer.methods.subcategories import SUBCATEGORIES, Subcategories
from trainer.plan import Plan
from trainer.progress import say
from trainer.ranks import rank
from trainer.training.collectives import gathered, wait_for_all
from trainer.training.devices import launch

MADE = ("cams", "walk", "refine", "segment")
"""Stages that share images."""
TRAINED = ("segment_train", "affinity", "irn", "classify")
"""Last what the others start from."""


def redo(plan: Plan, names: tuple[str, ...]) -> None:
    """Do stages again, from the files of the stages before."""
    run, stages = plan.context.run, {stage.name: stage for stage in plan.stages}
    for stage in (stages[name] for name in names if name in stages):
        if rank() == 0:
            place = run.path / (stage.folder or stage.name)
            # The folder of the predictions lies in that of the segmenter.
            shutil.rmtree(place) if stage.name in MADE else (place / "model.pt").unlink()
        wait_for_all()
        work(plan, stage)


def main(folder: Path) -> None:
    launch("cpu")
    for way in ("affinity", "irn"):
        plan = plan_of(folder / way, way)
        with plan.context.run.lock():
            wait_for_all()
            check_processes(plan)
            redo(plan, MADE)
            redo(plan, TRAINED)
    hashes = {}
    for method in METHODS:
        plan = method_run(folder / method, method)
        fit(plan, say)
        (file,) = (folder / method).glob(f"*/{SUBCATEGORIES}")
        model = (folder / method / "classify" / "model.pt").read_bytes()
        counts = Subcategories.read(file).prepared(plan.context.configs.method).config
        own = [counts.subcategories, hashlib.sha256(file.read_bytes() + model).hexdigest()]
        hashes[method] = gathered([own])
    if rank() == 0:
        (folder / "hashes.json").write_text(json.dumps(hashes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
