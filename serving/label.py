"""A folder of images to a folder of masks, by the code that the server runs: the masks are equal to the byte."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from serving import masks, pipeline
from serving.config import Limits
from serving.cpus import available_cpus
from serving.engines import Engine
from serving.errors import LabelError, ServingError
from serving.image import EXTENSIONS, decode
from serving.options import options_for
from serving.repository import Card, choose, read_repository, verify

T = TypeVar("T")
R = TypeVar("R")

MANIFEST, FAILURES, CLASSES = "manifest.jsonl", "failures.jsonl", "classes.txt"
FULL = (errno.ENOSPC, errno.EDQUOT)

Entry = dict[str, Any]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LabelConfig:
    """What to label with what.

    Attributes:
        source: folder of images, searched in depth.
        target: folder for the masks, at the images' relative paths.
        model, version: an empty name is the only segmenter of the repository, version 0 the newest.
        force: label again what is labelled already.
        workers: images at once; 0 chooses by the processors.
        bucket: multiple to which sides are rounded up, as the server's ``schedule.bucket``.
    """

    source: Path
    target: Path
    repository: Path
    model: str = ""
    version: int = 0
    force: bool = False
    workers: int = 0
    limits: Limits = field(default_factory=Limits)
    bucket: int = 1


@dataclass(frozen=True)
class Summary:
    """What a run did. ``images`` is the sum of ``written``, ``skipped`` and ``failed``."""

    images: int
    written: int
    skipped: int
    failed: int
    seconds: float
    images_per_second: float
    target: str
    model: str
    version: int


@dataclass(frozen=True)
class Done:
    """What became of one image; ``entry`` is its line of the manifest or of the failures."""

    state: Literal["written", "skipped", "failed"]
    entry: Entry


def label(config: LabelConfig, progress: Progress = lambda done, total: None) -> Summary:
    """Label every image below ``config.source``.

    Writes palette PNGs, ``manifest.jsonl`` (a line a mask), ``failures.jsonl`` (a line a failed image, empty if none)
    and ``classes.txt`` (line n is label n). An image is skipped if its mask loads and the manifest says that it came
    from this graph and this image. Each file appears whole or not at all; run it again after any stop.

    Raises:
        LabelError: no image, two images for one mask, the same folder twice, or a folder that cannot be written.
        RepositoryError, ModelNotFound, WrongModelKind: of the model.
    """
    started = time.monotonic()
    images = find_images(config.source, config.target)
    card, engine = _load(config)
    tally = {"written": 0, "skipped": 0, "failed": 0}
    try:
        config.target.mkdir(parents=True, exist_ok=True)
        known = read_manifest(config.target / MANIFEST)
        write_atomic(config.target / CLASSES, "".join(f"{name}\n" for name in card.labels).encode())
        write_manifest(config.target / MANIFEST, known)
        for done in _label_all(config, card, engine, images, known):
            tally[done.state] += 1
            progress(sum(tally.values()), len(images))
        write_manifest(config.target / MANIFEST, known)
    except OSError as error:
        raise _unwritable(config.target, error, tally["written"]) from error
    seconds = time.monotonic() - started
    return Summary(
        images=len(images),
        **tally,
        seconds=round(seconds, 3),
        images_per_second=round(tally["written"] / seconds, 2),
        target=str(config.target),
        model=card.name,
        version=card.version,
    )


def find_images(source: Path, target: Path) -> list[Path]:
    """Relative paths of the image files below ``source``, sorted; hidden ones and those below ``target`` left out.

    Raises:
        LabelError: see :func:`label`.
    """
    if not source.is_dir():
        raise LabelError(f"no folder {source}", "a folder of images")
    if source.resolve() == target.resolve():
        raise LabelError(f"{source} is both input and output", "another folder for the masks")
    found = []
    for folder, names, files in os.walk(source):
        here = Path(folder)
        names[:] = [name for name in names if not name.startswith(".") and (here / name).resolve() != target.resolve()]
        found += [here / file for file in files if file.lower().endswith(EXTENSIONS) and not file.startswith(".")]
    if not found:
        raise LabelError(f"no image below {source}", f"files that end in {', '.join(EXTENSIONS)}")
    images = sorted(path.relative_to(source) for path in found)
    first: dict[Path, Path] = {}
    for image in images:
        other = first.setdefault(image.with_suffix(".png"), image)
        if other != image:
            raise LabelError(
                f"{other} and {image} would both become {image.with_suffix('.png')}",
                "one name an image, endings apart",
                "rename one of them",
            )
    return images


def label_one(source: Path, mask: Path, card: Card, engine: Engine, limits: Limits, bucket: int = 1) -> Entry:
    """Label one file; its line of the manifest, paths left out.

    Raises:
        ImageError: not an image, damaged or too large; nothing was written.
        OSError: ``source`` cannot be read or ``mask`` not written.
    """
    before = source.stat()
    if before.st_size > limits.max_bytes:
        raise LabelError(f"the file has {before.st_size:,} bytes", f"at most {limits.max_bytes:,} bytes")
    prepared = pipeline.prepare(decode(source.read_bytes(), limits), card, bucket)
    result = pipeline.segment(prepared, card, options_for(card), engine.run)
    data = masks.encode_labels(result.labels, card.palette)
    write_atomic(mask, data)
    return {
        "height": prepared.height,
        "width": prepared.width,
        "image_bytes": before.st_size,
        "image_modified_ns": before.st_mtime_ns,
        "mask_sha256": hashlib.sha256(data).hexdigest(),
        "model": card.name,
        "version": card.version,
        "model_sha256": card.graph_sha256,
        "bucket": bucket,
        "scores": {name: round(float(score), 6) for name, score in zip(card.classes, result.scores)},
        "areas": {name: int(area) for name, area in zip(card.labels, result.areas) if area},
    }


def is_current(entry: Entry | None, source: Path, mask: Path, card: Card, bucket: int = 1) -> bool:
    """Whether ``mask`` loads and came from this graph, bucket and file, as the manifest tells."""
    if entry is None or (entry.get("model_sha256"), entry.get("bucket", 1)) != (card.graph_sha256, bucket):
        return False
    try:
        now = source.stat()
        if (entry.get("image_bytes"), entry.get("image_modified_ns")) != (now.st_size, now.st_mtime_ns):
            return False
        return masks.read_png(mask.read_bytes()).shape == (entry.get("height"), entry.get("width"))
    except (OSError, ValueError):
        return False


def read_manifest(path: Path) -> dict[str, Entry]:
    """Lines by image; a line that a stop cut in two is left out."""
    entries: dict[str, Entry] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return entries
    for line in lines:
        try:
            entry = json.loads(line)
            entries[entry["image"]] = entry
        except (ValueError, KeyError, TypeError):
            continue
    return entries


def write_manifest(path: Path, entries: dict[str, Entry]) -> None:
    """All lines, sorted by image."""
    write_atomic(path, "".join(_line(entries[image]) for image in sorted(entries)).encode())


def write_atomic(path: Path, data: bytes) -> None:
    """Write under another name and rename, so that ``path`` is never seen half written.

    Raises:
        OSError: as writing does; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _load(config: LabelConfig) -> tuple[Card, Engine]:
    from serving.engines.onnxruntime import OnnxRuntimeEngine

    card = choose(read_repository(config.repository), config.model, config.version, "segmenter")
    verify(card)
    return card, OnnxRuntimeEngine(card, max(1, available_cpus() // _workers(config)))


def _workers(config: LabelConfig) -> int:
    return config.workers or min(available_cpus(), 16)


def _label_all(
    config: LabelConfig, card: Card, engine: Engine, images: list[Path], known: dict[str, Entry]
) -> Iterator[Done]:
    """Outcomes in the order of ``images``, each recorded in its file and in ``known`` before it is given out."""

    def one(image: Path) -> Done:
        source, mask = config.source / image, config.target / image.with_suffix(".png")
        paths = {"image": image.as_posix(), "mask": image.with_suffix(".png").as_posix()}
        entry = known.get(paths["image"])
        if not config.force and is_current(entry, source, mask, card, config.bucket):
            return Done("skipped", entry or {})
        try:
            return Done("written", paths | label_one(source, mask, card, engine, config.limits, config.bucket))
        except OSError as error:
            if error.filename != str(source):
                raise
            return Done("failed", {"image": paths["image"], "error": error.strerror or str(error)})
        except ServingError as error:
            return Done("failed", {"image": paths["image"], "error": str(error)})

    workers = _workers(config)
    with (
        (config.target / MANIFEST).open("a", encoding="utf-8") as manifest,
        (config.target / FAILURES).open("w", encoding="utf-8") as failures,
        ThreadPoolExecutor(workers, thread_name_prefix="label") as threads,
    ):
        for done in _in_order(threads, one, images, ahead=4 * workers):
            if done.state == "written":
                known[done.entry["image"]] = done.entry
                _append(manifest, done.entry)
            elif done.state == "failed":
                known.pop(done.entry["image"], None)
                _append(failures, done.entry)
            yield done


def _in_order(threads: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """``map`` over threads with at most ``ahead`` items under way; the first error cancels what has not begun."""
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


def _append(file: Any, entry: Entry) -> None:
    file.write(_line(entry))
    file.flush()


def _line(entry: Entry) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _unwritable(target: Path, error: OSError, written: int) -> LabelError:
    found = f"no space left for {target}" if error.errno in FULL else f"cannot write below {target}: {error.strerror}"
    kept = f"the {written} masks written in this run are kept"
    return LabelError(f"{found}; {kept}", "room and permission to write", "make room and run the same command again")


def as_json(summary: Summary) -> str:
    """One line of JSON."""
    return json.dumps(asdict(summary))
