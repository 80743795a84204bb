"""A model that labels files with the code of the server. It writes nothing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from serving.card import Card
from serving.config import EngineConfig, Limits, ScheduleConfig, TilingConfig
from serving.engines import Engine, Inputs, Outputs
from serving.errors import LabelError, OutputError, ServingError
from serving.images import pipeline
from serving.images.decoding import decode
from serving.images.options import Options, options_for
from serving.labelling.formats import Format, find_format
from serving.labelling.ledger import Entry
from serving.labelling.review import Sheet, is_doubtful, sheet_for
from serving.labelling.sources import Source, open_source
from serving.repository.choice import limited
from serving.repository.loading import open_engine, plan_for
from serving.repository.versions import choose, read_repository
from serving.scheduling.cpus import available_cpus


@dataclass(frozen=True)
class LabelConfig:
    """What to label, and how.

    Attributes:
        source: folder of images, searched recursively, or its address such as ``s3://bucket/photos``.
        target: folder for the masks, at the same relative paths.
        model, version: an empty name is the only segmenter, or else the only CAM model; version 0
            is the newest.
        format, polygons: see :mod:`serving.labelling.formats`.
        force: label again what is already labelled.
        workers: images at once; 0 derives it from the processors. On a cluster, its actors.
        bucket, tiles, engine: as ``schedule.bucket``, ``tiling`` and ``engine`` of a server.
        score_threshold, background_threshold, confidence_threshold: as in a request; None is the
            model's.
        ray: address of a Ray cluster that computes the masks, or ``auto`` for the one that this
            machine belongs to; empty for this process alone.
        review_below: images whose estimated share of right pixels, 1 - doubt, is below go into a
            review, too; None for no review.
    """

    source: Path | str
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
    ray: str = ""


@dataclass(frozen=True)
class Model:
    """A loaded model, as far as the labelled folder has to know it.

    Attributes:
        settings: everything that masks depend on besides the image and the graph.
    """

    card: Card
    settings: Entry


@dataclass(frozen=True)
class Labelled:
    """What the model made of one image.

    Attributes:
        image: relative path.
        entry: its line for the manifest, without the review.
        mask: contents of its file.
        sheet: for the review; None if the image is not for it.
    """

    image: Path
    entry: Entry
    mask: bytes
    sheet: Sheet | None


@dataclass(frozen=True)
class Failure:
    """An image without a mask, and the reason."""

    image: Path
    error: str


Result = Labelled | Failure


class Labeller:
    """A model that labels files.

    Args:
        processors: that it may use; 0 is all of them.

    Raises:
        RepositoryError, ModelNotFound, WrongModelKind: about the model.
        FieldError: a threshold out of range.
        LabelError: an unknown format.
    """

    def __init__(self, config: LabelConfig, processors: int = 0) -> None:
        self.config = config
        processors = processors or available_cpus()
        self.workers = config.workers or min(processors, 16)
        self._source: Source = open_source(config.source)
        self._format: Format = find_format(config.format, config.polygons)
        cards = read_repository(config.repository, config.model)
        card = choose(cards, config.model, config.version, ("segmenter", "cam"))
        self._card: Card = limited(card, config.engine)
        self._options: Options = options_for(
            self._card,
            score_threshold=config.score_threshold,
            background_threshold=config.background_threshold,
            confidence_threshold=config.confidence_threshold,
        )
        threads = max(1, processors // self.workers)
        schedule = ScheduleConfig(workers=self.workers, threads=threads, max_batch=1)
        plan = plan_for(self._card, schedule, config.engine)
        self._engine: Engine = open_engine(self._card, plan, config.engine)
        settings = {
            "format": config.format,
            "polygons": config.polygons,
            "engine": self._engine_name(),
            "max_side": self._card.max_side,
            "bucket": config.bucket,
            "oversize": config.tiles.oversize,
            "overlap": config.tiles.overlap,
            "score_threshold": self._options.score_threshold,
            "background_threshold": self._options.background_threshold,
            "confidence_threshold": self._options.confidence_threshold,
        }
        self.model = Model(self._card, settings)

    def _engine_name(self) -> str:
        """Library, device and precision; a new version alone is no reason to label again."""
        library, _, *where = self._engine.description.partition(",")[0].split()
        return " ".join([library, *where])

    def label(self, image: Path) -> Result:
        """Label one file.

        Args:
            image: relative path.
        """
        try:
            str(image).encode()
            return self._label(image)
        except UnicodeEncodeError:
            return Failure(image, "its name is no UTF-8")
        except OSError as error:
            return Failure(image, error.strerror or str(error))
        except ServingError as error:
            return Failure(image, str(error))

    def _label(self, image: Path) -> Labelled:
        config, card = self.config, self._card
        size, modified = self._source.facts(image)
        if size > config.limits.max_bytes:
            limit = f"at most {config.limits.max_bytes:,} bytes"
            raise LabelError(f"the file has {size:,} bytes", limit)
        content = self._source.read(image)
        picture = decode(content, config.limits)
        canvas = pipeline.prepare(picture, card, config.bucket, config.tiles)
        result = pipeline.segment(canvas, card, self._options, self._run)
        doubt = {} if result.doubt is None else {"doubt": round(result.doubt, 6)}
        scores = zip(card.classes, result.scores)
        mask = self._format.encode(image, result, card)
        entry = {
            "image": image.as_posix(),
            "mask": self._format.part(image).as_posix(),
            "height": canvas.height,
            "width": canvas.width,
            "image_bytes": size,
            "image_modified_ns": modified,
            "mask_sha256": hashlib.sha256(mask).hexdigest(),
            "model": card.name,
            "version": card.version,
            "model_sha256": card.graph_sha256,
            "tiles": len(canvas.tiling),
            "settings": self.model.settings,
            "scores": {name: round(float(score), 6) for name, score in scores},
            "areas": {name: int(area) for name, area in zip(card.labels, result.areas) if area},
            **doubt,
        }
        is_for_review = config.review_below is not None and is_doubtful(entry, config.review_below)
        sheet = sheet_for(content, picture, result.labels, card) if is_for_review else None
        return Labelled(image, entry, mask, sheet)

    def _run(self, inputs: Inputs) -> Outputs:
        try:
            return self._engine.run(inputs)
        # The library's exceptions derive from Exception directly. The other images may be fine.
        except Exception as error:
            text = (str(error) or type(error).__name__).splitlines()[0]
            raise OutputError(
                f"the graph of {self._card.name} failed: {text}", "a result for every image"
            ) from error
