"""Label a folder of images with the code of the server: the masks are equal to the byte."""

from __future__ import annotations

import errno
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar
from unicodedata import normalize

from serving.errors import LabelError
from serving.files import write_atomic
from serving.images.decoding import EXTENSIONS
from serving.labelling.formats import Format, find_format
from serving.labelling.labeller import LabelConfig, Labeller, State
from serving.labelling.ledger import CLASSES, MANIFEST, Ledger, holds_labels, open_ledger
from serving.listing import Listing, list_images
from serving.outputs import check_folder, folds_case

T = TypeVar("T")
R = TypeVar("R")

FULL = (errno.ENOSPC, errno.EDQUOT)
OUT = "the output folder"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Summary:
    """The result of a run.

    Attributes:
        images: ``written``, ``skipped`` and ``failed`` together.
        left_out: entries that are not images to label: pipes, system folders, our own outputs.
        review: images in the review; None without one.
        files: that cover all images.
    """

    images: int
    written: int
    skipped: int
    failed: int
    left_out: int
    seconds: float
    images_per_second: float
    target: str
    format: str
    files: list[str]
    model: str
    version: int
    review: int | None = None


def label(config: LabelConfig, progress: Progress = lambda count, total: None) -> Summary:
    """Label every image below ``config.source``.

    Writes a file per image, the joint files of the format, ``manifest.jsonl`` (a line per mask),
    ``failures.jsonl`` (a line per entry without one) and ``classes.txt``. An image is skipped if
    its mask loads and the manifest records this graph, settings and image.

    Raises:
        LabelError: no image, two images for one mask, a folder that is in use or read-only, or a
            review that cannot be made.
        TargetError: the output folder holds something else, or is read.
        RepositoryError, ModelNotFound, WrongModelKind, FieldError: see :class:`Labeller`.
    """
    began = time.monotonic()
    form = find_format(config.format, config.polygons)
    check_folder(config.target, holds_labels, [config.source], "OUT", may_lie_in=True)
    listing = find_images(config.source, config.target)
    check_parts(listing.images, form)
    labeller = Labeller(config)
    review = labeller.review
    if review:
        review.check(listing.images, form)
    tally = {"written": 0, "skipped": 0, "failed": len(listing.unread)}
    try:
        with open_ledger(config.target) as ledger:
            for number, state in enumerate(_label_all(labeller, listing, ledger), 1):
                tally[state] += 1
                progress(number, len(listing.images))
            entries = ledger.finish(listing.images)
            files = form.finish(config.target, labeller.card, entries)
            count = review.finish(entries, config.source) if review else None
    except OSError as error:
        raise _unwritable(config.target, error, tally["written"]) from error
    seconds = time.monotonic() - began
    return Summary(
        images=sum(tally.values()),
        **tally,
        left_out=len(listing.left_out),
        seconds=round(seconds, 3),
        images_per_second=round(tally["written"] / seconds, 2),
        target=str(config.target),
        format=config.format,
        files=[str(file) for file in files],
        model=labeller.card.name,
        version=labeller.card.version,
        review=count,
    )


def find_images(source: Path, target: Path) -> Listing:
    """The image files below ``source``, without our own output folders such as ``target``.

    Raises:
        LabelError: see :func:`label`.
    """
    if not source.is_dir():
        problem = f"{source} is not a folder" if source.exists() else f"no folder {source}"
        raise LabelError(problem, "a folder of images")
    if reason := _output_of_ours(source):
        raise LabelError(f"{source} is {reason}", "a folder of photographs")
    output = target.resolve()
    listing = list_images(
        source, lambda folder: OUT if folder.resolve() == output else _output_of_ours(folder)
    )
    listing.left_out = {path: why for path, why in listing.left_out.items() if why != OUT}
    if not listing.images:
        others = {**listing.unread, **listing.left_out}
        names = "".join(f"; {path}: {why}" for path, why in list(others.items())[:5])
        raise LabelError(
            f"no image below {source}{names}", f"files that end in {', '.join(EXTENSIONS)}"
        )
    return listing


def _output_of_ours(folder: Path) -> str:
    """What kind of output of ours a folder is; empty for others."""
    if holds_labels(folder):
        return "an output of wsss-serving label"
    if (folder / "model.json").is_file():
        return "a version of a model"
    try:
        run = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return "a run of wsss-trainer" if "stages" in run and "format" in run else ""
    except (OSError, ValueError, TypeError):
        return ""


def check_parts(images: Sequence[Path], form: Format, folds: bool = False) -> None:
    """Refuse two images that would have the same mask.

    Args:
        images: relative paths.
        folds: whether the disk takes ``a`` and ``A`` for one name.

    Raises:
        LabelError: two images would.
    """
    first: dict[str, Path] = {}
    for image in images:
        part = str(form.part(image))
        other = first.setdefault(normalize("NFC", part).casefold() if folds else part, image)
        if other != image:
            raise LabelError(
                f"{other} and {image} would both become {part}",
                "names that differ in more than their ending",
                "rename one of them",
            )


def _label_all(labeller: Labeller, listing: Listing, ledger: Ledger) -> Iterator[State]:
    """Outcomes in the order of the images, each recorded before it is returned."""
    target, card = ledger.target, labeller.card
    # Only now is there a file on the disk that tells how it treats case.
    check_parts(listing.images, labeller.format, folds=folds_case(target / MANIFEST))
    write_atomic(target / CLASSES, "".join(f"{name}\n" for name in card.labels).encode())
    ledger.left_out(listing)
    work = partial(labeller.one, ledger=ledger)
    with ThreadPoolExecutor(labeller.workers, thread_name_prefix="label") as threads:
        yield from _in_order(threads, work, listing.images, ahead=4 * labeller.workers)


def _in_order(
    threads: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    """``map`` over threads, at most ``ahead`` items at once. The first error cancels the rest."""
    running: deque[Future[R]] = deque()
    try:
        for item in items:
            running.append(threads.submit(work, item))
            # Bounds how many results wait in memory behind a slow first image.
            if len(running) >= ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()


def _unwritable(target: Path, error: OSError, written: int) -> LabelError:
    problem = (
        f"no space left for {target}"
        if error.errno in FULL
        else f"cannot write below {target}: {error.strerror}"
    )
    return LabelError(
        f"{problem}; the {written} masks written in this run are kept",
        "space and permission to write",
        "make room and run the same command again",
    )


def as_json(summary: Summary) -> str:
    """One line of JSON; without a review nothing is said of one."""
    return json.dumps({k: v for k, v in asdict(summary).items() if v is not None})
