"""Commands about data sets: check, split, convert, synth."""

from __future__ import annotations

import json
import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.data.knobs import DataConfig
from trainer.progress import Log, set_log

if TYPE_CHECKING:
    from trainer.data.formats.split import Split

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
LogOption = Annotated[
    Log,
    typer.Option(
        "--log",
        callback=set_log,
        help="What stderr gets: text, or json for one JSON object a line (docs/long-work.md).",
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder: that of fit --run.")]
LabelsFrom = Annotated[
    str | None,
    typer.Option(help="Origin of the tags: xml, masks or csv. Default: the best there is."),
]
DataSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="data.KEY=VALUE",
        help="Knobs of reading: data.group, data.missing, data.lists, data.masks, ...",
    ),
]


class Images(StrEnum):
    """How images enter a converted data set."""

    copy = "copy"
    hardlink = "hardlink"
    symlink = "symlink"
    none = "none"


def check(
    data: Annotated[Path, typer.Argument(help="Data folder.")],
    lists: Annotated[
        list[str] | None, typer.Option("--list", help="Check only this list; may be repeated.")
    ] = None,
    labels_from: LabelsFrom = None,
    settings: DataSettings = None,
    json_: Json = False,
    log: LogOption = Log.text,
) -> None:
    """List all faults of a data set in one pass: images, tags, masks and lists.

    Formats: VOC (JPEGImages/, ImageSets/Segmentation/), COCO (annotations/*.json), or images
    anywhere with a labels.csv of `image,tag` rows, of one 0/1 column per class, or of
    `image,"tag1;tag2"` rows; metadata.csv or metadata.jsonl; MVA's data_*.csv; XML annotations
    beside the images; a category of MVTec AD (train/, test/, ground_truth/); or one folder per
    class. A folder with the layout of VOC 2012 or COCO 2014 is
    compared with the published lists. The exit code is 2 after errors.

    Example: wsss-trainer check photos/ --json
    """
    from trainer.checks.check import check as run_check
    from trainer.checks.check import print_report

    result = run_check(
        data, lists or None, progress=True, config=data_config(labels_from, settings)
    )
    if json_:
        print(json.dumps(result.to_json(), indent=1))
    else:
        print_report(result)
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def split(
    data: Annotated[Path, typer.Argument(help="Data folder.")],
    val: Annotated[float, typer.Option(help="Share of the images that validates.")] = 0.2,
    test: Annotated[float, typer.Option(help="Share of the images that tests.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same lists.")] = 0,
    list_: Annotated[
        str, typer.Option("--list", help="Divide this list only; other lists stay.")
    ] = "all",
    alike: Annotated[
        bool, typer.Option("--alike", help="Keep images that look nearly the same together too.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="New CSV file of image and list. Default: DATA-lists.csv, here."),
    ] = None,
    labels_from: LabelsFrom = None,
    settings: DataSettings = None,
    json_: Json = False,
) -> None:
    """Divide images into training, validation and test lists.

    Images of one group (column group, patient, slide, scene or tile) stay together, and each list
    gets its share of every class and of the images without any. The lists go into a new file, which
    --set data.lists=FILE reads; called lists.csv in the data folder, it is read by itself. Nothing
    of the data changes.

    \b
    Examples:
      wsss-trainer split photos/ --val 0.2 --test 0.2
      wsss-trainer split photos/ --alike --out photos/lists.csv
      wsss-trainer split photos/ --list train --val 0.1 --set data.group=patient --seed 1
    """
    from trainer.data.formats.opening import open_dataset
    from trainer.data.formats.split import default_file
    from trainer.data.formats.split import split as divide
    from trainer.data.tables.lists import LISTS_FILE
    from trainer.files import write_atomic
    from trainer.outputs import check_file

    dataset = open_dataset(data, config=data_config(labels_from, settings))
    if alike:
        from trainer.checks.near_duplicates import with_groups_of_looks

        dataset = with_groups_of_looks(dataset, progress=True)
    result = divide(dataset, {"val": val, "test": test}, seed, list_)
    target, table = out or default_file(dataset), result.table()
    check_file(target, is_ours=lambda file: file.read_bytes() == table, hint="--out NEW.csv")
    write_atomic(target, table)
    if json_:
        facts = {"from": str(data), "out": str(target), "seed": seed, "lists": result.facts()}
        print(json.dumps({**facts, "warnings": result.warnings()}, indent=1))
        return
    print_split(result)
    # The file names the lists, and the groups where there are any.
    obsolete = ("data.lists", *(["data.group"] if result.groups else []))
    knobs = [text for text in settings or () if not text.startswith(obsolete)]
    if target.resolve() != (data / LISTS_FILE).resolve():
        knobs.append(f"data.lists={target}")
    options = ["--labels-from", labels_from] if labels_from else []
    for text in knobs:
        options += ["--set", text]
    print(f"{target}\nnext: {shlex.join(['wsss-trainer', 'fit', str(data), *options])}")


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC", help="Data set, cls_labels.npy, CSV file, or folder of masks."
        ),
    ],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="DST", help="New folder; a file that ends with .csv gets the tags only."
        ),
    ],
    to: Annotated[
        str | None,
        typer.Option(help="voc, coco, csv, folders; labels (the tags), masks (a folder of them)."),
    ] = None,
    images: Annotated[Images, typer.Option(help="How images enter it.")] = Images.copy,
    labels_from: LabelsFrom = None,
    settings: DataSettings = None,
    force: Annotated[bool, typer.Option(help="Write into a folder with other content.")] = False,
    json_: Json = False,
    log: LogOption = Log.text,
) -> None:
    """Write a data set in another format: images, tags, masks and lists.

    The same command continues an interrupted conversion.

    \b
    Examples:
      wsss-trainer convert VOC2012/ voc-as-coco/ --to coco --images hardlink
      wsss-trainer convert coco/ coco-as-voc/ --to voc --set data.crowd=ignore
      wsss-trainer convert VOC-in-colours/ VOC2012/ --to voc --set data.masks=colours
      wsss-trainer convert cls_labels.npy VOC2012/image_labels.csv
      wsss-trainer convert predictions/ indices/ --to masks --set data.masks=colours
    """
    from trainer.data.formats.convert import convert as run_convert
    from trainer.data.formats.convert import print_summary

    config = data_config(labels_from, settings)
    summary = run_convert(source, target, to, images.value, config, force, progress=True)
    if json_:
        print(json.dumps(summary, indent=1))
    else:
        print_summary(summary)


def synth(
    out: Annotated[Path, typer.Argument(help="Folder to write, in VOC layout.")],
    count: Annotated[int, typer.Option(help="Number of images.")] = 240,
    size: Annotated[int, typer.Option(help="Side of an image in pixels.")] = 128,
    seed: Annotated[int, typer.Option(help="The same seed writes the same bytes.")] = 0,
    difficulty: Annotated[
        float, typer.Option(help="0 easy .. 1 hard: clutter, occlusion, noise.")
    ] = 0.5,
    classes: Annotated[int, typer.Option(help="Number of classes, 2 to 10.")] = 6,
    log: LogOption = Log.text,
) -> None:
    """Write a synthetic data set with exact masks, to try everything without data.

    Example: wsss-trainer synth data/ --count 300 --size 128
    """
    from trainer.scenes.writing import write_synthetic

    write_synthetic(out, count, size, seed, difficulty, classes, progress=True)
    print(f"{out}\nnext: {shlex.join(['wsss-trainer', 'fit', str(out)])}")


def data_config(labels_from: str | None, settings: list[str] | None) -> DataConfig:
    """The knobs of ``--labels-from`` and ``--set data.KEY=VALUE``.

    Raises:
        ConfigError: an unknown knob or value, or a setting of another section.
    """
    from trainer.config import parse_settings, replace

    labels = {"labels_from": labels_from} if labels_from else {}
    knobs = parse_settings(settings or (), ("data",))["data"]
    return replace(DataConfig(), labels | knobs, "data")


def print_split(split: Split) -> None:
    """Print how many images of each class every list has."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    facts = split.facts()
    table = Table("", *map(escape, facts))
    for words, key in (
        ("images", "images"),
        ("groups", "groups"),
        ("show no class", "negatives"),
        ("unknown classes", "unknown"),
    ):
        table.add_row(words, *(str(entry[key]) for entry in facts.values()))
    table.add_section()
    for name in split.dataset.classes:
        table.add_row(escape(name), *(str(entry["classes"][name]) for entry in facts.values()))
    console = Console()
    console.print(table)
    for text in split.warnings():
        console.print(f"[yellow]warning[/]: {escape(text)}")
