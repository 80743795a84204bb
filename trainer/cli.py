"""``wsss-trainer``: parse, call one function, print. Nothing heavy is imported before a command
runs.
"""

from __future__ import annotations

import errno
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from trainer.commands import data as data_commands
from trainer.commands import measure as measure_commands
from trainer.commands import predict as predict_command
from trainer.commands import weights as weights_commands
from trainer.commands.data import Json, LabelsFrom, RunArgument
from trainer.errors import ConfigError, UserError, explained

app = typer.Typer(
    help="From image-level tags to pixel masks: train, refine, segment, evaluate, export.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(weights_commands.app, name="weights")


class Supervision(StrEnum):
    """Which masks train the segmenter."""

    weak = "weak"
    full = "full"
    both = "both"


def main() -> None:
    """Entry point: user errors become a few clear lines and exit code 2."""
    from trainer.interrupt import Interrupted

    try:
        app()
    except UserError as error:
        fail(str(error), error.exit_code)
    except Interrupted as stop:
        fail(str(stop), stop.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("trainer", "serving"):
            raise
        fail(
            f"{error.name} is not installed\nexpected: the training half\ntry: pip install -e"
            " '.[train]'",
            2,
        )
    except (RuntimeError, MemoryError) as error:
        known = explained(error)
        if known is None:
            raise
        fail(str(known), known.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        fail(
            f"{error.strerror}: {error.filename}\ntry: free some space, then run the same command"
            " again: it goes on",
            2,
        )


def fail(text: str, code: int) -> None:
    """Print to stderr and leave."""
    print(f"error: {text}", file=sys.stderr)
    raise SystemExit(code)


def say(text: str) -> None:
    """A line for the person at the terminal; stdout is left to results."""
    print(text, file=sys.stderr, flush=True)


@app.command()
def fit(
    data: Annotated[
        Path, typer.Argument(help="Data folder: VOC, COCO, images with labels.csv, or synth's.")
    ],
    run: Annotated[
        Path, typer.Option(help="Run folder; the same command goes on where it stopped.")
    ] = Path("runs/default"),
    method: Annotated[str, typer.Option(help="See: wsss-trainer methods")] = "cam",
    backbone: Annotated[
        str, typer.Option(help="mobilenet_v2, resnet18/34/50/101, resnet38 or timm/NAME.")
    ] = "mobilenet_v2",
    weights: Annotated[
        str | None,
        typer.Option(
            help="Weight file; 'none' trains from scratch. Default: the cache, or a download."
        ),
    ] = None,
    classifier: Annotated[
        Path | None,
        typer.Option(
            help=(
                "A trained classifier to use as it is: model.pt of a run, or a released checkpoint"
                " of the method."
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
                "code, paper or mva: the method as released, as printed, or as the code of the MVA"
                " study trains it and makes its maps; its rates are for ResNet-38."
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
                "none, crf, affinity, irn, or a published preset: psa, psa-crf, seam, irn-coco."
                " Default: crf."
            )
        ),
    ] = None,
    segmenter: Annotated[
        str,
        typer.Option(
            help="aspp (on --backbone), deeplab-v2-r101 or largefov-r38, each as published."
        ),
    ] = "aspp",
    segmenter_weights: Annotated[
        str | None,
        typer.Option(
            help=(
                "What the segmenter starts from: a file, a name in the cache, or none. Default:"
                " --weights."
            )
        ),
    ] = None,
    train_list: Annotated[
        str | None,
        typer.Option(help="Image list to train on. Default: train_aug, else train, else all."),
    ] = None,
    val_list: Annotated[
        str | None, typer.Option(help="List to measure on; never trained on. Default: val.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of classifier and segmenter.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the training crops.")] = None,
    until: Annotated[
        str, typer.Option(help="Last stage: classify, cams, refine, segment, evaluate or report.")
    ] = "report",
    labels_from: LabelsFrom = None,
    supervision: Annotated[
        Supervision,
        typer.Option(help="weak: pseudo masks; full: true masks, the upper bound; both."),
    ] = Supervision.weak,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
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
) -> None:
    """Train from tags, make maps, refine them to masks, train a segmenter, measure, report.

    \b
    Examples:
      wsss-trainer fit photos/ --run runs/photos
      wsss-trainer fit VOC2012/ --backbone resnet50 --until cams --set cams.protocol=irn
      wsss-trainer fit VOC2012/ --supervision both --set refine.threshold_from=label_free
      wsss-trainer fit VOC2012/ --method seam --backbone resnet38 --classifier resnet38_SEAM.pth
      wsss-trainer fit VOC2012/ --cams maps/ --refine irn --until refine --run runs/refined
      wsss-trainer fit VOC2012/ --segmenter deeplab-v2-r101 --segmenter-weights resnet101.pth
    """
    from trainer.fit import fit as run_plan
    from trainer.options import Options
    from trainer.plan import make_plan

    options = Options(
        data=data,
        run=run,
        method=method,
        backbone=backbone,
        weights=weights,
        classifier=classifier,
        recipe=recipe,
        preset=preset,
        cams=cams,
        refine=refine,
        segmenter=segmenter,
        segmenter_weights=segmenter_weights,
        train_list=train_list,
        val_list=val_list,
        epochs=epochs,
        size=size,
        until=until,
        labels_from=labels_from,
        supervision=supervision.value,
        seed=seed,
        device=device,
        settings=tuple(settings or ()),
    )
    plan = make_plan(options)
    context = plan.context
    for loaded in dict.fromkeys((context.classifier, context.initial, context.start.report)):
        if loaded:
            say(str(loaded))
    for line in plan.preflight.lines():
        say(line)
    run_plan(plan, say)
    from trainer.evaluation.measure import current_evaluation

    evaluation = current_evaluation(run) if until in ("evaluate", "report") else {}
    if json_:
        print(json.dumps({"data": plan.preflight.report(), **evaluation}, indent=1))
    elif evaluation:
        measure_commands.show(evaluation, False)


app.command("eval")(measure_commands.evaluate)
app.command()(measure_commands.compare)
app.command()(predict_command.predict)


@app.command()
def report(
    run: RunArgument,
    images: Annotated[int, typer.Option(min=0, help="Rows of pictures; 0 for none.")] = 24,
) -> None:
    """Write RUN/report.html: one file with pictures, curves, tables and protocol.

    Example: wsss-trainer report runs/photos --images 200
    """
    from trainer.report.run_page import write_report

    print(write_report(run, images, progress=True))


@app.command()
def export(
    run: RunArgument,
    name: Annotated[str, typer.Option(help="Model name in the repository.")],
    repository: Annotated[Path, typer.Option(help="Model repository.")] = Path("exported"),
    kind: Annotated[
        str, typer.Option(help="segmenter, cam, or all (cam becomes NAME-cam).")
    ] = "all",
    scales: Annotated[
        str, typer.Option(help="Of the segmenter: more are slower and better.")
    ] = "1",
    flip: Annotated[bool, typer.Option(help="Segmenter also looks at the mirror image.")] = False,
    precision: Annotated[
        str, typer.Option(help="fp16 writes a half-precision graph beside the other, for TensorRT.")
    ] = "fp32",
    json_: Json = False,
) -> None:
    """Export RUN as ONNX graphs: uint8 pixels in, masks or maps out, everything inside.

    The graph is compared with PyTorch on real images; nothing is published where they differ.

    Example: wsss-trainer export runs/photos --name photos --repository exported/
    """
    from trainer.export.from_run import export_run

    try:
        factors = [float(scale) for scale in scales.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--scales {scales}", "numbers separated by commas, for example 0.75,1,1.25"
        ) from error
    reports = export_run(run, name, repository, kind, factors, flip, precision)
    if json_:
        print(json.dumps(reports, indent=1))
    else:
        for entry in reports:
            parity = ", ".join(
                f"{name} {value:.3g}"
                for name, value in entry["parity"].items()
                if value is not None
            )
            print(
                f"{entry['path']}: {entry['kind']}, version {entry['version']}, against PyTorch:"
                f" {parity}"
            )


app.command()(data_commands.check)
app.command()(data_commands.convert)
app.command()(data_commands.synth)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where everything is written.")] = Path("demo"),
    json_: Json = False,
) -> None:
    """The whole path on synthetic scenes: synth, fit, export, serve, segment, label, report. About
    five minutes on two cores.

    Example: wsss-trainer demo demo/
    """
    from trainer.commands.demo import run_demo

    result = run_demo(folder, say)
    if json_:
        print(json.dumps(result, indent=1))


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Show the knobs of one method.")] = None,
    json_: Json = False,
) -> None:
    """List the methods, or the knobs of one.

    Example: wsss-trainer methods cam
    """
    from trainer.commands.catalogue import describe_method, list_methods, print_catalogue

    value: Any = list_methods() if name is None else describe_method(name)
    if json_:
        print(json.dumps(value, indent=1))
    else:
        print_catalogue(value)


if __name__ == "__main__":
    main()
