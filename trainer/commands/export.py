"""The command that exports: ``wsss-trainer export``."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from trainer.commands.data import Json, LogOption, RunArgument
from trainer.errors import ConfigError
from trainer.progress import Log, say


def export(
    run: RunArgument,
    name: Annotated[str, typer.Option(help="Model name in the repository.")],
    repository: Annotated[Path, typer.Option(help="Model repository.")] = Path("exported"),
    kind: Annotated[
        str, typer.Option(help="segmenter, cam, or all (the CAM model's name is NAME-cam).")
    ] = "all",
    scales: Annotated[
        str, typer.Option(help="Scales of the segmenter: more are slower and more accurate.")
    ] = "1",
    flip: Annotated[bool, typer.Option(help="The segmenter also sees the mirror image.")] = False,
    precision: Annotated[
        str, typer.Option(help="fp32, or fp16 for a second graph in half precision, for TensorRT.")
    ] = "fp32",
    verdict: Annotated[
        bool,
        typer.Option(
            help=(
                "Choose a score threshold for each class on the training tags, and leave classes"
                " under it out of masks."
            )
        ),
    ] = True,
    doubt: Annotated[
        str,
        typer.Option(
            help=(
                "What the segmenter's doubt is calibrated on: auto (the masks that trained it), a"
                " list with true masks, or off."
            )
        ),
    ] = "auto",
    json_: Json = False,
    log: LogOption = Log.text,
) -> None:
    """Write the models of RUN as ONNX graphs: uint8 pixels in, masks or maps out.

    A graph contains all pre- and post-processing. It is compared with PyTorch on images of the data
    set, and published only where both agree.

    Example: wsss-trainer export runs/photos --name photos --repository exported/
    """
    from trainer.export.from_run import export_run

    try:
        factors = [float(scale) for scale in scales.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--scales {scales}", "numbers separated by commas, for example 0.75,1,1.25"
        ) from error
    reports = export_run(run, name, repository, kind, factors, flip, precision, say, verdict, doubt)
    if json_:
        print(json.dumps(reports, indent=1))
        return
    for entry in reports:
        figures = {k: v for k, v in entry["parity"].items() if v is not None}
        parity = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
        what = f"{entry['kind']}, version {entry['version']}"
        print(f"{entry['path']}: {what}, agrees with PyTorch: {parity}")
    serve = ["wsss-serving", "serve", "--repository", str(repository), "--port", "8500"]
    print(f"next: {shlex.join(serve)}")
