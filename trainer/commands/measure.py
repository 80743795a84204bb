"""Commands about figures: eval, compare."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from trainer.commands.data import DataSettings, Json, LabelsFrom, LogOption, data_config
from trainer.errors import ConfigError, RunError
from trainer.outputs import check_file, check_folder
from trainer.progress import Log, say
from trainer.seed_folder import is_seed_folder

Convention = Annotated[
    str,
    typer.Option(
        help=(
            "Convention of the mean IoU: default, chainercv (irn), deeplab-pytorch (sc-cam, vwe),"
            " seam (cpn), voc-devkit."
        )
    ),
]
Pictures = Annotated[
    Path | None, typer.Option(help="Folder for contact sheets of the worst images.")
]

# Options of eval that suit a run; all others are about a folder.
RUN_OPTIONS = {"log", "path", "convention", "pictures", "json_"}


def evaluate(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_FOLDER",
            help="A run, a folder of fit --seeds, or any folder of masks or maps.",
        ),
    ],
    data: Annotated[
        Path | None, typer.Option(help="Data folder that a folder of masks or maps belongs to.")
    ] = None,
    list_: Annotated[
        str, typer.Option("--list", help="Image list with true masks, for a folder.")
    ] = "val",
    kind: Annotated[
        Literal["masks", "cams"] | None,
        typer.Option(help="Content of the folder. Default: by its files."),
    ] = None,
    labels: Annotated[
        Literal["ours", "data"],
        typer.Option(help="Numbers of the classes: 1 to K (ours), or as in the data set's masks."),
    ] = "ours",
    masks: Annotated[
        Literal["index", "colours", "binary"],
        typer.Option(
            help="Pixels of masks: class indices, colours of the VOC palette, or 0 and 255."
        ),
    ] = "index",
    threshold: Annotated[
        float | None, typer.Option(help="Background threshold of maps, fixed.")
    ] = None,
    threshold_from: Annotated[
        str | None,
        typer.Option(
            help="Origin of the threshold: label_free (default), oracle, or a list such as train."
        ),
    ] = None,
    threshold_cams: Annotated[
        Path | None, typer.Option(help="Maps of that list, if another folder holds them.")
    ] = None,
    bad: Annotated[
        Literal["stop", "skip"],
        typer.Option(help="Images without a usable file: stop, or skip them and say so."),
    ] = "stop",
    protocol: Annotated[
        str, typer.Option(help="Your words about how a folder was made, for its protocol.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figures, for wsss-trainer compare.")
    ] = None,
    stage: Annotated[
        Literal["cam", "refined", "segment"] | None,
        typer.Option(help="Stage of the figures in --out. Default: by kind."),
    ] = None,
    convention: Convention = "default",
    tolerance: Annotated[
        float,
        typer.Option(
            help=(
                "Tolerance of the boundary F-score of a folder: below 1 a fraction of the diagonal,"
                " else pixels."
            )
        ),
    ] = 0.0075,
    pictures: Pictures = None,
    labels_from: LabelsFrom = None,
    settings: DataSettings = None,
    json_: Json = False,
    log: LogOption = Log.text,
) -> None:
    """Print the mIoU and other figures of a run, or of any folder of masks or maps.

    Each figure has its protocol. A run is measured again where something changed. A folder of
    fit --seeds gives the mean over its seeds, its deviation, and an interval over images and
    seeds. Masks are
    <id>.png with class indices; maps are <id>.npz, or <id>.npy of PSA, SEAM, CPN, IRN, VWE and MVA.

    \b
    Examples:
      wsss-trainer eval runs/photos --json
      wsss-trainer eval runs/three   (of fit --seeds: mean, deviation, interval)
      wsss-trainer eval runs/photos --convention seam --pictures worst/
      wsss-trainer eval masks/ --data VOC2012/ --list val
      wsss-trainer eval maps/ --data VOC2012/ --threshold-from train --threshold-cams maps_train/
    """
    from trainer.budget.table import print_budget
    from trainer.evaluation.metrics import convention_name
    from trainer.report.facts import read_budget

    name, curve = convention_name(convention), {}
    if (path / "manifest.json").exists() or is_seed_folder(path):
        _refuse_folder_options(context, path)
        evaluation, curve = _run(path, name, pictures), read_budget(path)
    elif data is None:
        raise RunError(
            f"{path} is not a run",
            "a run, or a folder of masks or maps with the data set",
            f"wsss-trainer eval {path} --data DATA",
        )
    else:
        from trainer.evaluation.measure_folder import Folder

        folder = Folder(
            path,
            data,
            list_,
            kind,
            labels,
            masks,
            threshold,
            threshold_from,
            threshold_cams,
            bad,
            tolerance,
            protocol,
            stage,
            data_config(labels_from, settings),
        )
        evaluation = _folder(folder, name, out, pictures)
    show({**evaluation, **({"budget": curve} if curve and json_ else {})}, json_)
    if curve and not json_:
        print_budget(curve, path)


def _refuse_folder_options(context: typer.Context, run: Path) -> None:
    names = [p.name for p in context.command.params if p.name and p.name not in RUN_OPTIONS]
    extra = [
        name
        for name in names
        # Defaults of the other options do not count.
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    ]
    if extra:
        raise ConfigError(
            f"{run} is a run, which has its own data and settings",
            f"none of {_options(names)}",
            f"leave out {_options(extra)}",
        )


def _run(path: Path, convention: str, pictures: Path | None) -> dict[str, Any]:
    from trainer.evaluation.over_seeds import evaluation_of
    from trainer.run import Run

    if pictures:
        data = Run.existing(path).manifest.get("data", {})
        _check_pictures(pictures, [Path(data.get("path", ""))])
        from trainer.report.worst_pictures import write_worst_of_run

        _say(write_worst_of_run(path, evaluation_of(path), pictures))
    return evaluation_of(path, convention)


def _folder(
    folder: Any, convention: str, out: Path | None, pictures: Path | None
) -> dict[str, Any]:
    from trainer.errors import some
    from trainer.evaluation.figures import restated
    from trainer.evaluation.measure_folder import holds_figures, keep, measure_folder

    inputs = [path for path in (folder.path, folder.data, folder.threshold_cams) if path]
    if out:
        check_folder(out, holds_figures, inputs, "--out")
    if pictures:
        _check_pictures(pictures, inputs)
    figures = measure_folder(folder)
    for key, words in (
        ("left_out", "images left out"),
        ("extra", "files that belong to no image of the data set"),
    ):
        if figures.entry[key]:
            say(f"{len(figures.entry[key])} {words}: {some(figures.entry[key])}")
    if out:
        keep(figures, folder.list, out)
    if pictures:
        from trainer.report.worst_pictures import write_worst

        name, worst = f"{figures.stage}-{folder.list}", figures.entry["worst"]
        _say(write_worst(figures.dataset, worst, figures.masks, pictures, name))
    return {figures.stage: {folder.list: restated(figures.entry, figures.images, convention)}}


def _check_pictures(folder: Path, inputs: list[Path]) -> None:
    """Sheets may lie beside older sheets, or beside the figures of ``--out``."""
    from trainer.evaluation.measure_folder import holds_figures
    from trainer.report.worst_pictures import holds_sheets

    check_folder(
        folder, lambda there: holds_sheets(there) or holds_figures(there), inputs, "--pictures"
    )


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN RUN...", help="Runs, or folders of eval --out; the first is the baseline."
        ),
    ],
    page: Annotated[Path, typer.Option(help="HTML page with classes and pictures.")] = Path(
        "compare.html"
    ),
    convention: Convention = "default",
    samples: Annotated[int, typer.Option(min=100, help="Samples of the bootstrap.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    images: Annotated[
        int,
        typer.Option(min=0, help="Images with the largest changes to show, half of them gains."),
    ] = 8,
    json_: Json = False,
    log: LogOption = Log.text,
) -> None:
    """Tell whether one run is better than another: differences, intervals, cautions and a page.

    The intervals come from the paired bootstrap over images: both runs are measured on the same
    resampled lists of images. Folders of fit --seeds count as one side each, and their intervals
    are over seeds too.

    \b
    Examples:
      wsss-trainer compare runs/cam runs/seam --page cam-seam.html
      wsss-trainer compare runs/cam runs/seam kept/ --json
      wsss-trainer compare runs/cam-seeds runs/seam-seeds
    """
    from trainer.evaluation.compare import compare as compare_sides
    from trainer.evaluation.compare import open_sides
    from trainer.evaluation.figures_table import print_comparison
    from trainer.evaluation.metrics import convention_name
    from trainer.report.compare_page import write_page

    check_file(page, option="--page")
    sides = open_sides(runs)
    lines = compare_sides(sides, convention_name(convention), samples, seed, images)
    _say([write_page(sides, lines, page)])
    if not json_:
        print_comparison(lines)
        return
    paths = {side.name: str(side.path) for side in sides}
    rows = [
        {"stage": line.stage, "list": line.list, "runs": [match.report() for match in line.matches]}
        for line in lines
    ]
    print(json.dumps({"runs": paths, "lines": rows}, indent=1))


def show(evaluation: dict[str, dict[str, Any]], as_json: bool) -> None:
    """Print figures as a table, or as JSON."""
    from trainer.evaluation.figures_table import print_evaluation

    if as_json:
        print(json.dumps(evaluation, indent=1))
    else:
        print_evaluation(evaluation)


def _options(names: Sequence[str]) -> str:
    return ", ".join(
        "--set" if name == "settings" else f"--{name.strip('_').replace('_', '-')}"
        for name in names
    )


def _say(paths: list[Path]) -> None:
    for path in paths:
        say(str(path))
