"""``wsss-trainer check``: everything that is wrong with a data set, in one pass over its files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.checks.conventions import compare
from trainer.checks.inspection import Finding, Problem, inspect, problems_of
from trainer.checks.lists import (
    TagCounts,
    about_all_negative,
    about_groups,
    about_near_duplicates,
    about_negatives,
    about_single_images,
    classes_with,
    tag_counts,
    uses,
)
from trainer.cores import cores
from trainer.data.dataset import Dataset, Record, group_count
from trainer.data.formats.opening import open_dataset
from trainer.data.knobs import DataConfig
from trainer.data.sizes import PIXELS
from trainer.errors import DataError, nearest, some
from trainer.pool import over_images

if TYPE_CHECKING:
    from rich.console import Console

# For fewer images, processes would take longer to start than the work takes.
POOL_FROM = 300
SEVERITIES = ("error", "warning", "info")
Inspections = list[tuple[Record, Finding]]


@dataclass(frozen=True)
class Report:
    """The result of ``check``.

    Attributes:
        classes: images of each class.
        tags: for each class, how many images show it, do not show it, and may show it.
        negatives: images that show no class.
        groups: how many groups there are.
        lists: images of each list.
        problems: errors first.
        estimates: rough disk, memory and time of a run, and what they assume.
    """

    path: str
    format: str | None
    images: int
    classes: dict[str, int]
    lists: dict[str, int]
    tags_from: str
    problems: tuple[Problem, ...]
    estimates: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, TagCounts] = field(default_factory=dict)
    negatives: int = 0
    groups: int = 0

    @property
    def ok(self) -> bool:
        """Whether no problem is an error."""
        return not any(problem.severity == "error" for problem in self.problems)

    @property
    def exit_code(self) -> int:
        """0, or 2 with errors."""
        return 0 if self.ok else 2

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; every problem has its count."""
        problems = [
            {**asdict(p), "names": list(p.names), "count": len(p.names)} for p in self.problems
        ]
        return {**asdict(self), "ok": self.ok, "problems": problems}


def check(
    path: str | Path,
    lists: Sequence[str] | None = None,
    progress: bool = False,
    config: DataConfig | None = None,
) -> Report:
    """Decode every image and mask of a data set and report everything that is wrong with it.

    What stops ``open_dataset`` is a problem of the report too and not raised.

    Args:
        path: the data folder.
        lists: look at these lists only; default everything.
        progress: show a bar on stderr.
        config: how to read it.
    """
    errors: list[DataError] = []
    try:
        dataset = open_dataset(path, errors, config)
    except DataError as error:
        return Report(
            str(Path(path)), None, 0, {}, {}, "", tuple(map(_from_error, [*errors, error]))
        )
    choice = [name for name in lists or ("all",) if name in dataset.lists]
    records = [
        dataset.records[i] for i in dict.fromkeys(i for n in choice for i in dataset.lists[n])
    ]
    inspections = _inspect_all(dataset, records, progress)
    problems = [*map(_from_error, errors), *_problems(dataset, lists or (), choice, inspections)]
    counts = tag_counts(dataset, records)
    return Report(
        path=str(Path(path)),
        format=dataset.format,
        images=len(records),
        classes={name: count.present for name, count in counts.items()},
        lists={name: len(ids) for name, ids in dataset.lists.items()},
        tags_from=dataset.tags_from,
        problems=tuple(sorted(problems, key=lambda problem: SEVERITIES.index(problem.severity))),
        estimates=estimate([finding for _, finding in inspections]),
        tags=counts,
        negatives=sum(record.is_negative for record in records),
        groups=group_count(records),
    )


def _problems(
    dataset: Dataset, lists: Sequence[str], choice: list[str], inspections: Inspections
) -> Iterator[Problem]:
    """What is wrong with a data set that could be opened.

    Args:
        dataset: the data set.
        lists: the lists that the user named.
        choice: those of them that are there; ``all`` where none was named.
        inspections: of their images.
    """
    yield from _about_unknown_lists(dataset, lists)
    yield from _about_files(dataset, inspections)
    yield from _about_duplicates(dataset, inspections)
    yield from about_near_duplicates(dataset, {r.id: finding for r, finding in inspections})
    if choice:
        yield from _about_classes(dataset, [record for record, _ in inspections], choice)
    yield from _about_lists(dataset)
    yield from compare(dataset)
    yield from (Problem("info", "note", note) for note in dataset.notes)


def _from_error(error: DataError) -> Problem:
    wish = f"expected {error.expected}" if error.expected else ""
    return Problem("error", "data", error.found, (), "; ".join(filter(None, (wish, error.hint))))


def _about_unknown_lists(dataset: Dataset, lists: Sequence[str]) -> Iterator[Problem]:
    for name in lists:
        if name not in dataset.lists:
            choices = nearest(name, sorted(dataset.lists))
            yield Problem("error", "list", f"there is no list {name!r}", (name,), choices)


def _inspect_all(dataset: Dataset, records: list[Record], progress: bool) -> Inspections:
    workers = None if len(records) >= POOL_FROM else 0
    work = partial(inspect, dataset)
    outcomes = over_images(work, records, workers, "checking", progress, lambda record: record.id)
    return [
        (record, Finding(traits=(("unreadable", str(o)),)) if isinstance(o, Exception) else o)
        for record, o in outcomes
    ]


def _about_files(dataset: Dataset, inspections: Inspections) -> Iterator[Problem]:
    by_kind: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for record, finding in inspections:
        for kind, detail in finding.traits:
            file = record.mask if kind.startswith("mask") and record.mask else record.image
            by_kind[kind].append((_inside(file, dataset.root), detail))
    bare = [record for record, _ in inspections if not dataset.has_mask(record)]
    if len(bare) < len(inspections):
        by_kind["mask-missing"] += [(_inside(record.image, dataset.root), "") for record in bare]
    elif bare:
        yield Problem("info", "no-masks", "there are no masks: training works, evaluation does not")
    yield from problems_of(by_kind)


def _inside(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _about_duplicates(dataset: Dataset, inspections: Inspections) -> Iterator[Problem]:
    groups: dict[str, list[Record]] = defaultdict(list)
    for record, finding in inspections:
        if finding.digest:
            groups[finding.digest].append(record)
    same = [group for group in groups.values() if len(group) > 1]
    if same:
        yield Problem(
            "warning",
            "duplicate",
            f"images that are there more than once: {len(same)}",
            tuple(" = ".join(_inside(r.image, dataset.root) for r in group) for group in same),
            "keep one of each",
        )
    train, test = _trains_and_tests(dataset)
    ids = [[record.id for record in group] for group in same]
    leaks = tuple(" = ".join(group) for group in ids if train & {*group} and test & {*group})
    if leaks:
        yield Problem(
            "warning",
            "leak",
            f"images in a training list of which a copy is in a test list: {len(leaks)}",
            leaks,
            "test figures will be too good: take one copy out",
        )


def _trains_and_tests(dataset: Dataset) -> tuple[set[str], set[str]]:
    """Ids of all training lists, and of all lists that measure."""
    ids = uses(dataset)
    return ids["training"], ids["validation"] | ids["test"]


def _about_classes(dataset: Dataset, records: list[Record], choice: list[str]) -> Iterator[Problem]:
    where = "the data set" if choice == ["all"] else f"the lists {some(choice)}"
    none = classes_with(0, dataset, records)
    if len(none) == len(dataset.classes):
        yield from about_all_negative(dataset, records, where)
    elif none:
        yield Problem(
            "error",
            "class-empty",
            f"classes without any image in {where}: {len(none)}",
            none,
            "take them out of the class table, or add images of them",
        )
    yield from about_single_images(dataset, records, where)
    for name in ("train", "train_aug"):
        members = dataset.subset(name) if dataset.lists.get(name) else records
        lost = tuple(c for c in classes_with(0, dataset, members) if c not in none)
        if lost and len(lost) + len(none) == len(dataset.classes):
            yield from about_all_negative(dataset, members, f"list {name!r}")
        elif lost:
            message = f"classes without any image in list {name!r}: {len(lost)}"
            yield Problem("warning", "class-unlisted", message, lost)
    if len(none) < len(dataset.classes):
        yield from about_negatives(dataset, dataset.default_list("train") or "all")


def _about_lists(dataset: Dataset) -> Iterator[Problem]:
    train, test = _trains_and_tests(dataset)
    if both := tuple(sorted(train & test)):
        message = f"images both in a training list and in a test list: {len(both)}"
        yield Problem("warning", "overlap", message, both, "test figures will be too good")
    for (name, ids), (other, others) in combinations(uses(dataset).items(), 2):
        yield from about_groups(dataset, ids, f"a {name} list", others, f"a {other} list")
    if empty := tuple(name for name in dataset.lists if not dataset.lists[name]):
        yield Problem("warning", "list-empty", f"empty lists: {len(empty)}", empty)


def estimate(findings: Sequence[Finding], workers: int | None = None) -> dict[str, Any]:
    """Rough disk, memory and time of one run of ``fit`` over these images, and what the figures
    assume.
    """
    count, view = workers or cores(), 224 * 224
    pixels = sum(finding.pixels for finding in findings)
    largest = max((finding.pixels for finding in findings), default=0)
    mask_mb = sum(finding.mask_bytes or finding.pixels * 0.02 for finding in findings) / 1e6
    # MobileNetV2 in fp32 on one core of a 2024 server: 11 images/s of training at 224x224, 42 of
    # inference, and 0.34 s of dense CRF for 187,500 pixels.
    minutes = {
        "classify": 5 * len(findings) / 11,
        # Both mirror images at the scales 0.5, 1, 1.5 and 2.
        "cams": 2 * (0.25 + 1 + 2.25 + 4) * pixels / view / 42,
        "refine": 0.34 * pixels / 187_500,
        "segment": 8 * len(findings) / 11 + 15 * pixels / view / 42,
    }
    # Peak memory is that of training with 16 images (2.3 GB); or 0.6 GB, 40 bytes for each pixel of
    # the largest image, and 0.4 kB for each that is worked on at once: maps at scale 2, then CRF.
    memory_mb = max(2300, 600 + largest * 4e-5 + min(4 * largest, PIXELS) * 4e-4)
    return {
        "disk_mb": {
            "cams": round(sum(finding.cells for finding in findings) * 2 / 1e6, 1),
            "masks_and_predictions": round(2 * mask_mb, 1),
            "checkpoints": 170.0,
        },
        "memory_mb": round(memory_mb),
        "minutes": {stage: round(seconds / 60 / count, 1) for stage, seconds in minutes.items()},
        "assumes": (
            f"MobileNetV2 on {count} CPU core{'s' * (count > 1)}, every image here, 5 and 8 epochs,"
            " 4 scales and flip; good to a factor of two"
        ),
    }


def print_report(report: Report, console: Console | None = None, limit: int = 4) -> None:
    """Print classes, problems with the first ``limit`` names each, and estimates."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = console or Console()
    form = report.format or "not a data set"
    console.print(f"[bold]{escape(report.path)}[/bold]: {form}, {report.images} images")
    if report.lists:
        sizes = ", ".join(f"{name} {count}" for name, count in report.lists.items())
        console.print(f"lists: {escape(sizes)}\ntags from {escape(report.tags_from)}")
        console.print(f"{report.negatives} images show none of the classes", end="")
        console.print(f"; {report.groups} groups" if report.groups else "")
        heads = ("class", "present", "absent", "unknown")
        classes = Table(*heads, title="classes", title_justify="left")
        for name, tags in report.tags.items():
            classes.add_row(escape(name), *map(str, (tags.present, tags.absent, tags.unknown)))
        console.print(classes)
    table = Table("severity", "what", "files", "what to do", title="problems", title_justify="left")
    colours = {"error": "red", "warning": "yellow", "info": "cyan"}
    for problem in report.problems:
        severity = f"[{colours[problem.severity]}]{problem.severity}[/]"
        texts = (problem.message, some(problem.names, limit), problem.hint)
        table.add_row(severity, *map(escape, texts))
    console.print(table if report.problems else "no problems")
    if report.estimates:
        disk = sum(report.estimates["disk_mb"].values())
        minutes = sum(report.estimates["minutes"].values())
        duration = f"{minutes:.0f} minutes" if minutes >= 1 else "under a minute"
        console.print(
            f"a run needs about {disk:.0f} MB of disk,"
            f" {report.estimates['memory_mb'] / 1000:.1f} GB of memory, {duration}"
            f" ({escape(report.estimates['assumes'])})"
        )
    console.print("[green]ready to use[/]" if report.ok else "[red]correct the errors first[/]")
