"""``wsss-serving label``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serving.commands.options import (
    DEFAULT,
    BackgroundThreshold,
    EngineOption,
    Json,
    MaxBytes,
    MaxPixels,
    MinConfidence,
    ModelOption,
    Overlap,
    Oversize,
    Repository,
    ScoreThreshold,
    Tile,
)
from serving.commands.progress import Log, LogOption, progress_bar, tell
from serving.config import Limits, TilingConfig
from serving.settings import changed

FORMATS = (
    "voc (palette PNG), coco (annotations.json), yolo (labels/*.txt) or cvat (annotations.xml of"
    " CVAT for images 1.1)."
)


def label(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="Folder of images, searched recursively, or an address such as s3://bucket/photos.",
        ),
    ],
    target: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Folder for the masks, at the same relative paths."),
    ],
    model: ModelOption = "",
    version: Annotated[int, typer.Option(min=0, help="Version; 0 is the newest.")] = 0,
    repository: Repository = DEFAULT.repository,
    format: Annotated[str, typer.Option(help=FORMATS)] = "voc",
    polygons: Annotated[
        bool, typer.Option("--polygons", help="COCO: polygons instead of run lengths.")
    ] = False,
    oversize: Oversize = DEFAULT.tiling.oversize,
    tile: Tile = False,
    overlap: Overlap = None,
    score_threshold: ScoreThreshold = None,
    background_threshold: BackgroundThreshold = None,
    min_confidence: MinConfidence = None,
    review_below: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help=(
                "Also put images whose estimated share of right pixels (1 - doubt) is below into"
                " OUT/review, which wsss-trainer answer reads."
            ),
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Label again what is already labelled.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="Images in parallel; 0 is automatic.")] = 0,
    ray: Annotated[
        str,
        typer.Option(
            metavar="auto|HOST:PORT",
            help="Compute on a Ray cluster: this machine's (auto), or the one at an address.",
        ),
    ] = "",
    engine: EngineOption = DEFAULT.engine.name,
    bucket: Annotated[
        int,
        typer.Option(min=1, help="Pad sides to a multiple, like a server with schedule.bucket."),
    ] = DEFAULT.schedule.bucket,
    max_pixels: MaxPixels = DEFAULT.limits.max_pixels,
    max_bytes: MaxBytes = DEFAULT.limits.max_bytes,
    as_json: Json = False,
    log: LogOption = Log.text,
) -> None:
    """Label a folder of images with a model, without a server.

    After an interruption, run it again: finished images are skipped. The exit code is 1 if an image
    failed.

    \b
    Examples:
      wsss-serving label photos/ masks/ --model photos
      wsss-serving label photos/ masks/ --model photos --review-below 0.9
      wsss-serving label s3://bucket/photos masks/ --model photos --ray auto
    """
    from serving.labelling.label import as_json as in_json
    from serving.labelling.label import label as run
    from serving.labelling.labeller import LabelConfig
    from serving.labelling.ledger import FAILURES
    from serving.labelling.review import REVIEW
    from serving.labelling.sources import parse_source

    config = LabelConfig(
        source=parse_source(source),
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
        review_below=review_below,
        ray=ray,
    )
    with progress_bar("labelling") as progress:
        summary = run(config, progress)
    if as_json:
        print(in_json(summary))
    else:
        left_out = f", {summary.left_out} left out" if summary.left_out else ""
        print(
            f"{summary.written} masks written, {summary.skipped} there already, {summary.failed}"
            f" images failed{left_out}, in {summary.seconds:.1f} s:"
            f" {', '.join(summary.files) or target}"
        )
        if summary.review is not None:
            steps = f": correct {target / REVIEW}/masks, then wsss-trainer answer RUN"
            print(
                f"{summary.review} of {summary.images} images are in {target / REVIEW}"
                f"{f'{steps} {target / REVIEW}' if summary.review else ''}"
            )
    if summary.failed or summary.left_out:
        text = f"the reasons are in {target / FAILURES}"
        tell(text, "message", text=text)
    raise typer.Exit(1 if summary.failed else 0)


def _tiles(oversize: str, overlap: float | None) -> TilingConfig:
    return changed(
        DEFAULT.tiling, {"oversize": oversize} | ({} if overlap is None else {"overlap": overlap})
    )
