"""``wsss-serving label``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.commands.options import (
    DEFAULT,
    BackgroundThreshold,
    EngineOption,
    Json,
    MaxBytes,
    MaxPixels,
    MinConfidence,
    Overlap,
    Oversize,
    Repository,
    ScoreThreshold,
    Tile,
)
from serving.config import Limits, TilingConfig
from serving.settings import changed

if TYPE_CHECKING:
    from serving.labelling.label import Summary
    from serving.labelling.labeller import LabelConfig

FORMATS = (
    "voc: palette PNG. coco: annotations.json. yolo: labels/*.txt. cvat: annotations.xml of CVAT"
    " for images 1.1."
)


def label(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Folder of images, searched in depth.")
    ],
    target: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Folder for the masks, at the same relative paths."),
    ],
    model: Annotated[
        str, typer.Option(help="Model; may be left out if there is one segmenter only.")
    ] = "",
    version: Annotated[int, typer.Option(min=0, help="Version; 0 is the newest.")] = 0,
    repository: Repository = DEFAULT.repository,
    format: Annotated[str, typer.Option(help=FORMATS)] = "voc",
    polygons: Annotated[
        bool, typer.Option("--polygons", help="COCO: polygons in place of run lengths.")
    ] = False,
    oversize: Oversize = DEFAULT.tiling.oversize,
    tile: Tile = False,
    overlap: Overlap = None,
    score_threshold: ScoreThreshold = None,
    background_threshold: BackgroundThreshold = None,
    min_confidence: MinConfidence = None,
    force: Annotated[
        bool, typer.Option("--force", help="Label again what is labelled already.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="Images at once; 0 chooses.")] = 0,
    engine: EngineOption = DEFAULT.engine.name,
    bucket: Annotated[
        int,
        typer.Option(min=1, help="Round sides up to a multiple, as a server's schedule.bucket."),
    ] = DEFAULT.schedule.bucket,
    max_pixels: MaxPixels = DEFAULT.limits.max_pixels,
    max_bytes: MaxBytes = DEFAULT.limits.max_bytes,
    as_json: Json = False,
) -> None:
    """Label a folder of images. Run it again to go on after a stop; exit code 1 if an image
    failed.
    """
    from serving.labelling.label import as_json as in_json
    from serving.labelling.labeller import LabelConfig
    from serving.labelling.ledger import FAILURES

    config = LabelConfig(
        source=source,
        target=target,
        repository=repository,
        model=model,
        version=version,
        format=format,
        polygons=polygons,
        force=force,
        workers=workers,
        limits=Limits(max_bytes=max_bytes, max_pixels=max_pixels),
        bucket=bucket,
        tiles=_tiles("tile" if tile else oversize, overlap),
        engine=changed(DEFAULT.engine, {"name": engine}),
        score_threshold=score_threshold,
        background_threshold=background_threshold,
        confidence_threshold=min_confidence,
    )
    summary = _with_progress(config)
    if as_json:
        print(in_json(summary))
    else:
        left_out = f", {summary.left_out} left out" if summary.left_out else ""
        print(
            f"{summary.written} masks written, {summary.skipped} there already, {summary.failed}"
            f" images failed{left_out}, in {summary.seconds:.1f} s:"
            f" {', '.join(summary.files) or target}"
        )
    if summary.failed or summary.left_out:
        print(f"what has no mask, and why: {target / FAILURES}", file=sys.stderr)
    raise typer.Exit(1 if summary.failed else 0)


def _tiles(oversize: str, overlap: float | None) -> TilingConfig:
    return changed(
        DEFAULT.tiling, {"oversize": oversize} | ({} if overlap is None else {"overlap": overlap})
    )


def _with_progress(config: LabelConfig) -> Summary:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from serving.labelling.label import label as run

    columns = (TextColumn("labelling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        return run(config, lambda count, total: progress.update(task, completed=count, total=total))
