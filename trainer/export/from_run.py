"""``wsss-trainer export``: the graphs of a run, compared with PyTorch on its images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

from trainer.config import replace
from trainer.data.dataset import Dataset
from trainer.data.formats.opening import reopen_data
from trainer.data.pixels import read_image
from trainer.errors import ConfigError, RunError, nearest
from trainer.evaluation.calibration import Reference, reference_of
from trainer.evaluation.measure import current_evaluation
from trainer.export.card import card_from_manifest
from trainer.export.publish import export_model, holds_model
from trainer.export.score_thresholds import (
    card_entry,
    classifier_thresholds,
    segmenter_thresholds,
)
from trainer.export.training_images import calibration_of
from trainer.maps.protocols import CamsConfig, protocol_of
from trainer.methods.registry import load_method
from trainer.nets.graphs import CamGraph, SegmenterGraph
from trainer.nets.pixel_graph import PixelGraph
from trainer.outputs import check_folder
from trainer.run import Run
from trainer.segmenters import prediction
from trainer.training.model_file import knobs_of

Kind = Literal["segmenter", "cam"]
KINDS = (*get_args(Kind), "all")
PRECISIONS = ("fp32", "fp16")
STAGES: dict[Kind, str] = {"segmenter": "segment", "cam": "classify"}


def export_run(
    run_dir: Path,
    name: str,
    repository: Path,
    kind: str = "all",
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    precision: str = "fp32",
    say: Callable[[str], None] = lambda text: None,
    verdict: bool = True,
    doubt: str = "auto",
) -> list[dict[str, Any]]:
    """Publish a run's segmenter as ``name``, and its CAM model as ``name-cam`` or, alone, ``name``.

    Args:
        run_dir, name, repository: the run, the model, and the folder of models.
        kind: ``segmenter``, ``cam``, or ``all`` that the run has.
        scales, flip: of the segmenter's graph. The CAM graph has its method's own protocol.
        precision: ``fp32``, or ``fp16`` for a second graph in float16, for TensorRT.
        say: receives a line before each model.
        verdict: choose a score threshold for each class, and keep classes under it out of masks.
        doubt: what the segmenter's doubt is calibrated on: ``auto``, the masks that trained it;
            ``off`` for a graph without doubt; or the name of a list with true masks.

    Returns:
        The ``ExportReport`` of each model in plain JSON values.

    Raises:
        ConfigError: an unknown kind or precision.
        RunError: the run has not finished the stage.
        DataError: ``doubt`` is no list with true masks.
        TargetError: the model's folder lies in the data, or holds something else.
        ExportError: the graph differs from PyTorch; that model is not published.
    """
    _check_choices(kind, precision)
    run = Run.existing(run_dir)
    names = _names(run, kind, name)
    dataset = reopen_data(run.manifest)
    _check_folders(repository, names.values(), dataset)
    reference = None
    if doubt != "off" and "segmenter" in names:
        reference = reference_of(run, dataset, None if doubt == "auto" else doubt)
    evaluation, images = current_evaluation(run_dir), _images(dataset, run)
    reports, half = [], precision == "fp16"
    for each, model in names.items():
        say(f"{model}: writing the {each}, then comparing it with PyTorch on {len(images)} images")
        graph = _segmenter(run, scales, flip) if each == "segmenter" else _cam(run)
        card = card_from_manifest(run.manifest, each, run.path.name, evaluation)
        if verdict:
            card["thresholds"] |= _decided(graph, run, dataset)
        if isinstance(graph, SegmenterGraph) and reference:
            card |= _with_doubt(graph, reference)
            say(f"{model}: {_limits(reference)}")
        if graph.side:
            card["input"]["side"] = max(graph.side, card["input"]["min_side"])
        report = export_model(graph, card, repository, model, images, half=half)
        reports.append({**asdict(report), "path": str(report.path)})
    return reports


def _check_choices(kind: str, precision: str) -> None:
    if kind not in KINDS:
        raise ConfigError(f"cannot export {kind!r}", nearest(kind, KINDS))
    if precision not in PRECISIONS:
        raise ConfigError(f"cannot export in {precision!r}", nearest(precision, PRECISIONS))


def _check_folders(repository: Path, names: Iterable[str], dataset: Dataset) -> None:
    # Before the figures and the graphs, which take minutes.
    for name in names:
        check_folder(repository / name, holds_model, dataset.places(), "the model folder")


def _names(run: Run, kind: str, name: str) -> dict[Kind, str]:
    """The names of the models to publish, by kind."""
    return {
        each: f"{name}-cam" if each == "cam" and kind == "all" else name
        for each in _kinds(run, kind)
    }


def _kinds(run: Run, kind: str) -> list[Kind]:
    stages = run.manifest["stages"]
    missing, kinds = [], list[Kind]()
    for each, stage in STAGES.items():
        if stages.get(stage, {}).get("status") == "done":
            kinds += [each] if kind in (each, "all") else []
        elif kind in (each, "all"):
            missing.append(stage)
    if not kinds:
        raise RunError(
            f"{run.path} has no finished stage {missing[-1]!r}",
            "a trained model",
            "wsss-trainer fit",
        )
    return kinds


def _expected(run: Run) -> dict[str, Any]:
    return {
        "method": run.manifest["method"],
        "backbone": run.manifest["backbone"],
        "classes": run.manifest["data"]["classes"],
    }


def _decided(graph: PixelGraph, run: Run, dataset: Dataset) -> dict[str, Any]:
    """The score thresholds of a graph for its card; a segmenter's graph leaves out classes under
    its own from now on.
    """
    if isinstance(graph, SegmenterGraph):
        thresholds = segmenter_thresholds(run, dataset, graph)
        graph.require_scores([threshold.value for threshold in thresholds])
    elif (chosen := classifier_thresholds(run, dataset)) is None:
        return {}
    else:
        thresholds = chosen
    return card_entry(thresholds, dataset.classes, run.manifest["train_list"])


def _with_doubt(graph: SegmenterGraph, reference: Reference) -> dict[str, Any]:
    """Let the graph give its doubt, and return what the card says of it."""
    calibration = calibration_of(graph, reference)
    # Masks of ignored pixels alone say nothing.
    if calibration is None:
        return {}
    graph.add_doubt(calibration.wrong.tolist())
    return {"doubt": calibration.card_entry()}


def _limits(reference: Reference) -> str:
    """What the doubt rests on, in words."""
    text = f"doubt is calibrated on {reference.source}"
    if not reference.is_pseudo:
        return text
    # The segmenter repeats errors that it learnt, and pseudo masks cannot show them.
    return f"{text}, so it orders images but is too low; --doubt LIST takes a list's true masks"


def _segmenter(run: Run, scales: Sequence[float], flip: bool) -> PixelGraph:
    segmenter, network, _ = prediction.load(run.path / "segment" / "model.pt", _expected(run))
    graph = segmenter.graph(network, scales, flip)
    graph.side = segmenter.config.side
    return graph


def _cam(run: Run) -> PixelGraph:
    method = load_method(run.path / "classify" / "model.pt", _expected(run))
    config = replace(CamsConfig(), knobs_of(run.manifest["config"]["cams"]), "cams")
    name, protocol = protocol_of(config, run.manifest["backbone"], run.manifest["method"])
    if protocol.views.filter != "bicubic":
        raise ConfigError(
            f"maps of protocol {name!r} cannot be exported",
            "a protocol that resizes by the bicubic filter, which the graph has: psa, irn, vwe or"
            " seam",
            "wsss-trainer fit ... --set cams.protocol=psa, or --kind segmenter",
        )
    graph = CamGraph(
        method,
        protocol.views.scales,
        mirror_max=protocol.mirror == "max_small",
        minmax=protocol.normalise == "minmax",
        min_cells=config.min_cells,
    )
    graph.side = config.side
    return graph


def _images(dataset: Dataset, run: Run) -> list[Any]:
    # Images of val, which no weights have seen, and few: each is one forward pass on a CPU.
    name = run.manifest["val_list"] or run.manifest["train_list"]
    return [read_image(record.image) for record in dataset.subset(name)[:4]]
