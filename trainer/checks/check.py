"""``wsss-trainer check``: everything that is wrong with a data set, in one pass over all of its
files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.checks.conventions import compare
from trainer.checks.inspection import Finding, Problem, inspect
from trainer.checks.preflight import about_ignored, about_negatives, problems_of
from trainer.data.dataset import Dataset, Record
from trainer.data.formats.opening import open_dataset
from trainer.data.knobs import DataConfig
from trainer.data.sizes import PIXELS
from trainer.errors import DataError, nearest, some
from trainer.pool import cores, over_images

if TYPE_CHECKING:
    from rich.console import Console

POOL_FROM = 300
SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True)
class Report:
    """What ``check`` found.

    Attributes:
        classes: images of each class.
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

    @property
    def ok(self) -> bool:
        """Whether no problem is an error."""
        return not any(problem.severity == "error" for problem in self.problems)

    @property
    def exit_code(self) -> int:
        """0, or 2 where some problem is an error."""
        return 0 if self.ok else 2

    def to_json(self) -> dict[str, Any]:
        """Everything as a plain dictionary for ``json.dumps``; every problem carries its count."""
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
    """Look at every image and mask of a data set and report everything wrong with it.

    Nothing about the data is raised: what stops ``open_dataset`` is a problem of the report too.

    Args:
        lists: look at these lists only; default everything.
        progress: show a bar on stderr.
        config: how to read it.
    """
    root = Path(path)
    errors: list[DataError] = []
    try:
        dataset = open_dataset(root, errors, config)
    except DataError as error:
        return Report(str(root), None, 0, {}, {}, "", _from_errors([*errors, error]))
    problems = list(_from_errors(errors))
    unknown = [name for name in lists or () if name not in dataset.lists]
    for name in unknown:
        known = nearest(name, sorted(dataset.lists))
        problems.append(Problem("error", "list", f"there is no list {name!r}", (name,), known))
    chosen = [name for name in lists or ("all",) if name not in unknown]
    records = [
        dataset.records[i] for i in dict.fromkeys(i for name in chosen for i in dataset.lists[name])
    ]
    found = _inspect_all(dataset, records, progress)
    problems += _from_traits(dataset, found)
    problems += _duplicates(dataset, found)
    problems += _about_classes(dataset, records, chosen)
    problems += _about_lists(dataset, chosen)
    problems += compare(dataset)
    if records and not any(dataset.has_mask(record) for record in records):
        problems.append(
            Problem("info", "no-masks", "there are no masks: training works, evaluation does not")
        )
    problems += [Problem("info", "note", note) for note in dataset.notes]
    counts = dataset.tag_matrix(records).sum(axis=0)
    return Report(
        path=str(root),
        format=dataset.format,
        images=len(records),
        classes={name: int(count) for name, count in zip(dataset.classes, counts, strict=True)},
        lists={name: len(ids) for name, ids in dataset.lists.items()},
        tags_from=dataset.tags_from,
        problems=tuple(sorted(problems, key=lambda problem: SEVERITIES.index(problem.severity))),
        estimates=estimate([finding for _, finding in found]),
    )


def _from_errors(errors: Iterable[DataError]) -> tuple[Problem, ...]:
    def advice(error: DataError) -> str:
        return "; ".join(
            part for part in (error.expected and f"expected {error.expected}", error.hint) if part
        )

    return tuple(Problem("error", "data", error.found, (), advice(error)) for error in errors)


def _inspect_all(
    dataset: Dataset, records: list[Record], progress: bool
) -> list[tuple[Record, Finding]]:
    workers = None if len(records) >= POOL_FROM else 0
    work = over_images(
        partial(inspect, dataset),
        records,
        workers,
        "checking",
        progress,
        name=lambda record: record.id,
    )
    found = []
    for record, finding in work:
        if isinstance(finding, Exception):
            finding = Finding(traits=(("unreadable", str(finding)),))
        found.append((record, finding))
    return found


def _from_traits(dataset: Dataset, found: list[tuple[Record, Finding]]) -> Iterator[Problem]:
    by_kind: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for record, finding in found:
        for kind, detail in finding.traits:
            of_mask = kind.startswith("mask") and record.mask is not None
            file = record.mask if of_mask and record.mask is not None else record.image
            by_kind[kind].append((_inside(file, dataset.root), detail))
    masked = [dataset.has_mask(record) for record, _ in found]
    if any(masked):
        bare = [record for record, _ in found if not dataset.has_mask(record)]
        by_kind["mask-missing"] += [(_inside(record.image, dataset.root), "") for record in bare]
    yield from problems_of(by_kind)
    yield from about_ignored(by_kind)


def _inside(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _duplicates(dataset: Dataset, found: list[tuple[Record, Finding]]) -> Iterator[Problem]:
    groups: dict[str, list[Record]] = defaultdict(list)
    for record, finding in found:
        if finding.digest:
            groups[finding.digest].append(record)
    same = [group for group in groups.values() if len(group) > 1]
    if same:
        names = tuple(
            " = ".join(_inside(record.image, dataset.root) for record in group) for group in same
        )
        yield Problem(
            "warning",
            "duplicate",
            f"images that are there more than once: {len(same)}",
            names,
            "keep one of each",
        )
    train, test = _trains_and_tests(dataset)
    leaks = tuple(
        " = ".join(record.id for record in group)
        for group in same
        if {r.id for r in group} & train and {r.id for r in group} & test
    )
    if leaks:
        message = f"images in a training list of which a copy is in a test list: {len(leaks)}"
        yield Problem(
            "warning", "leak", message, leaks, "test figures will be too good: take one copy out"
        )


def _trains_and_tests(dataset: Dataset) -> tuple[set[str], set[str]]:
    train = {
        i
        for name, ids in dataset.lists.items()
        if name.startswith("train") and "val" not in name
        for i in ids
    }
    test = {
        i for name, ids in dataset.lists.items() if name.startswith(("val", "test")) for i in ids
    }
    return train, test


def _about_classes(dataset: Dataset, records: list[Record], chosen: list[str]) -> Iterator[Problem]:
    where = "the data set" if chosen == ["all"] else f"the lists {some(chosen)}"
    counts = dataset.tag_matrix(records).sum(axis=0)
    none = tuple(name for name, count in zip(dataset.classes, counts, strict=True) if count == 0)
    single = tuple(name for name, count in zip(dataset.classes, counts, strict=True) if count == 1)
    if none:
        message = f"classes without any image in {where}: {len(none)}"
        yield Problem(
            "error",
            "class-empty",
            message,
            none,
            "take them out of the class table, or add images of them",
        )
    if single:
        message = f"classes with one image only in {where}: {len(single)}"
        yield Problem(
            "warning",
            "class-single",
            message,
            single,
            "add images: nothing general can be learnt from one",
        )
    for name in ("train", "train_aug"):
        listed = (
            dataset.tag_matrix(dataset.subset(name)).sum(axis=0)
            if dataset.lists.get(name)
            else counts
        )
        lost = tuple(
            c
            for c, total, here in zip(dataset.classes, counts, listed, strict=True)
            if total and not here
        )
        if lost:
            yield Problem(
                "warning",
                "class-unlisted",
                f"classes without any image in list {name!r}: {len(lost)}",
                lost,
            )
    if counts.any():
        yield from about_negatives(dataset, dataset.default_list("train") or "all")


def _about_lists(dataset: Dataset, chosen: list[str]) -> Iterator[Problem]:
    train, test = _trains_and_tests(dataset)
    both = tuple(sorted(train & test))
    if both:
        message = f"images both in a training list and in a test list: {len(both)}"
        yield Problem("warning", "overlap", message, both, "test figures will be too good")
    empty = tuple(name for name in dataset.lists if not dataset.lists[name])
    if empty:
        yield Problem("warning", "list-empty", f"empty lists: {len(empty)}", empty)


def estimate(found: Sequence[Finding], workers: int | None = None) -> dict[str, Any]:
    """Rough disk, memory and time of one run of ``fit`` over these images, and what the figures
    assume.

    The rates are for MobileNetV2 in fp32 on one core of a 2024 server: 11 images/s of training at
    224x224, 42 of inference, 0.34 s of dense CRF for 187,500 pixels; peak memory 2.3 GB for
    training with 16 images, or 0.6 GB, 40 bytes for each pixel of the largest image, and 0.4 kB for
    each that is worked on at once: its maps at scale 2, then its CRF, in a process of its own.
    """
    count, speed = workers or cores(), 224 * 224
    pixels = sum(finding.pixels for finding in found)
    largest = max((finding.pixels for finding in found), default=0)
    mask_mb = sum(finding.mask_bytes or finding.pixels * 0.02 for finding in found) / 1e6
    minutes = {
        "classify": 5 * len(found) / 11,
        "cams": 2 * (0.25 + 1 + 2.25 + 4) * pixels / speed / 42,
        "refine": 0.34 * pixels / 187_500,
        "segment": 8 * len(found) / 11 + 15 * pixels / speed / 42,
    }
    return {
        "disk_mb": {
            "cams": round(sum(finding.cells for finding in found) * 2 / 1e6, 1),
            "masks_and_predictions": round(2 * mask_mb, 1),
            "checkpoints": 170.0,
        },
        "memory_mb": round(max(2300, 600 + largest * 4e-5 + min(4 * largest, PIXELS) * 4e-4)),
        "minutes": {stage: round(seconds / 60 / count, 1) for stage, seconds in minutes.items()},
        "assumes": (
            f"MobileNetV2 on {count} CPU cores, every image here, 5 and 8 epochs, 4 scales and"
            " flip; good to a factor of two"
        ),
    }


def print_report(report: Report, console: Console | None = None, shown: int = 4) -> None:
    """Print a report as tables: classes, problems with the first ``shown`` names each,
    estimates.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = console or Console()
    console.print(
        f"[bold]{escape(report.path)}[/bold]: {report.format or 'not a data set'}, {report.images}"
        " images"
    )
    if report.lists:
        console.print(
            "lists: " + escape(", ".join(f"{name} {count}" for name, count in report.lists.items()))
        )
        console.print(f"tags from {escape(report.tags_from)}")
        classes = Table("class", "images", title="classes", title_justify="left")
        for name, count in report.classes.items():
            classes.add_row(escape(name), str(count))
        console.print(classes)
    table = Table("severity", "what", "files", "what to do", title="problems", title_justify="left")
    colours = {"error": "red", "warning": "yellow", "info": "cyan"}
    for problem in report.problems:
        severity = f"[{colours[problem.severity]}]{problem.severity}[/]"
        table.add_row(
            severity,
            escape(problem.message),
            escape(some(problem.names, shown)),
            escape(problem.hint),
        )
    console.print(table if report.problems else "no problems")
    if report.estimates:
        disk, minutes = (
            sum(report.estimates["disk_mb"].values()),
            sum(report.estimates["minutes"].values()),
        )
        memory, assumes = report.estimates["memory_mb"] / 1000, escape(report.estimates["assumes"])
        duration = f"{minutes:.0f} minutes" if minutes >= 1 else "under a minute"
        console.print(
            f"a run needs about {disk:.0f} MB of disk, {memory:.1f} GB of memory, {duration}"
            f" ({assumes})"
        )
    verdict = "[green]ready to use[/]" if report.ok else "[red]errors must be put right first[/]"
    console.print(verdict)
