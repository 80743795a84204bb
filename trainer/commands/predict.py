"""The command that predicts a list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from trainer.commands.data import Json, LogOption, RunArgument
from trainer.progress import Log


def predict(
    run: RunArgument,
    list_: Annotated[
        str, typer.Option("--list", help="Image list of the run's data; without masks too.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    stage: Annotated[
        Literal["segment", "segment_full"],
        typer.Option(help="The segmenter trained on pseudo masks, or on true masks."),
    ] = "segment",
    layout: Annotated[
        Literal["ids", "voc-server"],
        typer.Option(
            help="ids: OUT/ID.png, classes 1 to K; voc-server: files and values of VOC's server."
        ),
    ] = "ids",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="segment.KEY=VALUE",
            help="Knobs of the prediction: segment.crf, segment.scales, segment.flip, ...",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    json_: Json = False,
    log: LogOption = Log.text,
) -> None:
    """Write the masks of any image list of a run's data, such as VOC's test list.

    The segmenter, its scales and its CRF are those of the run, unless --set changes them. The same
    command continues an interrupted prediction.

    Example: wsss-trainer predict runs/voc --list test --out test/ --layout voc-server --set
    segment.crf=P7
    """
    from trainer.predict import predict_list

    summary = predict_list(run, list_, out, stage, layout, settings or (), device)
    print(
        json.dumps(summary, indent=1)
        if json_
        else f"{summary['path']}: {summary['images']} masks of list {list_!r}"
    )
