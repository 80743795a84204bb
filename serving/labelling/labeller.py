"""A model that labels files with the code of the server."""

from __future__ import annotations

import errno
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from serving.card import Card
from serving.config import EngineConfig, Limits, ScheduleConfig, TilingConfig
from serving.engines import Engine, Inputs, Outputs
from serving.errors import LabelError, MaskChanged, OutputError, ServingError
from serving.files import write_atomic
from serving.images import pipeline
from serving.images.decoding import decode
from serving.images.options import Options, options_for
from serving.labelling.formats import Format, find_format
from serving.labelling.ledger import Entry, Ledger
from serving.labelling.review import REVIEW, Review
from serving.repository.choice import limited
from serving.repository.loading import open_engine, plan_for
from serving.repository.versions import choose, read_repository
from serving.scheduling.cpus import available_cpus

State = Literal["written", "skipped", "failed"]

# Errors about one name, which the disk refuses or something else has. The other images go on.
OF_ONE_NAME = (
    *(errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ),
    *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY),
)


@dataclass(frozen=True)
class LabelConfig:
    """What to label, and how.

    Attributes:
        source: folder of images, searched recursively.
        target: folder for the masks, at the same relative paths.
        model, version: an empty name is the only segmenter, or else the only CAM model; version 0
            is the newest.
        format, polygons: see :mod:`serving.labelling.formats`.
        force: label again what is already labelled.
        workers: images at once; 0 derives it from the processors.
        bucket, tiles, engine: as ``schedule.bucket``, ``tiling`` and ``engine`` of a server.
        score_threshold, background_threshold, confidence_threshold: as in a request; None is the
            model's.
        review_below: images whose estimated share of right pixels, 1 - doubt, is below go into a
            review, too; None for no review.
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
    review_below: float | None = None


@dataclass(frozen=True)
class Outcome:
    """The result for one image.

    Attributes:
        entry: its line in the manifest or in the failures.
        stays: it failed, and its line in the manifest remains true.
    """

    state: State
    entry: Entry
    stays: bool = False


class Labeller:
    """A model that labels files.

    Raises:
        RepositoryError, ModelNotFound, WrongModelKind: about the model.
        FieldError: a threshold out of range.
        LabelError: an unknown format, or a review that cannot be made.
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
        self.review = (
            None
            if config.review_below is None
            else Review(config.target, config.review_below, self.card)
        )
        threads = max(1, available_cpus() // self.workers)
        schedule = ScheduleConfig(workers=self.workers, threads=threads, max_batch=1)
        plan = plan_for(self.card, schedule, config.engine)
        self._engine: Engine = open_engine(self.card, plan, config.engine)
        # Everything that masks depend on besides the image and the graph.
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
        """Library, device and precision; a new version alone is no reason to label again."""
        library, _, *where = self._engine.description.partition(",")[0].split()
        return " ".join([library, *where])

    def one(self, image: Path, ledger: Ledger) -> State:
        """Label one file unless that is done already, and record the outcome.

        Raises:
            OSError: no mask can be written.
        """
        outcome = self._one(image, ledger.known.get(image.as_posix()))
        if outcome.state == "written":
            ledger.written(outcome.entry)
        elif outcome.state == "failed":
            ledger.failed(outcome.entry, outcome.stays)
        return outcome.state

    def _one(self, image: Path, entry: Entry | None) -> Outcome:
        source, name = self.config.source / image, image.as_posix()
        if entry and not self.config.force and self.is_current(entry, source):
            return Outcome("skipped", entry)
        try:
            name.encode()
            return Outcome("written", {"image": name} | self.write(image, entry or {}))
        except OSError as error:
            if error.filename != str(source) and error.errno not in OF_ONE_NAME:
                raise
            return Outcome("failed", {"image": name, "error": error.strerror or str(error)})
        except UnicodeEncodeError:
            return Outcome("failed", {"image": ascii(name), "error": "its name is no UTF-8"})
        except ServingError as error:
            stays = isinstance(error, MaskChanged)
            return Outcome("failed", {"image": name, "error": str(error)}, stays)

    def write(self, image: Path, entry: Entry) -> Entry:
        """Label one file; returns its line for the manifest, without the name.

        Args:
            image: relative path.
            entry: the manifest's line of an earlier run, or empty.

        Raises:
            ImageError: not an image, damaged or too large; nothing was written.
            MaskChanged: the existing mask is the user's.
            OSError: the image cannot be read, or the mask cannot be written.
        """
        config, card = self.config, self.card
        source, part = config.source / image, self.format.part(image)
        before = source.stat()
        if before.st_size > config.limits.max_bytes:
            limit = f"at most {config.limits.max_bytes:,} bytes"
            raise LabelError(f"the file has {before.st_size:,} bytes", limit)
        content = source.read_bytes()
        picture = decode(content, config.limits)
        canvas = pipeline.prepare(picture, card, config.bucket, config.tiles)
        result = pipeline.segment(canvas, card, self.options, self._run)
        data = self.format.encode(image, result, card)
        self._check_mask(config.target / part, entry, data)
        write_atomic(config.target / part, data)
        doubt = {} if result.doubt is None else {"doubt": round(result.doubt, 6)}
        review: Entry = {}
        if self.review and self.review.wants(doubt):
            review[REVIEW] = self.review.add(image, content, picture, result.labels)
        scores = zip(card.classes, result.scores)
        return {
            "mask": part.as_posix(),
            "height": canvas.height,
            "width": canvas.width,
            "image_bytes": before.st_size,
            "image_modified_ns": before.st_mtime_ns,
            "mask_sha256": hashlib.sha256(data).hexdigest(),
            "model": card.name,
            "version": card.version,
            "model_sha256": card.graph_sha256,
            "tiles": len(canvas.tiling),
            "settings": self._settings,
            "scores": {name: round(float(score), 6) for name, score in scores},
            "areas": {name: int(area) for name, area in zip(card.labels, result.areas) if area},
            **doubt,
            **review,
        }

    def _check_mask(self, path: Path, entry: Entry, data: bytes) -> None:
        """Refuse to overwrite a mask that a user edited or put there."""
        try:
            there = path.read_bytes()
        except FileNotFoundError:
            return
        # Equal to the new mask: written by a run that was killed before it recorded it. A file that
        # does not load is damaged.
        if there in (b"", data) or hashlib.sha256(there).hexdigest() == entry.get("mask_sha256"):
            return
        if not entry or self.format.is_whole(there, entry):
            raise MaskChanged(
                f"its mask {path} was changed since it was written, or comes from elsewhere",
                "a mask of an earlier run, or none",
                "move it away, or label into another folder",
            )

    def is_current(self, entry: Entry, source: Path) -> bool:
        """Whether the mask loads and the manifest records this graph, these settings and file."""
        own = (self.card.graph_sha256, self._settings)
        if (entry.get("model_sha256"), entry.get("settings")) != own:
            return False
        try:
            now = source.stat()
            data = (self.config.target / str(entry.get("mask"))).read_bytes()
        except OSError:
            return False
        if self.review and not self.review.is_current(entry):
            return False
        file = (entry.get("image_bytes"), entry.get("image_modified_ns"))
        return file == (now.st_size, now.st_mtime_ns) and self.format.is_whole(data, entry)

    def _run(self, inputs: Inputs) -> Outputs:
        try:
            return self._engine.run(inputs)
        # The library's exceptions derive from Exception directly. The other images may be fine.
        except Exception as error:
            text = (str(error) or type(error).__name__).splitlines()[0]
            raise OutputError(
                f"the graph of {self.card.name} failed: {text}", "a result for every image"
            ) from error
