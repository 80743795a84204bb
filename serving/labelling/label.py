"""A folder of images to a folder of masks, by the code that the server runs: the masks are equal to
the byte.
"""

from __future__ import annotations

import errno
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from serving.config import EngineConfig, Limits, ScheduleConfig, TilingConfig
from serving.engines import Engine, Inputs, Outputs
from serving.engines.choice import limited
from serving.errors import LabelError, OutputError, ServingError
from serving.files import Entry, append, images_below, read_manifest, write_atomic, write_manifest
from serving.images import pipeline
from serving.images.decoding import EXTENSIONS, decode
from serving.images.options import Options, options_for
from serving.labelling.formats import Format, find_format
from serving.repository.card import Card
from serving.repository.loading import open_engine, plan_for
from serving.repository.versions import choose, read_repository
from serving.scheduling.cpus import available_cpus

T = TypeVar("T")
R = TypeVar("R")

MANIFEST, FAILURES, CLASSES = "manifest.jsonl", "failures.jsonl", "classes.txt"
FULL = (errno.ENOSPC, errno.EDQUOT)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LabelConfig:
    """What to label with what.

    Attributes:
        source: folder of images, searched in depth.
        target: folder for the masks, at the images' relative paths.
        model, version: an empty name is the only segmenter of the repository, or the only CAM model
        where there is none;
            version 0 is the newest.
        format, polygons: see :mod:`serving.labelling.formats`.
        force: label again what is labelled already.
        workers: images at once; 0 chooses by the processors.
        bucket: multiple to which sides are rounded up, as the server's ``schedule.bucket``.
        tiles: what becomes of images above the model's limits, as the server's.
        engine: what runs the graph, as the server's.
        score_threshold, background_threshold, confidence_threshold: as in a request; None takes the
        model's own.
    """

    source: Path
    target: Path
    repository: Path
    model: str = ""
    version: int = 0
    format: str = "voc"
    polygons: bool = False
    force: bool = False
    workers: int = 0
    limits: Limits = field(default_factory=Limits)
    bucket: int = 1
    tiles: TilingConfig = field(default_factory=TilingConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    score_threshold: float | None = None
    background_threshold: float | None = None
    confidence_threshold: float | None = None


@dataclass(frozen=True)
class Summary:
    """What a run did. ``images`` is the sum of ``written``, ``skipped`` and ``failed``; ``files``
    hold all images.
    """

    images: int
    written: int
    skipped: int
    failed: int
    seconds: float
    images_per_second: float
    target: str
    format: str
    files: list[str]
    model: str
    version: int


@dataclass(frozen=True)
class Done:
    """What became of one image; ``entry`` is its line of the manifest or of the failures."""

    state: Literal["written", "skipped", "failed"]
    entry: Entry


class Labeller:
    """A model, ready to label files.

    Raises:
        RepositoryError, ModelNotFound, WrongModelKind: of the model.
        FieldError: a threshold out of range.
        LabelError: no such format.
    """

    def __init__(self, config: LabelConfig) -> None:
        self.config = config
        self.workers = config.workers or min(available_cpus(), 16)
        self.format: Format = find_format(config.format, config.polygons)
        cards = read_repository(config.repository, config.model)
        card = choose(cards, config.model, config.version, ("segmenter", "cam"))
        self.card: Card = limited(card, config.engine)
        self.options: Options = options_for(
            self.card,
            score_threshold=config.score_threshold,
            background_threshold=config.background_threshold,
            confidence_threshold=config.confidence_threshold,
        )
        threads = max(1, available_cpus() // self.workers)
        plan = plan_for(
            self.card,
            ScheduleConfig(workers=self.workers, threads=threads, max_batch=1),
            config.engine,
        )
        self._engine: Engine = open_engine(self.card, plan, config.engine)
        # What the masks depend on besides image and graph.
        self._settings = {
            "format": config.format,
            "polygons": config.polygons,
            "engine": self._engine_name(),
            "max_side": self.card.max_side,
            "bucket": config.bucket,
            "oversize": config.tiles.oversize,
            "overlap": config.tiles.overlap,
            "score_threshold": self.options.score_threshold,
            "background_threshold": self.options.background_threshold,
            "confidence_threshold": self.options.confidence_threshold,
        }

    def _engine_name(self) -> str:
        """Library, device and precision; another version alone is no reason to label again."""
        library, _, *where = self._engine.description.partition(",")[0].split()
        return " ".join([library, *where])

    def one(self, image: Path, entry: Entry | None) -> Done:
        """Label one file unless that was done; ``entry`` is what the manifest says of it.

        Raises:
            OSError: the mask cannot be written.
        """
        source, name = self.config.source / image, image.as_posix()
        if entry and not self.config.force and self.is_current(entry, source):
            return Done("skipped", entry)
        try:
            name.encode()
            return Done("written", {"image": name} | self.write(image))
        except OSError as error:
            if error.filename != str(source):
                raise
            return Done("failed", {"image": name, "error": error.strerror or str(error)})
        except UnicodeEncodeError:
            return Done("failed", {"image": ascii(name), "error": "its name is no UTF-8"})
        except ServingError as error:
            return Done("failed", {"image": name, "error": str(error)})

    def write(self, image: Path) -> Entry:
        """Label one file; its line of the manifest, its name left out.

        Raises:
            ImageError: not an image, damaged or too large; nothing was written.
            OSError: the image cannot be read or its mask not written.
        """
        config, card = self.config, self.card
        source, part = config.source / image, self.format.part(image)
        before = source.stat()
        if before.st_size > config.limits.max_bytes:
            raise LabelError(
                f"the file has {before.st_size:,} bytes",
                f"at most {config.limits.max_bytes:,} bytes",
            )
        picture = decode(source.read_bytes(), config.limits)
        prepared = pipeline.prepare(picture, card, config.bucket, config.tiles)
        result = pipeline.segment(prepared, card, self.options, self._run)
        data = self.format.encode(image, result, card)
        write_atomic(config.target / part, data)
        return {
            "mask": part.as_posix(),
            "height": prepared.height,
            "width": prepared.width,
            "image_bytes": before.st_size,
            "image_modified_ns": before.st_mtime_ns,
            "mask_sha256": hashlib.sha256(data).hexdigest(),
            "model": card.name,
            "version": card.version,
            "model_sha256": card.graph_sha256,
            "tiles": len(prepared.tiling),
            "settings": self._settings,
            "scores": {
                name: round(float(score), 6) for name, score in zip(card.classes, result.scores)
            },
            "areas": {name: int(area) for name, area in zip(card.labels, result.areas) if area},
        }

    def is_current(self, entry: Entry, source: Path) -> bool:
        """Whether the mask loads and came from this graph, these settings and this file, as the
        manifest tells.
        """
        if (entry.get("model_sha256"), entry.get("settings")) != (
            self.card.graph_sha256,
            self._settings,
        ):
            return False
        try:
            now = source.stat()
            if (entry.get("image_bytes"), entry.get("image_modified_ns")) != (
                now.st_size,
                now.st_mtime_ns,
            ):
                return False
            data = (self.config.target / str(entry.get("mask"))).read_bytes()
        except OSError:
            return False
        return self.format.is_whole(data, entry)

    def _run(self, inputs: Inputs) -> Outputs:
        try:
            return self._engine.run(inputs)
        # The library raises its own types, derived from Exception alone; the other images may be
        # good.
        except Exception as error:
            told = (str(error) or type(error).__name__).splitlines()[0]
            raise OutputError(
                f"the graph of {self.card.name} failed: {told}", "a result for every image"
            ) from error


def label(config: LabelConfig, progress: Progress = lambda done, total: None) -> Summary:
    """Label every image below ``config.source``.

    Writes a file an image and what its format has for all images, ``manifest.jsonl`` (a line a
    mask), ``failures.jsonl`` (a line a failed image, empty if none) and ``classes.txt`` (line n is
    label n). An image is skipped if its mask loads and the manifest says that it came from this
    graph, these settings and this image. Each file appears whole or not at all; run it again after
    any stop.

    Raises:
        LabelError: no image, two images for one mask, the same folder twice, or a folder that
            cannot be written.
        RepositoryError, ModelNotFound, WrongModelKind, FieldError: see :class:`Labeller`.
    """
    started = time.monotonic()
    form = find_format(config.format, config.polygons)
    images = find_images(config.source, config.target, form)
    labeller = Labeller(config)
    card, target = labeller.card, config.target
    tally = {"written": 0, "skipped": 0, "failed": 0}
    try:
        target.mkdir(parents=True, exist_ok=True)
        known = read_manifest(target / MANIFEST)
        write_atomic(target / CLASSES, "".join(f"{name}\n" for name in card.labels).encode())
        write_manifest(target / MANIFEST, known)
        for done in _label_all(labeller, images, known):
            tally[done.state] += 1
            progress(sum(tally.values()), len(images))
        write_manifest(target / MANIFEST, known)
        files = form.finish(
            target, card, [known[name] for name in map(Path.as_posix, images) if name in known]
        )
    except OSError as error:
        raise _unwritable(target, error, tally["written"]) from error
    seconds = time.monotonic() - started
    return Summary(
        images=len(images),
        **tally,
        seconds=round(seconds, 3),
        images_per_second=round(tally["written"] / seconds, 2),
        target=str(target),
        format=config.format,
        files=[str(file) for file in files],
        model=card.name,
        version=card.version,
    )


def find_images(source: Path, target: Path, form: Format) -> list[Path]:
    """Relative paths of the image files below ``source``, sorted; hidden ones and those below
    ``target`` left out.

    Raises:
        LabelError: see :func:`label`.
    """
    if not source.is_dir():
        raise LabelError(f"no folder {source}", "a folder of images")
    if source.resolve() == target.resolve():
        raise LabelError(f"{source} is both input and output", "another folder for the masks")
    images = images_below(source, without=target)
    if not images:
        raise LabelError(f"no image below {source}", f"files that end in {', '.join(EXTENSIONS)}")
    first: dict[Path, Path] = {}
    for image in images:
        other = first.setdefault(form.part(image), image)
        if other != image:
            raise LabelError(
                f"{other} and {image} would both become {form.part(image)}",
                "one name an image, endings apart",
                "rename one of them",
            )
    return images


def _label_all(labeller: Labeller, images: list[Path], known: dict[str, Entry]) -> Iterator[Done]:
    """Outcomes in the order of ``images``, each recorded in its file and in ``known`` before it is
    given out.
    """
    target, workers = labeller.config.target, labeller.workers

    def one(image: Path) -> Done:
        return labeller.one(image, known.get(image.as_posix()))

    with (
        (target / MANIFEST).open("a", encoding="utf-8") as manifest,
        (target / FAILURES).open("w", encoding="utf-8") as failures,
        ThreadPoolExecutor(workers, thread_name_prefix="label") as threads,
    ):
        for done in _in_order(threads, one, images, ahead=4 * workers):
            if done.state == "written":
                known[done.entry["image"]] = done.entry
                append(manifest, done.entry)
            elif done.state == "failed":
                known.pop(done.entry["image"], None)
                append(failures, done.entry)
            yield done


def _in_order(
    threads: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    """``map`` over threads with at most ``ahead`` items under way; the first error cancels what has
    not begun.
    """
    running: deque[Future[R]] = deque()
    try:
        for item in items:
            running.append(threads.submit(work, item))
            if len(running) >= ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()


def _unwritable(target: Path, error: OSError, written: int) -> LabelError:
    found = (
        f"no space left for {target}"
        if error.errno in FULL
        else f"cannot write below {target}: {error.strerror}"
    )
    kept = f"the {written} masks written in this run are kept"
    return LabelError(
        f"{found}; {kept}",
        "room and permission to write",
        "make room and run the same command again",
    )


def as_json(summary: Summary) -> str:
    """One line of JSON."""
    return json.dumps(asdict(summary))
