"""``fit``: do what a plan says, stage by stage; for several seeds, one run after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from trainer.checks.preflight import data_entry
from trainer.config import as_dict
from trainer.context import Context, Stage
from trainer.cores import shared_cores
from trainer.data.dataset import check_images
from trainer.errors import RunError
from trainer.interrupt import terminated
from trainer.options import Options
from trainer.outcome import signs
from trainer.outputs import check_folder
from trainer.plan import Plan, make_plan
from trainer.progress import WARNING, announced, naming, say, tell
from trainer.ranks import rank
from trainer.report.run_page import write_report
from trainer.run import Run, is_run
from trainer.seed_folder import is_seed_folder, mark, seed_run, seed_runs
from trainer.sharing import share
from trainer.training.collectives import check_same, of_first, wait_for_all
from trainer.training.devices import launch


def fit_seeds(options: Options, seeds: Sequence[int], siblings: Sequence[Path] = ()) -> list[Plan]:
    """One run a seed below ``options.run``; stages that no seed changes are done once.

    Args:
        options: as typed.
        seeds: of the runs.
        siblings: further runs whose stages may be taken over, see ``share``.

    Raises:
        RunError: the folder is a run of one seed.
        UserError: as ``fit_run``.
    """
    folder = options.run
    if is_run(folder):
        raise RunError(
            f"{folder} is a run of one seed",
            "a folder for one run a seed",
            f"--run {folder}-seeds",
        )
    check_folder(folder, is_seed_folder, [options.data], "--run")
    plans = []
    for number, seed in enumerate(seeds, 1):
        one = dataclasses.replace(options, run=seed_run(folder, seed), seed=seed)
        with naming(seed):
            say(f"run {number} of {len(seeds)}, {one.run}")
            plan = prepare(one)
            if not is_seed_folder(folder):
                # Only now: options that cannot be leave no folder behind.
                mark(folder)
            fit(plan, say, [*seed_runs(folder).values(), *siblings])
        plans.append(plan)
    return plans


def fit_run(options: Options, siblings: Iterable[Path] = ()) -> Plan:
    """One run: plan it, say what it rests on, and do it.

    Args:
        options: as typed.
        siblings: runs whose stages may be taken over, see ``share``.

    Raises:
        UserError: what cannot be; the same command continues where it stopped.
    """
    if seeds := seed_runs(options.run):
        listing = ",".join(map(str, seeds))
        raise RunError(
            f"{options.run} holds runs of the seeds {listing}",
            "a folder for one run",
            f"--seeds {listing} to go on with them, or another --run",
        )
    plan = prepare(options)
    fit(plan, say, siblings)
    return plan


def prepare(options: Options) -> Plan:
    """The plan, after saying what it rests on: weights, images and knobs that follow the data."""
    plan = make_plan(options)
    context = plan.context
    # Each report once: several networks may start from one file.
    for weight_report in dict.fromkeys((context.classifier, context.initial, context.start.report)):
        if weight_report:
            say(str(weight_report))
    for line in (*plan.preflight.lines(), *plan.reasons):
        say(line)
    return plan


def fit(plan: Plan, say: Callable[[str], None], siblings: Iterable[Path] = ()) -> None:
    """Run every stage that is not done yet, then write the report.

    Args:
        plan: from ``make_plan``.
        say: is told what happens to each stage before the first of them begins.
        siblings: runs whose stages may be taken over, see ``share``.

    Raises:
        UserError: what a stage cannot do; the same command continues where it stopped.
    """
    context, run = plan.context, plan.context.run
    with run.lock(), terminated():
        launch(context.device)
        check_processes(plan)
        check_images(context.scored if plan.scores else context.images)
        plan.preflight.raise_errors()
        run.describe(**description(plan))
        # What the corrections do not touch need not be trained again.
        runs = context.corrections.runs if context.corrections else ()
        share(plan, [*siblings, *runs], say)
        follow_first(run)
        # All of them before the first stage, whose progress would bury what comes after it.
        for stage in plan.stages:
            say(f"{stage.name}: {run.standing(stage.name, plan.keys[stage.name])}")
        for stage in plan.stages:
            if of_first(run.done(stage.name, plan.keys[stage.name])):
                # The line for people stands in the list above.
                tell("", "stage", stage=stage.name, state="kept")
            else:
                work(plan, stage)
                note_signs(plan, stage.name)
            for text in warnings(run).get(stage.name, ()):
                say(f"{WARNING}{stage.name}: {text}")
    if rank() == 0 and plan.until == "report":
        say(f"report: {write_report(run.path)}")


def work(plan: Plan, stage: Stage) -> None:
    """Do one stage of a plan; all processes wait for it."""
    run, key, folder = plan.context.run, plan.keys[stage.name], stage.folder or None
    with announced(stage.name), shared_cores(), run.stage(stage.name, key, folder) as output:
        # The first process has set aside files of another key by now.
        wait_for_all()
        stage.work(plan.context, output)
        # A stage is done when every process has done its part.
        wait_for_all()
    follow_first(run)


def follow_first(run: Run) -> None:
    """Let every process know what the first one has written in the manifest."""
    wait_for_all()
    if run.second:
        run.reload()


def check_processes(plan: Plan) -> None:
    """Refuse processes of torchrun that would not do the same work in one folder.

    Raises:
        RunError: their machines have different folders, data, weights or code.
    """
    run = plan.context.run
    lock = run.path / ".lock"
    # By now the first process has written its note into the lock.
    wait_for_all()
    check_same(
        lock.read_text() if lock.exists() else "",
        f"{run.path} is not the same folder on every machine",
        "a run folder that all machines share, such as one on a network file system",
        "--run with such a folder",
    )
    check_same(
        plan.keys,
        "the processes have planned different work: data, weights or versions differ",
        "the same data, weights and version of wsss-trainer on every machine",
        "data and weights in a folder that all machines share",
    )


def note_signs(plan: Plan, stage: str) -> None:
    """Keep the signs of a bad result in the manifest, for the report and for the next run."""
    if rank() == 0 and (texts := signs(stage, plan.context)):
        plan.context.run.manifest["stages"][stage]["warnings"] = texts
        plan.context.run.save()


def warnings(run: Run) -> dict[str, list[str]]:
    """The signs of a bad result of a run, by stage; see ``trainer.outcome``."""
    stages = run.manifest["stages"]
    return {name: entry["warnings"] for name, entry in stages.items() if "warnings" in entry}


def description(plan: Plan) -> dict[str, Any]:
    """What ``manifest.json`` says of a run besides its stages."""
    context, initial = plan.context, plan.context.initial
    return {
        "seed": context.seed,
        "method": context.maps_from,
        "backbone": context.backbone,
        "supervision": context.supervision,
        "segmenter": context.configs.segment.network,
        "segmenter_supervision": context.start.supervision(context.supervision),
        "weights": {"path": str(initial.path), "sha256": initial.sha256} if initial else None,
        "train_list": context.train_list,
        "val_list": context.val_list,
        "data": data_entry(context.dataset, plan.preflight),
        "masks": masks_entry(context),
        "choices": list(plan.reasons),
        "config": {
            field.name: as_dict(getattr(context.configs, field.name))
            for field in dataclasses.fields(context.configs)
        },
    }


def masks_entry(context: Context) -> dict[str, Any] | None:
    """What ``manifest.json`` says of the true masks and corrected tags that a run trains on; None
    without any. Figures are measured without them, so the ids are told.
    """
    masks, corrections = context.masks, context.corrections
    if masks is None and corrections is None:
        return None
    return {
        "ids": [record.id for record in masks.images] if masks else [],
        "corrections": str(corrections.folder.resolve()) if corrections else None,
        "tags": corrections.tags if corrections else {},
    }
