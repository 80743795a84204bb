"""Options and help texts that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serving.config import ServerConfig

DEFAULT = ServerConfig()

Repository = Annotated[
    Path, typer.Option(help="Folder of models: NAME/VERSION/model.json and a graph.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
MaxPixels = Annotated[
    int, typer.Option(min=1, help="Refuse images with more pixels, before decoding.")
]
MaxBytes = Annotated[int, typer.Option(min=1, help="Refuse image files with more bytes.")]
Oversize = Annotated[
    str,
    typer.Option(help="Images above the model's limits: scale, tile, or auto (tile the largest)."),
]
Tile = Annotated[
    bool, typer.Option("--tile", help="Short for --oversize tile: full resolution without seams.")
]
Overlap = Annotated[
    float | None,
    typer.Option(
        min=0, max=0.5, help="Share of a tile that overlaps the next one; 0.25 by default."
    ),
]
ScoreThreshold = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="Score from which a class may be in the mask; by default the model's."
    ),
]
BackgroundThreshold = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="CAM models: activation from which a pixel is foreground; by default the model's.",
    ),
]
MinConfidence = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Label pixels below this confidence 255, undecided."),
]
EngineOption = Annotated[
    str,
    typer.Option(
        help="auto, onnxruntime, onnxruntime-cuda, onnxruntime-tensorrt, openvino or tensorrt."
    ),
]
ModelOption = Annotated[str, typer.Option(help="Model; optional if there is only one segmenter.")]
Address = Annotated[str, typer.Option(envvar="WSSS_ADDRESS", help="Address of the server.")]
LOCAL = "127.0.0.1:8500"
Token = Annotated[str, typer.Option(envvar="WSSS_TOKEN", help="Token, if the server needs one.")]
TlsCa = Annotated[
    Path | None,
    typer.Option(
        envvar="WSSS_TLS_CA",
        help="PEM file of the authority of the server's certificate; turns TLS on.",
    ),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(
        envvar="WSSS_TLS_CERT", help="PEM file of your certificate, if the server asks for one."
    ),
]
TlsKey = Annotated[Path | None, typer.Option(envvar="WSSS_TLS_KEY", help="PEM file of your key.")]


def names(text: str) -> tuple[str, ...]:
    """The names in a text with commas between them."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def examples(*lines: str) -> str:
    """The part of a help text that shows command lines."""
    # An empty line keeps typer from joining lines to a paragraph.
    return "\n\n".join(("Examples:" if len(lines) > 1 else "Example:", *lines))
