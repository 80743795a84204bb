"""The command that asks for corrections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from trainer.commands.data import Json, LogOption, RunArgument
from trainer.progress import Log


def ask(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="New folder of the review.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Number of images.")] = 30,
    tool: Annotated[
        Literal["labelstudio", "cvat", "folder"],
        typer.Option("--for", help="Annotation tool: Label Studio, CVAT, or a folder of PNGs."),
    ] = "labelstudio",
    list_: Annotated[
        str | None,
        typer.Option("--list", help="Image list to choose from. Default: the training list."),
    ] = None,
    also: Annotated[
        Path | None, typer.Option(help="Folder of further images, which need no tags.")
    ] = None,
    corrections: Annotated[
        Path | None,
        typer.Option(help="Earlier corrections, whose images are not asked for again."),
    ] = None,
    tags: Annotated[
        int, typer.Option(min=0, help="Tags that look wrong or missing to list, at most.")
    ] = 50,
    image_url: Annotated[
        str,
        typer.Option(
            help=(
                "For Label Studio: what stands before the name of each image, such as"
                " '/data/local-files/?d=review/images/'. Default: the images go into the tasks."
            )
        ),
    ] = "",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    json_: Json = False,
    log: LogOption = Log.text,
) -> None:
    """Choose the images whose correction helps most, and write them for an annotation tool.

    The review holds the images, their predicted masks in the form of the tool, a contact sheet
    index.html that says why each was chosen, and tags.csv with tags that look wrong or missing.
    wsss-trainer answer reads the corrections back. The data are not touched.

    \b
    Examples:
      wsss-trainer ask runs/photos --n 30 --out review/ --for cvat
      wsss-trainer ask runs/photos --out review/ --for folder --also new-photos/
    """
    from trainer.review.asking import Wish
    from trainer.review.asking import ask as ask_run

    wish = Wish(n, tool, list_, also, corrections, tags, image_url, device)
    summary = ask_run(run, out, wish)
    if json_:
        print(json.dumps(summary, indent=1))
        return
    count = len(summary["images"])
    fewer = f" instead of {n}: no more images of other groups are left" if count < n else ""
    print(f"{out}: {count} images{fewer}; look at {summary['sheet']}")
    if summary["suspicious_tags"]:
        print(
            f"{len(summary['suspicious_tags'])} tags look wrong: write present or absent into the"
            f" column answer of {out / 'tags.csv'}"
        )
    for number, step in enumerate(summary["steps"], 1):
        print(f"{number}. {step}")
