"""Figures of a run, each with its protocol: the classifier's scores on every reported list, and
every measured stage on the lists with true masks.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.config import as_dict, replace
from trainer.data.dataset import Dataset, Record, group_count
from trainer.data.formats.opening import reopen_data
from trainer.evaluation.bootstrap import compare_paired, miou_interval
from trainer.evaluation.figures import Conditions, restated
from trainer.evaluation.image_counts import ImageCounts, counts_path
from trainer.evaluation.knobs import EvaluateConfig
from trainer.evaluation.measure_classifier import CLASSIFIER, classifier_figures
from trainer.evaluation.objects import hit_intervals
from trainer.evaluation.over_lists import evaluate_cams, evaluate_folder, rank_pixels
from trainer.evaluation.sweep import sweep_thresholds
from trainer.evaluation.threshold import choose
from trainer.refine.vote import origins
from trainer.run import Output, Run, stage_key, write_json
from trainer.weights.supervision import initial_weights

MEASURED = ("scores", "cams", "refine", "segment", "segment_full")
"""Stages that have figures, in the order of the path."""
MASKED = ("refine", "segment")
"""Stages whose figures depend on how pseudo masks are made."""
FOLDER = "evaluation"
"""Where the counts of single images lie below the run."""
MAPS = "maps"
"""Where the probabilities of a segmenter lie below its predictions, list by list."""
FORMAT = 5
"""Of ``evaluation.json`` and the counts beside it: figures of another format are measured again."""
Figures = tuple[ImageCounts, dict[str, Any]]
"""Counts of single images, and the entry of ``evaluation.json``."""
Entries = dict[str, dict[str, Any]]
"""``evaluation.json``: stage -> list -> figures."""


def measured_stages(names: Collection[str]) -> tuple[str, ...]:
    """Those of the stages ``names`` that have figures, in the order of the path."""
    return tuple(name for name in MEASURED if name in names)


def evaluation_facts(dataset: Dataset, lists: Sequence[str], config: EvaluateConfig) -> list[Any]:
    """What the figures depend on besides the stages that are measured: settings and true masks.

    Tags and lists are in the keys of all stages.
    """
    truth = {name: dataset.mask_fingerprint(dataset.masked(name)) for name in lists}
    return [FORMAT, as_dict(config), truth]


def measure(
    run: Run, dataset: Dataset, lists: Sequence[str], config: EvaluateConfig, output: Output
) -> None:
    """Write ``evaluation.json``, and the counts of single images beside it.

    Args:
        run: with the stages to measure.
        dataset: of the run.
        lists: those with true masks.
        config: of the figures.
        output: of the stage.
    """
    result: Entries = {}
    if "scores" in run.complete:
        result[CLASSIFIER] = classifier_figures(run, dataset)
    for name in lists:
        figures = _figures(run, dataset, name, lists, config)
        for stage, (images, entry) in figures.items():
            images.write(counts_path(run.path, stage, name))
            entry["miou_interval"] = miou_interval(images).report()
            entry |= hit_intervals(images.objects, images.class_names, images.groups.tolist())
            result.setdefault(stage, {})[name] = entry
        if "segment" in figures and "segment_full" in figures:
            # The full segmenter comes first, so that the ratio is weak / full.
            comparison = compare_paired(figures["segment_full"][0], figures["segment"][0])
            result["segment"][name]["weak_full"] = comparison.report()
    path = run.path / "evaluation.json"
    write_json(path, result)
    output.places.append(path)
    output.metrics.update(
        {f"{stage} {name}": entry["miou"] for stage, name, entry in pixel_figures(result)}
    )


def pixel_figures(evaluation: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, Any]]:
    """``(stage, list, entry)`` of all figures of masks and maps, in the order of the path."""
    return [
        (stage, name, entry)
        for stage, lines in evaluation.items()
        if stage != CLASSIFIER
        for name, entry in lines.items()
    ]


def _figures(
    run: Run, dataset: Dataset, name: str, lists: Sequence[str], config: EvaluateConfig
) -> dict[str, Figures]:
    """Of every measured stage on list ``name``, by the names of ``evaluation.json``."""
    stages = measured_stages(run.complete)
    figures: dict[str, Figures] = {}
    if "cams" in stages:
        figures["cam"] = _cams(run, dataset, name, lists, config)
    if "refine" in stages:
        figures["refined"] = _refined(run, dataset, name, config)
    for segmenter in ("segment", "segment_full"):
        if segmenter in stages:
            figures[segmenter] = _segmented(run, dataset, name, segmenter, config)
    return figures


def current_evaluation(run_dir: Path) -> Entries:
    """``evaluation.json`` of a run, measured now where it is missing or older than a stage.

    Raises:
        RunError: the folder is no run.
        DataError: the data set has gone or changed.
    """
    run = Run.existing(run_dir)
    dataset = reopen_data(run.manifest)
    lists = dataset.measured_lists(run.manifest["train_list"], run.manifest["val_list"])
    config = replace(EvaluateConfig(), run.manifest["config"]["evaluate"], "evaluate")
    inputs = [run.complete[name] for name in measured_stages(run.complete)]
    key = stage_key("evaluate", evaluation_facts(dataset, lists, config), inputs)
    path = run_dir / "evaluation.json"
    measurable = lists or "scores" in run.complete
    # Runs of earlier versions do not count these files among those of the stage.
    if measurable and not (run.done("evaluate", key) and _is_whole(path)):
        with run.lock(), run.stage("evaluate", key, FOLDER) as output:
            measure(run, dataset, lists, config, output)
    result: Entries = json.loads(path.read_text()) if path.exists() else {}
    return result


def _is_whole(path: Path) -> bool:
    """Whether ``evaluation.json`` can be read and the counts beside it are there."""
    try:
        evaluation = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return all(
        counts_path(path.parent, stage, name).exists()
        for stage, name, _ in pixel_figures(evaluation)
    )


def in_convention(run_dir: Path, evaluation: Entries, convention: str) -> Entries:
    """The figures of a run in another convention than the default, from the counts that are kept
    beside them. Those of image scores have no convention.

    Raises:
        DataError: counts are missing; or see ``metrics.margins``.
    """
    result = {stage: dict(lines) for stage, lines in evaluation.items()}
    counts = {}
    for stage, name, entry in pixel_figures(evaluation):
        counts[stage, name] = ImageCounts.read(counts_path(run_dir, stage, name))
        result[stage][name] = restated(entry, counts[stage, name], convention)
    for name, entry in result.get("segment", {}).items():
        if "weak_full" in entry:
            full, weak = counts["segment_full", name], counts["segment", name]
            entry["weak_full"] = compare_paired(full, weak, convention).report()
    return result


def _cams(
    run: Run, dataset: Dataset, name: str, lists: Sequence[str], config: EvaluateConfig
) -> Figures:
    records, folder = _with_maps(run, dataset, name), run.path / "cams"
    source = config.threshold_from
    if source == "auto":
        # A list never chooses a threshold for itself without being called an oracle.
        source = "train" if name != "train" and "train" in lists else "label_free"
    threshold = choose(source, config.threshold, dataset, records, folder, without=run.left_out)
    figures = evaluate_cams(
        dataset,
        records,
        folder,
        sweep_thresholds(threshold.value),
        at=threshold.value,
        tolerance=config.boundary_tolerance,
    )
    assert figures.chosen is not None
    metrics = run.manifest["stages"]["cams"]["metrics"]
    source, views = _source(threshold.source, name), _map_views(metrics)
    conditions = Conditions(
        **_common(run, dataset, name, "cams", records),
        tags=_tags(records),
        crf="no CRF",
        threshold_from=source,
        views=views if metrics["scales"] else None,
    )
    line = f"{conditions.line()}; maps of {conditions.tags}, {views}, no CRF, {threshold.detail}"
    entry = figures.report(threshold.value, source, line)
    return figures.chosen.images, entry | {"conditions": conditions.report()}


def _tags(records: Sequence[Record]) -> str:
    """What says which classes an image has maps of."""
    open_images = sum(bool(record.unknown) for record in records)
    some = f" ({open_images} of {len(records)} images have unknown ones)" if open_images else ""
    return f"true tags{some}"


def _map_views(metrics: Mapping[str, Any]) -> str:
    """How the maps were made, from what the stage ``cams`` noted; imported maps have no scales."""
    protocol = f"protocol {metrics['protocol']}"
    if not metrics["scales"]:
        return protocol
    cells = metrics.get("min_cells", 0)
    fewer = f", views of {cells} cells or more" if cells > 1 else ""
    return f"{protocol}, scales {_numbers(metrics['scales'])} and mirror{fewer}"


def _refined(run: Run, dataset: Dataset, name: str, config: EvaluateConfig) -> Figures:
    metrics, records = run.manifest["stages"]["refine"]["metrics"], _with_maps(run, dataset, name)
    figures = evaluate_folder(
        dataset, records, run.path / "masks", tolerance=config.boundary_tolerance
    )
    source = _source(metrics["threshold_from"], name)
    common = _common(run, dataset, name, "refine", records)
    conditions = Conditions(
        **common, tags=_tags(records), views="", crf=_crf(run), threshold_from=source
    )
    line = (
        f"{conditions.line()}; pseudo masks from {conditions.tags}, {conditions.crf},"
        f" {metrics['threshold_detail']}"
    )
    entry = figures.report(line, metrics["threshold"], source)
    return figures.images, entry | {"conditions": conditions.report()}


def _segmented(
    run: Run, dataset: Dataset, name: str, stage: str, config: EvaluateConfig
) -> Figures:
    settings, folder = run.manifest["config"]["segment"], run.path / stage / "predictions" / name
    # A segmenter needs no maps: images without them are measured too.
    records = dataset.masked(name)
    figures = evaluate_folder(dataset, records, folder, tolerance=config.boundary_tolerance)
    if stage == "segment_full" and _masks(run) and settings.get("teacher") == "fill":
        # That teacher is one of the few masks, which the upper bound trains without.
        settings = {**settings, "teacher": "none"}
    rounds = settings.get("rounds", 1) if stage == "segment" else 1
    times = f" in {rounds} rounds" if rounds > 1 else ""
    labels = "pseudo masks" if stage == "segment" else "TRUE masks (upper bound)"
    if stage == "segment" and (count := len(_masks(run))):
        labels = f"{count} true masks and on pseudo masks"
    views = f"scales {_numbers(settings['scales'])}{' and mirror' if settings['flip'] else ''}"
    crf = _named_crf(settings.get("crf", "none"))
    conditions = Conditions(
        **_common(run, dataset, name, stage, records),
        tags="no tags",
        views=views,
        crf=crf,
        threshold_from=None,
        segmenter=segmenter_name(settings) + times,
    )
    training = (
        f"segmenter {segmenter_name(settings)} trained on {labels} of {run.manifest['train_list']}"
        f"{times}"
    )
    entry = figures.report(f"{conditions.line()}; {training}, {views}, {conditions.tags}, {crf}")
    maps = folder.parent / MAPS / name
    # Predictions of earlier versions have no maps.
    if maps.is_dir():
        entry |= rank_pixels(dataset, records, maps).report(dataset.classes)
    return figures.images, entry | {"conditions": conditions.report()}


def segmenter_name(settings: Mapping[str, Any]) -> str:
    """Which segmenter, and what its training did about wrong labels."""
    teacher = settings.get("teacher", "none")
    return " ".join(
        [
            str(settings.get("network", "aspp")),
            *(["with balanced classes"] if settings.get("balanced") else []),
            *([f"with a teacher that {teacher}s"] if teacher != "none" else []),
        ]
    )


def _with_maps(run: Run, dataset: Dataset, name: str) -> list[Record]:
    return [record for record in dataset.masked(name) if record.id not in run.left_out]


def _source(source: str, name: str) -> str:
    """A threshold chosen on the very list that is reported is an oracle, whatever the list is
    called.
    """
    return "oracle" if source == name else source


def _crf(run: Run) -> str:
    config = run.manifest["config"]["refine"]
    metrics = run.manifest["stages"]["refine"]["metrics"]
    way, walk = config["refine"], ""
    if way in ("affinity", "irn"):
        checkpoint = run.manifest["config"][way].get("checkpoint", "none")
        source = "" if checkpoint == "none" else f" from {Path(checkpoint).name}"
        walk = f"walk of {'AffinityNet' if way == 'affinity' else 'IRNet'}{source}, "
    sharpens = way == "crf" or (walk and config["crf_after_walk"])
    # True masks may have chosen another one than the knob says.
    return walk + _named_crf(metrics.get("crf") or (config["crf"] if sharpens else "none"))


def _named_crf(preset: str) -> str:
    return "no CRF" if preset == "none" else f"dense CRF {preset}"


def _common(
    run: Run, dataset: Dataset, name: str, stage: str, records: Sequence[Record]
) -> dict[str, Any]:
    manifest, size = run.manifest, len(dataset.lists[name])
    masks = _masks(run) if stage in MASKED else []
    return {
        "masks": len(masks),
        "tagged": manifest["data"]["used"]["trained"]["images"] if masks else 0,
        "segments": origins(manifest["config"], stage in MASKED),
        "list": name,
        "listed": size,
        "unmasked": size - len(dataset.masked(name)),
        "blank": sum(map(dataset.is_blank, records)),
        "measured": len(records),
        "groups": group_count(dataset.masked(name)),
        "labels": len(dataset.classes) + 1,
        "truth": dataset.masks_from,
        "method": manifest["method"],
        "backbone": manifest["backbone"],
        "train_list": manifest["train_list"],
        "tags_from": dataset.tags_from,
        "initial_weights": initial_weights(manifest, stage),
        "seed": manifest["seed"],
    }


def _masks(run: Run) -> list[str]:
    """Ids of the images whose true masks train beside pseudo masks."""
    return list((run.manifest.get("masks") or {}).get("ids", ()))


def _numbers(values: Sequence[float]) -> str:
    return "/".join(f"{v:g}" for v in values)
