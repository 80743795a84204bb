"""Stage ``evaluate``: measure every stage of a run on every list with true masks, each figure with its protocol."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import as_dict, replace
from trainer.data.dataset import Dataset, Record, open_dataset
from trainer.evaluate import evaluate_cams, evaluate_folder, sweep_thresholds
from trainer.refine.threshold import choose
from trainer.run import Run, stage_key, write_json
from trainer.supervision import initial_weights

MEASURED = ("cams", "refine", "segment", "segment_full")


@dataclass(frozen=True)
class EvaluateConfig:
    """Knobs of the evaluation.

    Attributes:
        threshold_from: of the maps' figures: ``fixed``, ``label_free``, ``oracle``, the name of a list with true masks,
            or ``auto``: chosen on ``train`` where another list is reported, label-free on ``train`` itself.
        threshold: the value for ``fixed``.
    """

    threshold_from: str = "auto"
    threshold: float = 0.2


def measure(run: Run, dataset: Dataset, lists: Sequence[str], config: EvaluateConfig) -> dict[str, Any]:
    """Write ``evaluation.json`` and return each mean IoU as ``{"<stage> <list>": value}``."""
    stages = {n: s for n, s in run.manifest["stages"].items() if s["status"] == "done"}
    result: dict[str, dict[str, Any]] = {}
    for name in lists:
        if "cams" in stages:
            result.setdefault("cam", {})[name] = _cams(run, dataset, name, lists, config)
        if "refine" in stages:
            refined = stages["refine"]["metrics"]
            records = _with_maps(run, dataset, name)
            text = f"pseudo masks from true tags, {_crf(run)}, {refined['threshold_detail']}"
            line = _protocol(run, dataset, name, "refine", text, len(dataset.subset(name)) - len(records))
            measured = evaluate_folder(dataset, records, run.path / "masks", progress=True)
            source = _said(refined["threshold_from"], name)
            result.setdefault("refined", {})[name] = measured.report(line, refined["threshold"], source)
        for segmenter in ("segment", "segment_full"):
            if segmenter in stages:
                folder = run.path / segmenter / "predictions" / name
                measured = evaluate_folder(dataset, dataset.subset(name), folder, progress=True)
                line = _protocol(run, dataset, name, segmenter, _segmenter(run, segmenter))
                result.setdefault(segmenter, {})[name] = measured.report(line)
    write_json(run.path / "evaluation.json", result)
    return {f"{stage} {name}": entry["miou"] for stage, lines in result.items() for name, entry in lines.items()}


def current_evaluation(run_dir: Path) -> dict[str, dict[str, Any]]:
    """``evaluation.json`` of a run, measured now where it is missing or older than a stage.

    Raises:
        RunError: the folder is no run.
        DataError: the data set has gone or changed.
    """
    run = Run.existing(run_dir)
    stages = run.manifest["stages"]
    dataset = open_dataset(run.manifest["data"]["path"])
    lists = measured_lists(dataset, run.manifest["train_list"], run.manifest["val_list"])
    config = replace(EvaluateConfig(), run.manifest["config"]["evaluate"], "evaluate")
    key = evaluation_key(stages, config, lists)
    path = run_dir / "evaluation.json"
    if lists and not (run.done("evaluate", key) and path.exists()):
        with run.lock(), run.stage("evaluate", key) as stage:
            stage.metrics.update(measure(run, dataset, lists, config))
    result: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    return result


def measured_lists(dataset: Dataset, train_list: str, val_list: str | None) -> list[str]:
    """Lists that figures are given for: ``train`` (or the training list) and the validation list, if all have masks."""
    names = ["train" if "train" in dataset.lists else train_list]
    if val_list and val_list not in names:
        names.append(val_list)
    return [n for n in names if all(dataset.has_mask(r) for r in dataset.subset(n))]


def evaluation_key(stages: dict[str, Any], config: EvaluateConfig, lists: Sequence[str]) -> str:
    """Hash of what the figures depend on."""
    done = [stages[n]["key"] for n in MEASURED if stages.get(n, {}).get("status") == "done"]
    return stage_key("evaluate", [as_dict(config), list(lists)], done)


def _cams(run: Run, dataset: Dataset, name: str, lists: Sequence[str], config: EvaluateConfig) -> dict[str, Any]:
    records, folder = _with_maps(run, dataset, name), run.path / "cams"
    source = config.threshold_from
    if source == "auto":
        source = "train" if name != "train" and "train" in lists else "label_free"
    threshold = choose(source, config.threshold, dataset, records, folder, without=run.left_out, progress=True)
    measured = evaluate_cams(dataset, records, folder, sweep_thresholds(threshold.value), progress=True)
    metrics = run.manifest["stages"]["cams"]["metrics"]
    scales = f", scales {_numbers(metrics['scales'])} and mirror" if metrics["scales"] else ""
    views = f"maps of true tags, protocol {metrics['protocol']}{scales}, no CRF"
    without = len(dataset.subset(name)) - len(records)
    line = _protocol(run, dataset, name, "cams", f"{views}, {threshold.detail}", without)
    return measured.report(threshold.value, _said(threshold.source, name), line)


def _with_maps(run: Run, dataset: Dataset, name: str) -> list[Record]:
    return [record for record in dataset.subset(name) if record.id not in run.left_out]


def _said(source: str, name: str) -> str:
    """A threshold chosen on the very list that is reported is an oracle, whatever the list is called."""
    return "oracle" if source == name else source


def _crf(run: Run) -> str:
    config = run.manifest["config"]["refine"]
    walk = {"affinity": "walk of AffinityNet, ", "irn": "walk of IRNet, "}.get(config["refine"], "")
    used = config["refine"] == "crf" or (walk and config["crf_after_walk"])
    return walk + _named_crf(config["crf"] if used else "none")


def _named_crf(preset: str) -> str:
    return "no CRF" if preset == "none" else f"dense CRF {preset}"


def _segmenter(run: Run, stage: str) -> str:
    config = run.manifest["config"]["segment"]
    labels = "pseudo masks" if stage == "segment" else "TRUE masks (upper bound)"
    mirror = " and mirror" if config["flip"] else ""
    views = f"scales {_numbers(config['scales'])}{mirror}, no tags, {_named_crf(config.get('crf', 'none'))}"
    return f"segmenter trained on {labels} of {run.manifest['train_list']}, {views}"


def _protocol(run: Run, dataset: Dataset, name: str, stage: str, text: str, left_out: int = 0) -> str:
    manifest = run.manifest
    some = f", {left_out} of them left out for want of maps" if left_out else ""
    return (
        f"{name} ({len(dataset.lists[name])} images{some}), {len(dataset.classes) + 1} classes with background; "
        f"{manifest['method']} on {manifest['backbone']}, trained on {manifest['train_list']} tags "
        f"({dataset.tags_from}), initial weights {initial_weights(manifest, stage)}, seed {manifest['seed']}; {text}"
    )


def _numbers(values: Sequence[float]) -> str:
    return "/".join(f"{v:g}" for v in values)
