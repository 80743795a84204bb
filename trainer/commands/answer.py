"""The command that reads answers to a review."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from trainer.commands.data import Json, LogOption, RunArgument
from trainer.errors import some
from trainer.progress import Log


def answer(
    run: RunArgument,
    review: Annotated[
        Path,
        typer.Argument(
            metavar="REVIEW", help="Folder of the review, or the zip or JSON that the tool exports."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of corrections, new or with earlier ones. Default: DATA-corrections, here."
        ),
    ] = None,
    unchanged: Annotated[
        Literal["leave", "take"],
        typer.Option(help="Masks that are as predicted: leave them out, or take them as correct."),
    ] = "leave",
    json_: Json = False,
    log: LogOption = Log.text,
) -> None:
    """Read corrected masks and tags, and keep them in a folder of corrections.

    REVIEW is what wsss-trainer ask wrote, with corrected masks or with the tool's export put into
    it, or that export itself: Label Studio's JSON or JSON-MIN, CVAT's Segmentation mask 1.1, or a
    folder masks/ of PNGs. Another folder of corrections can be merged in this way too. The data are
    not touched; fit --corrections trains with the folder.

    \b
    Examples:
      wsss-trainer answer runs/photos review/
      wsss-trainer answer runs/photos task_1_annotations.zip --out corrections/
    """
    from trainer.review.answers import answer as answer_run

    summary = answer_run(run, review, out, unchanged)
    print(json.dumps(summary, indent=1) if json_ else _text(summary))


def _text(summary: dict[str, Any]) -> str:
    images, lines = summary["images"], []
    for name, facts in images.items():
        parts = [f"{change:+,} pixels of {label}" for label, change in facts["pixels"].items()]
        parts += [f"tag {label} added" for label in facts["tags_added"]]
        parts += [f"tag {label} removed" for label in facts["tags_removed"]]
        lines.append(f"  {name}: {', '.join(parts) or 'as predicted'}")
    for key, words in (
        ("not_asked", "were not asked for, and are taken"),
        ("unchanged", "are as predicted and left out; --unchanged take takes them as correct"),
        ("waiting", "wait for an answer"),
    ):
        if names := summary[key]:
            lines.append(f"{len(names)} images {words}: {some(names)}")
    head = f"{summary['corrections']}: {len(images)} images" if images else "nothing changed"
    if summary["next"]:
        lines.append(f"next: {summary['next']}")
    return "\n".join((head, *lines))
