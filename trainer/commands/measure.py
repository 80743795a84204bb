"""Commands about figures: eval, compare."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from trainer.commands.data import DataSettings, Json, LabelsFrom, data_config
from trainer.errors import ConfigError, RunError
from trainer.outputs import check_file, check_folder

Convention = Annotated[
    str,
    typer.Option(
        help=(
            "How the mean IoU is taken: default, chainercv (irn), deeplab-pytorch (sc-cam, vwe),"
            " seam (cpn), voc-devkit."
        )
    ),
]
Pictures = Annotated[
    Path | None, typer.Option(help="Folder for contact sheets of the worst images.")
]


FOLDER_ONLY = (
    "data",
    "list_",
    "kind",
    "labels",
    "masks",
    "threshold",
    "threshold_from",
    "threshold_cams",
    "bad",
    "protocol",
    "out",
    "stage",
    "tolerance",
    "labels_from",
    "settings",
)
"""Options of ``eval`` that a run has no use for."""


def evaluate(
    context: typer.Context,
    path: Annotated[
        Path, typer.Argument(metavar="RUN_OR_FOLDER", help="A run, or any folder of masks or maps.")
    ],
    data: Annotated[
        Path | None, typer.Option(help="Data folder that a folder of masks or maps belongs to.")
    ] = None,
    list_: Annotated[
        str, typer.Option("--list", help="Image list with true masks, for a folder.")
    ] = "val",
    kind: Annotated[
        Literal["masks", "cams"] | None,
        typer.Option(help="What the folder holds. Default: by its files."),
    ] = None,
    labels: Annotated[
        Literal["ours", "data"],
        typer.Option(help="Classes are numbered 1 to K (ours), or as in the data set's masks."),
    ] = "ours",
    masks: Annotated[
        Literal["index", "colours", "binary"],
        typer.Option(
            help="Masks hold class indices, colours of the VOC palette, or 0 and 255 (one class)."
        ),
    ] = "index",
    threshold: Annotated[
        float | None, typer.Option(help="Background threshold of maps, fixed.")
    ] = None,
    threshold_from: Annotated[
        str | None,
        typer.Option(
            help="label_free, a list with masks such as train, or oracle. Default: label_free."
        ),
    ] = None,
    threshold_cams: Annotated[
        Path | None, typer.Option(help="Maps of that list, if they are in another folder.")
    ] = None,
    bad: Annotated[
        Literal["stop", "skip"],
        typer.Option(help="Images without a usable file: stop, or skip them and say so."),
    ] = "stop",
    protocol: Annotated[
        str, typer.Option(help="How a folder was made, for the protocol line.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="Keep a folder's figures here, for wsss-trainer compare.")
    ] = None,
    stage: Annotated[
        Literal["cam", "refined", "segment"] | None,
        typer.Option(help="Stage to keep them as. Default: by kind."),
    ] = None,
    convention: Convention = "default",
    tolerance: Annotated[
        float,
        typer.Option(
            help=(
                "Of the boundary F-score of a folder: below 1 a fraction of the diagonal, else"
                " pixels."
            )
        ),
    ] = 0.0075,
    pictures: Pictures = None,
    labels_from: LabelsFrom = None,
    settings: DataSettings = None,
    json_: Json = False,
) -> None:
    """Print the figures of a run, or of any folder of masks or maps, each with its protocol.

    A run is measured again where something changed. Masks are <id>.png with class indices; maps
    <id>.npz, or <id>.npy of PSA, SEAM, CPN, IRN, VWE and MVA.

    \b
    Examples:
      wsss-trainer eval runs/photos --json
      wsss-trainer eval runs/photos --convention seam --pictures worst/
      wsss-trainer eval masks/ --data VOC2012/ --list val
      wsss-trainer eval maps/ --data VOC2012/ --threshold-from train --threshold-cams maps_train/
    """
    from trainer.evaluation.metrics import convention_name

    name = convention_name(convention)
    if (path / "manifest.json").exists():
        sources = {option: context.get_parameter_source(option) for option in FOLDER_ONLY}
        given = [
            option
            for option, source in sources.items()
            if source is not None and source.name == "COMMANDLINE"
        ]
        if given:
            raise ConfigError(
                f"{path} is a run, which has its own data and settings",
                f"none of {_options(FOLDER_ONLY)}",
                f"leave out {_options(given)}",
            )
        evaluation = _run(path, name, pictures)
    elif data is None:
        raise RunError(
            f"{path} is not a run",
            "a run, or a folder of masks or maps and its data",
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
    show(evaluation, json_)


def _run(path: Path, convention: str, pictures: Path | None) -> dict[str, Any]:
    from trainer.evaluation.measure import current_evaluation, in_convention
    from trainer.run import Run

    if pictures:
        _check_pictures(
            pictures, [Path(Run.existing(path).manifest.get("data", {}).get("path", ""))]
        )
    evaluation = current_evaluation(path)
    if pictures:
        from trainer.report.worst_pictures import write_worst_of_run

        _say(write_worst_of_run(path, evaluation, pictures, progress=True))
    return evaluation if convention == "default" else in_convention(path, evaluation, convention)


def _folder(
    folder: Any, convention: str, out: Path | None, pictures: Path | None
) -> dict[str, Any]:
    from trainer.errors import some
    from trainer.evaluation.figures import restated
    from trainer.evaluation.measure_folder import holds_figures, keep, measure_folder

    read = [path for path in (folder.path, folder.data, folder.threshold_cams) if path]
    if out:
        check_folder(out, holds_figures, read, "--out")
    if pictures:
        _check_pictures(pictures, read)
    figures = measure_folder(folder)
    for key, words in (
        ("left_out", "images left out"),
        ("extra", "files that belong to no image of the data set"),
    ):
        if figures.entry[key]:
            typer.echo(f"{len(figures.entry[key])} {words}: {some(figures.entry[key])}", err=True)
    if out:
        keep(figures, folder.list, out)
    if pictures:
        from trainer.report.worst_pictures import write_worst

        name = f"{figures.stage}-{folder.list}"
        _say(
            write_worst(
                figures.dataset,
                figures.entry["worst"],
                figures.masks,
                pictures,
                name,
                progress=True,
            )
        )
    return {figures.stage: {folder.list: restated(figures.entry, figures.images, convention)}}


def _check_pictures(folder: Path, read: list[Path]) -> None:
    """Sheets go beside sheets, or beside figures that ``--out`` keeps."""
    from trainer.evaluation.measure_folder import holds_figures
    from trainer.report.worst_pictures import holds_sheets

    check_folder(
        folder, lambda there: holds_sheets(there) or holds_figures(there), read, "--pictures"
    )


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN RUN...", help="Runs, or folders of eval --out. The first is the measure."
        ),
    ],
    page: Annotated[Path, typer.Option(help="The page with classes and pictures.")] = Path(
        "compare.html"
    ),
    convention: Convention = "default",
    samples: Annotated[int, typer.Option(min=100, help="Lists that the bootstrap draws.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    images: Annotated[
        int,
        typer.Option(min=0, help="Most changed images of a stage and list, half of them gains."),
    ] = 8,
    json_: Json = False,
) -> None:
    """Is one run better than another? Differences with intervals, what was not the same, and a
    page.

    The interval is the paired bootstrap's over images: both runs on the same drawn lists, the mean
    IoU of each list anew.

    \b
    Examples:
      wsss-trainer compare runs/cam runs/seam --page cam-seam.html
      wsss-trainer compare runs/cam runs/seam kept/ --json
    """
    from trainer.evaluation.compare import compare as compare_sides
    from trainer.evaluation.compare import open_sides
    from trainer.evaluation.figures_table import print_comparison
    from trainer.evaluation.metrics import convention_name
    from trainer.report.compare_page import write_page

    check_file(page, option="--page")
    sides = open_sides(runs)
    lines = compare_sides(sides, convention_name(convention), samples, seed, images)
    _say([write_page(sides, lines, page, progress=True)])
    if json_:
        found = [
            {"stage": x.stage, "list": x.list, "runs": [match.report() for match in x.matches]}
            for x in lines
        ]
        print(
            json.dumps(
                {"runs": {side.name: str(side.path) for side in sides}, "lines": found}, indent=1
            )
        )
    else:
        print_comparison(lines)


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
        typer.echo(path, err=True)
