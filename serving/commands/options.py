"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serving.config import ServerConfig

DEFAULT = ServerConfig()

Repository = Annotated[
    Path, typer.Option(help="Folder of models: NAME/VERSION/model.json and its graph.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object or array instead of text.")
]
MaxPixels = Annotated[
    int, typer.Option(min=1, help="Images with more pixels are refused before they are decoded.")
]
MaxBytes = Annotated[int, typer.Option(min=1, help="Image files with more bytes are refused.")]
Oversize = Annotated[
    str,
    typer.Option(
        help="Of images above the model's size: scale them, tile them, or auto: tile the largest."
    ),
]
Tile = Annotated[
    bool,
    typer.Option("--tile", help="The same as --oversize tile: full resolution, without seams."),
]
Overlap = Annotated[
    float | None,
    typer.Option(
        min=0, max=0.5, help="Share of a tile that overlaps the next one; a quarter without."
    ),
]
ScoreThreshold = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="Score from which a class counts as present; the model's without."
    ),
]
BackgroundThreshold = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="CAM models: activation from which a pixel is no background; the model's without.",
    ),
]
MinConfidence = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Leave pixels below this confidence open: label 255."),
]
EngineOption = Annotated[
    str,
    typer.Option(
        help="auto, onnxruntime, onnxruntime-cuda, onnxruntime-tensorrt, openvino or tensorrt."
    ),
]
