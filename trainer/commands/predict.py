"""The command that predicts a list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from trainer.commands.data import Json, RunArgument


def predict(
    run: RunArgument,
    list_: Annotated[
        str, typer.Option("--list", help="Image list of the run's data; it needs no masks.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    stage: Annotated[
        Literal["segment", "segment_full"],
        typer.Option(help="Which segmenter: of pseudo masks, or of true masks."),
    ] = "segment",
    layout: Annotated[
        Literal["ids", "voc-server"],
        typer.Option(
            help="ids: OUT/ID.png, classes 1 to K; voc-server: as VOC's server wants it, VOC's"
            " values."
        ),
    ] = "ids",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="segment.KEY=VALUE",
            help="Knobs of the test: segment.crf, segment.scales, segment.flip, ...",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto or cpu.")] = "auto",
    json_: Json = False,
) -> None:
    """Predict any list of a run's data, such as VOC's test, whose masks nobody has.

    The segmenter, its scales and its CRF are the run's, unless --set says otherwise. Run again, an
    interrupted prediction goes on.

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
