"""Label a folder of images with the code of the server: the masks are equal to the byte."""

from __future__ import annotations

import errno
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TypeVar
from unicodedata import normalize

from serving.card import Card
from serving.errors import LabelError
from serving.files import write_atomic
from serving.images.decoding import EXTENSIONS
from serving.labelling.formats import Format, find_format
from serving.labelling.labeller import LabelConfig, Labeller, Model
from serving.labelling.ledger import CLASSES, MANIFEST, Ledger, holds_labels, open_ledger
from serving.labelling.review import Review
from serving.labelling.sources import Source, open_source
from serving.labelling.store import State, Store
from serving.listing import Listing
from serving.outputs import check_folder, folds_case

T = TypeVar("T")
R = TypeVar("R")

FULL = (errno.ENOSPC, errno.EDQUOT)

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
    folders = [config.source] if isinstance(config.source, Path) else []
    check_folder(config.target, holds_labels, folders, "OUT", may_lie_in=True)
    source = open_source(config.source)
    listing = find_images(config, source)
    check_parts(listing.images, form)
    tally = {"written": 0, "skipped": 0, "failed": len(listing.unread)}
    with _workers(config) as workers:
        card = workers.model.card
        review = _review(config, card, listing.images, form)
        try:
            with open_ledger(config.target) as ledger:
                _prepare(ledger, listing, form, card)
                store = Store(config, source, form, workers.model, ledger, review)
                for number, state in enumerate(workers.states(listing.images, store), 1):
                    tally[state] += 1
                    progress(number, len(listing.images))
                entries = ledger.finish(listing.images)
                files = form.finish(config.target, card, entries)
                count = review.finish(entries, source) if review else None
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
        model=card.name,
        version=card.version,
        review=count,
    )


def find_images(config: LabelConfig, source: Source) -> Listing:
    """The image files of a source, without our own output folders.

    Raises:
        LabelError: see :func:`label`.
    """
    listing = source.listing(config.target)
    if not listing.images:
        others = {**listing.unread, **listing.left_out}
        names = "".join(f"; {path}: {why}" for path, why in list(others.items())[:5])
        raise LabelError(
            f"no image below {source.name}{names}", f"files that end in {', '.join(EXTENSIONS)}"
        )
    return listing


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


def _review(config: LabelConfig, card: Card, images: Sequence[Path], form: Format) -> Review | None:
    if config.review_below is None:
        return None
    review = Review(config.target, config.review_below, card)
    review.check(images, form)
    return review


def _prepare(ledger: Ledger, listing: Listing, form: Format, card: Card) -> None:
    """What is written before the first mask."""
    # Only now is there a file on the disk that tells how it treats case.
    check_parts(listing.images, form, folds=folds_case(ledger.target / MANIFEST))
    write_atomic(ledger.target / CLASSES, "".join(f"{name}\n" for name in card.labels).encode())
    ledger.left_out(listing)


class Workers(Protocol):
    """What computes the masks."""

    @property
    def model(self) -> Model:
        """The model that they have loaded."""
        ...

    def states(self, images: Sequence[Path], store: Store) -> Iterator[State]:
        """Outcomes of the images, each recorded before it is returned."""
        ...


@contextmanager
def _workers(config: LabelConfig) -> Iterator[Workers]:
    if not config.ray:
        yield Threads(Labeller(config))
        return
    from serving.labelling.on_ray import connected

    with connected(config) as cluster:
        yield cluster


class Threads:
    """The threads of this process, which share one model."""

    def __init__(self, labeller: Labeller) -> None:
        self.model, self._labeller = labeller.model, labeller

    def states(self, images: Sequence[Path], store: Store) -> Iterator[State]:
        """See :class:`Workers`; in the order of the images."""

        def one(image: Path) -> State:
            return "skipped" if store.is_current(image) else store.record(label_one(image))

        label_one, workers = self._labeller.label, self._labeller.workers
        with ThreadPoolExecutor(workers, thread_name_prefix="label") as threads:
            yield from _in_order(threads, one, images, ahead=4 * workers)


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
